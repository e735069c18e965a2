"""What the processes of a group tell each other, for `distributed`: rows to all, rows back to each, and whether they agree.

All of it is one primitive, all_to_all_single: each process has a connection of its own to every other, so that all notice at once
when one is gone. A call starts with `agree`, a few numbers from everyone: a process that failed, or was given something else, is
known before the rows are sent that it would leave the others waiting for. Those numbers travel between CPUs, through gloo where
the group's own backend is for GPUs alone: they neither wait for a GPU, nor leave a failure to the watchdog of NCCL.
"""

import hashlib
import time
import weakref
from collections.abc import Sequence
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROLL_CALL = 3.0  # seconds in which those who notice a failure say so, that the others can be named


class ShardError(RuntimeError):
    """A collective failed or timed out: a process is gone, does not answer, or is in another call. Start again."""


class Exchange:
    """The processes of a group.

    Attributes:
        rank: this process's place in the group; `ranks` has the global ranks, which messages name.
        world: number of processes.
        group: what torch.distributed calls it.
        traffic: bytes that this process has handed to collectives.
    """

    def __init__(self, group: "dist.ProcessGroup | None") -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed: expected a process group, got none; call torch.distributed.init_process_group first"
            )
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(
                f"group: expected one that this process belongs to, got one without rank {dist.get_rank()}"
            )
        self._group = weakref.ref(dist.group.WORLD if group is None else group)
        self.ranks = dist.get_process_group_ranks(self.group)
        backends = dict(pair.split(":") for pair in str(dist.get_backend_config(self.group)).split(","))
        # gloo takes tensors of a GPU in some collectives only: they go by way of the CPU.
        self._devices = {kind for kind, backend in backends.items() if kind == "cpu" or backend != "gloo"}
        self._control = self._group
        if "cpu" not in backends:
            self._control = weakref.ref(self._gloo_group(group in (None, dist.group.WORLD)))
        self.traffic, self._calls, self._doing, self._broken = 0, 0, "ShardedCatalog", ""
        self._name = f"bdkernels.shards.{self.agree('ShardedCatalog', time.time_ns())[0]}"

    @property
    def group(self) -> Any:
        """The group, as long as torch.distributed has it.

        This object does not keep it: a group whose threads still run when Python ends may abort the process, so
        `torch.distributed.destroy_process_group` must be able to end it.
        """
        return self._living(self._group)

    def _living(self, group: "weakref.ref[Any]") -> Any:
        if (living := group()) is None:
            raise ShardError("the process group was destroyed: make another, and everything that was made of it anew")
        return living

    def _gloo_group(self, everyone: bool) -> Any:
        if not everyone:  # torch makes a group only with all processes of the world, of which some may not be here
            raise ValueError(
                "group: expected a backend for CPUs too, such as cpu:gloo,cuda:nccl, got one for GPUs alone"
            )
        timeout = self.group._get_backend(torch.device("cuda")).options._timeout
        return dist.new_group(timeout=timeout, backend="gloo")

    def agree(self, what: str, value: int = 0, error: BaseException | None = None, **settings: object) -> list[int]:
        """Every process's value, once all are in the same call with the same settings and none has an error.

        Raises:
            `error` itself, here; and on the others a ValueError that names the rank and says what it was (a ShardError where
            it was no ValueError or TypeError), or which setting differs.
        """
        told = "\n".join(f"{name}={setting}" for name, setting in {"operation": what, **settings}.items())
        digest = int.from_bytes(hashlib.blake2b(told.encode(), digest_size=7).digest(), "little")
        failed = 0 if error is None else 1 if isinstance(error, (ValueError, TypeError)) else 2
        failures, digests, values = zip(*self.tell(what, [[failed, digest, value]] * self.world), strict=True)
        if any(failures):
            texts = self._texts(f"{type(error).__name__}: {error}" if error is not None else "")
            if error is not None:
                raise error
            first = next(place for place, n in enumerate(failures) if n)
            kind = ValueError if failures[first] == 1 else ShardError
            raise kind(f"{what}: rank {self.ranks[first]} failed with {texts[first]}")
        if len(set(digests)) > 1:
            raise ValueError(f"{what}: {self._difference(self._texts(told))}")
        return list(values)

    def tell(self, what: str, numbers: Sequence[Sequence[int]]) -> list[list[int]]:
        """What every process has for this one, given what this one has for each: as many int64 from all to all.

        Raises:
            ShardError: also where a process is in another call.
        """
        self._doing = what
        self._calls += 1
        ones, mine = [1] * self.world, torch.tensor([[self._calls, *row] for row in numbers])
        told = self._swap(mine, ones, ones, self._control).tolist()
        others = [rank for rank, row in zip(self.ranks, told, strict=True) if row[0] != self._calls]
        if others:
            raise self._break(f"{what}: {_names(others)} in another call than rank {self.ranks[self.rank]}")
        return [row[1:] for row in told]

    def texts(self, what: str, text: str) -> list[str]:
        """Every process's text."""
        self.tell(what, [[]] * self.world)
        return self._texts(text)

    def _difference(self, texts: list[str]) -> str:
        """What two processes were given differently, the first name of those that differ."""
        settings = [dict(line.split("=", 1) for line in text.split("\n")) for text in texts]
        for name in {name: None for told in settings for name in told}:
            values = [told.get(name, "nothing") for told in settings]
            for rank, value in zip(self.ranks, values, strict=True):
                if value != values[0]:
                    got = f"{values[0]} on rank {self.ranks[0]} and {value} on rank {rank}"
                    return f"{name}: expected the same on every process, got {got}"
        return "expected the same on every process"

    def gather(self, t: Tensor, sizes: Sequence[int]) -> Tensor:
        """[sum of sizes, ...]: the rows [n, ...] of all processes in the order of their ranks; process p has sizes[p]."""
        everywhere = t.expand(self.world, *t.shape).flatten(0, 1)
        return self.route(everywhere, [t.shape[0]] * self.world, sizes)

    def back(self, t: Tensor, sizes: Sequence[int]) -> Tensor:
        """[world, n, ...]: from every process what it has for the rows of this one, given all rows [sum of sizes, ...]."""
        n = sizes[self.rank]
        rows: Tensor = self.route(t, sizes, [n] * self.world).unflatten(0, (self.world, n))
        return rows

    def route(self, t: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """[sum of receive, ...]: the next send[p] rows of t go to process p, and receive[p] rows come from it, in that order."""
        native = t.device.type in self._devices
        group = self._group if native else self._control
        return self._swap(t if native else t.cpu(), send, receive, group).to(t.device)

    def _everyone(self, mine: list[int]) -> list[list[int]]:
        numbers = torch.tensor([mine] * self.world)
        ones = [1] * self.world
        return self._swap(numbers, ones, ones, self._control).tolist()

    def _texts(self, text: str) -> list[str]:
        """Every process's text; what is wrong with it is known."""
        mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
        lengths = [n for (n,) in self._everyone([len(mine)])]
        parts = self._swap(mine.repeat(self.world), [len(mine)] * self.world, lengths, self._control).split(lengths)
        return [bytes(part.tolist()).decode() for part in parts]

    def _swap(self, t: Tensor, send: Sequence[int], receive: Sequence[int], group: "weakref.ref[Any]") -> Tensor:
        """Rows as bytes: every backend takes those, whatever the dtype."""
        if self._broken:
            raise ShardError(self._broken)
        living = self._living(group)
        shape, width = (sum(receive), *t.shape[1:]), t.element_size() * t.shape[1:].numel()
        if not width:
            return t.new_empty(shape)
        rows = t.contiguous().flatten().view(torch.uint8).view(t.shape[0], width)
        out = rows.new_empty(shape[0], width)
        self.traffic += rows.numel()
        try:
            dist.all_to_all_single(out, rows, list(receive), list(send), group=living)
        except RuntimeError as error:
            raise self.lost(self._doing, error) from error
        return out.flatten().view(t.dtype).view(shape)

    def lost(self, what: str, error: RuntimeError) -> ShardError:
        """What to raise where a collective has failed, this object's or another of the group; names who did not answer."""
        self._doing = what
        lost = self._roll_call()
        said = f"; {lost} did not answer" if lost else ""
        reason = str(error).splitlines()[0]
        return self._break(f"{what}: failed on rank {self.ranks[self.rank]}{said} ({reason})")

    def _break(self, why: str) -> ShardError:
        """From here on no process knows what the others wait for: this object answers nothing more."""
        self._broken = why
        return ShardError(why)

    def _roll_call(self) -> str:
        """The processes that have not noticed the failure, by the group's store; "" where it does not answer either.

        In a thread, since a store whose host is gone may wait for long.
        """
        there: set[int] = set()
        reached: list[bool] = []
        until = time.monotonic() + ROLL_CALL

        def call() -> None:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"{self._name}.{self.rank}", self._doing)
            while len(there) < self.world and time.monotonic() < until:
                there.update(p for p in range(self.world) if p not in there and store.check([f"{self._name}.{p}"]))
                reached.append(True)
                time.sleep(0.02)

        def quietly() -> None:
            try:
                call()
            except RuntimeError:
                reached.clear()

        thread = Thread(target=quietly, daemon=True)
        thread.start()
        thread.join(ROLL_CALL + 0.5)
        if not reached or thread.is_alive():
            return ""
        return _names([rank for place, rank in enumerate(self.ranks) if place not in there])


def _names(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks " if ranks else "") + ", ".join(map(str, ranks))
