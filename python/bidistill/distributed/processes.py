"""The processes that train together: who this one is, what they agree on, and what only the first does.

A program started once is one process, where nothing here does anything. torchrun starts several, and tells each by the
environment who it is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist

from bdkernels.distributed.collectives import Exchange
from bidistill.config import RunConfig
from bidistill.distributed.rendezvous import join
from bidistill.errors import UserError


class Processes:
    """The processes of a run.

    Args:
        exchange: what they tell each other by; None for one process.

    Attributes:
        rank, size: this process's place, and how many there are.
        asked: tells whether this process was asked to stop; never, if nobody says otherwise.
    """

    def __init__(self, exchange: Exchange | None = None) -> None:
        self._exchange = exchange
        self.rank, self.size = (0, 1) if exchange is None else (exchange.rank, exchange.world)
        self.asked: Callable[[], bool] = lambda: False
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether a process was asked to stop: of several, as all of them knew in their last step."""
        return self.asked() if self._exchange is None else self._stopping

    @stopping.setter
    def stopping(self, stopping: bool) -> None:
        self._stopping = stopping

    @classmethod
    def find(cls, run: RunConfig) -> Processes:
        """The processes that this process is of: the default group of torch.distributed, made here if torchrun started it.

        Raises:
            UserError: the processes do not meet within `run.timeout` seconds, or run.device cannot be used.
        """
        if (given := _GIVEN.get()) is not None or not dist.is_available():
            return given or cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
                return cls()
            join(run.device, run.timeout)
        return cls(Exchange(None)) if dist.get_world_size() > 1 else cls()

    @property
    def exchange(self) -> Exchange:
        """Of several processes."""
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


_GIVEN: ContextVar[Processes | None] = ContextVar("processes", default=None)


@contextmanager
def using(processes: Processes) -> Iterator[None]:
    """What is trained inside is trained by these processes: `Processes()` is this one alone, as for a measurement."""
    token = _GIVEN.set(processes)
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
