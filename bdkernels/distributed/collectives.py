"""What the processes of a group tell each other, for `distributed`: rows to all, rows back to each, and whether they agree.

Rows that all need go by all_gather, sums that all need by all_reduce, and what is for one process by all_to_all. A call starts
with `agree`, a few numbers from everyone: a process that failed, or was given something else, is known before the rows are sent
that it would leave the others waiting for. Those numbers travel between CPUs, through gloo where the group's own backend is for
GPUs alone: they neither wait for a GPU, nor leave a failure to the watchdog of NCCL. `ask` is the same agreement about numbers
that lie on a device: they travel where the rows do, and to read the answers is the one time that the host waits for the device.

Checked with gloo, on CPU tensors; NCCL has not been run.
"""

import hashlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROLL_CALL = 3.0  # seconds in which those who notice a failure say so, that the others can be named
VALUES = 3  # numbers that a process tells another in an agreement; all agreements have the same length, so that each fits each
# Its name since torch 2.13, and before; none where torch has no torch.distributed.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


class ShardError(RuntimeError):
    """A collective failed or timed out: a process is gone, does not answer, or is in another call. Start again."""


class Exchange:
    """The processes of a group.

    Attributes:
        rank: this process's place in the group; `ranks` has the global ranks, which messages name.
        world: number of processes.
        group: what torch.distributed calls it.
        traffic: bytes that this process has sent in collectives, its own part of the results included. Rows that all gather
            count once for each process, and a sum twice its size, which is what a ring of processes passes on.
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
        row = [code_of(error), _digest(told), value, *[0] * (VALUES - 1)]
        rows = self.tell(what, [row] * self.world)
        self._settle(what, rows, told, error)
        return [row[2] for row in rows]

    def ask(self, what: str, numbers: Tensor, failed: Tensor, error: Callable[[], Exception | None]) -> list[list[int]]:
        """`agree` and `tell` in one, of numbers on the device of the rows: every process's VALUES numbers for this one.

        Args:
            numbers: [world, VALUES] int64, row p for process p.
            failed: int64 [], the code of what failed here, 0 for nothing.
            error: gives that error; called where `failed` is not 0.
        """
        told = f"operation={what}"
        mine = numbers.new_empty(self.world, 3 + VALUES)
        mine[:, 0], mine[:, 1], mine[:, 2], mine[:, 3:] = self._begin(what), failed, _digest(told), numbers
        rows = self._heard(what, self.route(mine, [1] * self.world, [1] * self.world))
        self._settle(what, rows, told, error() if rows[self.rank][0] else None)
        return [row[2:] for row in rows]

    def _settle(self, what: str, rows: list[list[int]], told: str, error: BaseException | None) -> None:
        """Raise what `agree` says, given the code, digest and numbers of every process."""
        failures = [row[0] for row in rows]
        if any(failures):
            texts = self._texts(f"{type(error).__name__}: {error}" if error is not None else "")
            if error is not None:
                raise error
            first = next(place for place, n in enumerate(failures) if n)
            kind = ValueError if failures[first] == 1 else ShardError
            raise kind(f"{what}: rank {self.ranks[first]} failed with {texts[first]}")
        if len({row[1] for row in rows}) > 1:
            raise ValueError(f"{what}: {self._difference(self._texts(told))}")

    def tell(self, what: str, numbers: Sequence[Sequence[int]]) -> list[list[int]]:
        """What every process has for this one, given what this one has for each: as many int64 from all to all.

        Raises:
            ShardError: also where a process is in another call.
        """
        number, ones = self._begin(what), [1] * self.world
        mine = torch.tensor([[number, *row] for row in numbers])
        return self._heard(what, self._swap(mine, ones, ones, self._control))

    def _begin(self, what: str) -> int:
        """The number of the call that begins."""
        self._doing = what
        self._calls += 1
        return self._calls

    def _heard(self, what: str, told: Tensor) -> list[list[int]]:
        """What every process has for this one, read by the host, once all are in the call of the same number."""
        rows = told.tolist()
        others = [rank for rank, row in zip(self.ranks, rows, strict=True) if row[0] != self._calls]
        if others:
            raise self._break(f"{what}: {_names(others)} in another call than rank {self.ranks[self.rank]}")
        return [row[1:] for row in rows]

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
        most = max(sizes)  # every process sends as many: the smaller ones add rows that the others leave out
        mine = t if len(t) == most else torch.cat([t, t.new_zeros(most - len(t), *t.shape[1:])])
        group, rows = self._sent(mine)
        out = rows.new_empty(self.world * most, rows.shape[1])
        if out.numel():
            with self._collective(group) as living:
                _all_gather(out, rows, group=living)
            self.traffic += out.numel()
        everyones = _received(out, t)
        if sum(sizes) == len(everyones):
            return everyones
        return torch.cat([part[:n] for part, n in zip(everyones.split(most), sizes, strict=True)])

    def sum(self, t: Tensor) -> Tensor:
        """The sums of all processes' t, integers of one shape and dtype."""
        total = t.clone() if t.device.type in self._devices else t.cpu()
        if total.numel():
            with self._collective(self._group_for(t)) as living:
                dist.all_reduce(total, group=living)
            self.traffic += 2 * total.numel() * total.element_size()
        return total.to(t.device)

    def back(self, t: Tensor, sizes: Sequence[int]) -> Tensor:
        """[world, n, ...]: from every process what it has for the rows of this one, given all rows [sum of sizes, ...]."""
        n = sizes[self.rank]
        rows: Tensor = self.route(t, sizes, [n] * self.world).unflatten(0, (self.world, n))
        return rows

    def route(self, t: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """[sum of receive, ...]: the next send[p] rows of t go to process p, and receive[p] rows come from it, in that order."""
        group, rows = self._sent(t)
        return _received(self._swap(rows, send, receive, group), t)

    def _group_for(self, t: Tensor) -> "weakref.ref[Any]":
        """What sends tensors of this device: the group itself, or copies on the CPU by the one for agreements."""
        return self._group if t.device.type in self._devices else self._control

    def _sent(self, t: Tensor) -> "tuple[weakref.ref[Any], Tensor]":
        """By which group the rows go, and as what: bytes, which every backend takes, whatever the dtype."""
        group = self._group_for(t)
        there = t if t.device.type in self._devices else t.cpu()
        width = t.element_size() * t.shape[1:].numel()
        return group, there.contiguous().flatten().view(torch.uint8).view(t.shape[0], width)

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
        out = t.new_empty(sum(receive), *t.shape[1:])
        if t.shape[1:].numel():
            with self._collective(group) as living:
                dist.all_to_all_single(out, t, list(receive), list(send), group=living)
            self.traffic += t.numel() * t.element_size()
        return out

    @contextmanager
    def _collective(self, group: "weakref.ref[Any]") -> Iterator[Any]:
        """The group, for one collective: a failure of it is a ShardError, and the last thing that this object does."""
        if self._broken:
            raise ShardError(self._broken)
        living = self._living(group)
        try:
            yield living
        except RuntimeError as error:
            raise self.lost(self._doing, error) from error

    def lost(self, what: str, error: RuntimeError) -> ShardError:
        """What to raise where a collective has failed, this object's or another of the group; names who did not answer."""
        self._doing = what
        self._hang_up()
        lost = self._roll_call()
        said = f"; {lost} did not answer" if lost else ""
        reason = str(error).splitlines()[0]
        return self._break(f"{what}: failed on rank {self.ranks[self.rank]}{said} ({reason})")

    def _break(self, why: str) -> ShardError:
        """From here on no process knows what the others wait for: this object answers nothing more."""
        self._broken = why
        return ShardError(why)

    def _hang_up(self) -> None:
        """Close the connections to the others: in a ring only the neighbours of a process notice that it is gone.

        gloo closes them when a receive times out, so this is one from everybody that nobody sends to. NCCL's own connections
        are left to its watchdog.
        """
        for rank in self.ranks:
            if rank != self.ranks[self.rank]:
                try:
                    waiting = dist.irecv(torch.empty(1), rank, group=self._living(self._control), tag=1 << 20)
                    if waiting is not None:
                        waiting.wait(timedelta(milliseconds=1))
                except RuntimeError:
                    pass

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


def code_of(error: BaseException | None) -> int:
    """What a process says of its failure: 0 for none, 1 for an argument of the caller's, 2 for anything else."""
    return 0 if error is None else 1 if isinstance(error, (ValueError, TypeError)) else 2


def _digest(told: str) -> int:
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=7).digest(), "little")


def _received(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of bytes [n, width] as rows like those that were sent."""
    return rows.flatten().view(like.dtype).view(len(rows), *like.shape[1:]).to(like.device)
