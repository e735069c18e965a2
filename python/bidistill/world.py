"""The processes that train together: who this one is, what they agree on, and what only the first does.

A program started once is a world of one, where nothing here does anything. torchrun starts several, and tells each by the
environment who it is.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import torch
import torch.distributed as dist

from bdkernels.exchange import Exchange
from bidistill.config import RunConfig
from bidistill.errors import UserError

_GIVEN: ContextVar[World | None] = ContextVar("world", default=None)


class World:
    """The processes of a run.

    Args:
        exchange: what they tell each other by; None for a world of one.

    Attributes:
        rank, size: this process's place, and how many there are.
        asked: whether this process was asked to stop; `stopping`: whether any was, as all knew in their last step.
    """

    def __init__(self, exchange: Exchange | None = None) -> None:
        self._exchange = exchange
        self.rank, self.size = (0, 1) if exchange is None else (exchange.rank, exchange.world)
        self.asked = self.stopping = False

    @classmethod
    def find(cls, run: RunConfig) -> World:
        """The world that this process is of: the default group of torch.distributed, made here if torchrun started it.

        Raises:
            UserError: the processes do not meet within `run.timeout` seconds, or run.device cannot be used.
        """
        if (given := _GIVEN.get()) is not None or not dist.is_available():
            return given or cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
                return cls()
            _join(run)
        return cls(Exchange(None)) if dist.get_world_size() > 1 else cls()

    @property
    def exchange(self) -> Exchange:
        """Of a world of several."""
        assert self._exchange is not None
        return self._exchange

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def range(self, n: int, rank: int | None = None) -> range:
        """Which of n rows are this process's (or another's): those of DTensor's Shard(0)."""
        each, rank = -(-n // self.size), self.rank if rank is None else rank
        return range(min(n, rank * each), min(n, rank * each + each))

    def agree(
        self,
        what: str,
        value: int = 0,
        error: BaseException | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Every process's value, once all are here with equal settings and without an error.

        Raises:
            UserError: another process has an error, or other settings; or `error` itself.
        """
        if self._exchange is None:
            if error is not None:
                raise error
            return [value]
        try:
            return self._exchange.agree(what, value, error, **(settings or {}))
        except ValueError as found:
            if found is error:
                raise
            raise UserError(f"{found}; start all processes with the same command, data and software") from None

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """What runs inside ends well on every process, or raises on every process. It holds no collective of its own."""
        error: Exception | None = None
        try:
            yield
        except Exception as found:
            error = found
        self.agree(what, error=error)

    def texts(self, what: str, text: str) -> list[str]:
        """Every process's text."""
        return [text] if self._exchange is None else self._exchange.texts(what, text)

    def sums(self, what: str, values: list[float]) -> list[float]:
        """The sums over all processes, as float64 in the order of the ranks."""
        return [sum(column) for column in zip(*self.floats(what, values), strict=True)]

    def floats(self, what: str, values: list[float]) -> list[list[float]]:
        """Every process's values: as many from each."""
        if self._exchange is None:
            return [values]
        self._exchange.tell(what, [[]] * self.size)
        return self._exchange.gather(torch.tensor([values], dtype=torch.float64), [1] * self.size).tolist()

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes: of several GPUs the one with its number on this machine, unless the settings name one."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)))


@contextmanager
def within(world: World) -> Iterator[None]:
    """What is trained inside is trained by these processes: `World()` is this one alone, as for a measurement."""
    token = _GIVEN.set(world)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def launch() -> str:
    """What torchrun's restarts of one run have in common and others have not; "" without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()}:{os.getppid()}" if run == "none" else run


def restarted() -> bool:
    """Whether torchrun started this process in place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _join(run: RunConfig) -> None:
    cuda = torch.device(run.device).type == "cuda"
    if cuda and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend, timeout = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=run.timeout)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        fresh = _fresh(store, rank, size, time.monotonic() + run.timeout)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes do not find each other ({reason}): start all of them with torchrun") from error


def _fresh(store: dist.Store, rank: int, size: int, deadline: float) -> dist.Store:
    """The store without what was written before these processes started.

    torchrun keeps one store for all restarts, and where the processes of an earlier start could be reached still stands there:
    who comes first would wait for one that is gone. So each says a new name, the first process calls all names, and when
    everybody has heard its own in the same call, they go on in a corner of the store that is named after that call.
    """
    mine = uuid.uuid4().hex
    store.set(f"hello/{rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("call", ",".join(store.get(f"hello/{place}").decode() for place in range(size)))
        call = store.get("call").decode()
        if call.split(",")[rank : rank + 1] == [mine]:
            corner = hashlib.sha256(call.encode()).hexdigest()[:16]
            store.set(f"{corner}/heard/{rank}", "")
            if rank == 0 and store.check([f"{corner}/heard/{place}" for place in range(size)]):
                store.set(f"{corner}/go", "")
            if store.check([f"{corner}/go"]):
                return dist.PrefixStore(corner, store)
        time.sleep(0.02)
    raise RuntimeError(f"not all of {size} processes came in time")
