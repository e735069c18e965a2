"""What of the users and items is this process's, and the operators over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import torch
from torch import Tensor

from bdkernels import Factors, Samples, Scorer, Seen, TopK, rank, rank_errors, sample, topk
from bdkernels.distributed.catalog import ShardedCatalog
from bidistill.config import RunConfig
from bidistill.distributed.processes import Processes, launch
from bidistill.errors import UserError


class Share(NamedTuple):
    """The rows of a batch whose users are this process's.

    Attributes:
        everyone: [B] int64, the users of the whole batch.
        rows: [R] int64, which of them are here; None: all.
        users: [R] int64, the users of those, numbered from this process's first.
    """

    everyone: Tensor
    rows: Tensor | None
    users: Tensor

    def keep(self, whole: Tensor) -> Tensor:
        """[R, ...]: of something that the whole batch has, such as random numbers, what these rows have."""
        return whole if self.rows is None else whole[self.rows.to(whole.device)]


class Partition:
    """What of a run is on this process: a range of the users and a range of the items, and how it agrees with the others.

    This is the one object through which training meets other processes. Where there is only one, everything is on it, and each
    method returns what it was given. Otherwise every method is to be called on all processes together.

    Args:
        processes: those of the run.
        n_users, n_items: of the whole.

    Attributes:
        users, items: the ranges.
        shards: the operators on a catalog that lies on several processes; None on one process.
        main: whether this process prints, warns and writes.
        ways: in how many parts users and items lie.
    """

    def __init__(self, processes: Processes, n_users: int, n_items: int) -> None:
        self.processes, self.n_users, self.n_items = processes, n_users, n_items
        self.users, self.items = processes.range(n_users), processes.range(n_items)
        self.shards = ShardedCatalog(len(self.items), group=processes.exchange.group) if processes.size > 1 else None
        self.main, self.ways = processes.first, processes.size

    @classmethod
    def find(cls, run: RunConfig, n_users: int, n_items: int) -> Partition:
        """The partition of this process. Raises UserError as `Processes.find`."""
        return cls(Processes.find(run), n_users, n_items)

    @classmethod
    def whole(cls, n_users: int, n_items: int) -> Partition:
        """Everything, on one process."""
        return cls(Processes(), n_users, n_items)

    # ---- agreement ----

    def require_same(self, what: str, settings: Mapping[str, object]) -> None:
        """Raise UserError, which names one, where the processes were given other settings."""
        if self.shards is not None:
            self.processes.agree(what, settings=settings)

    def together(self, what: str) -> AbstractContextManager[None]:
        """An error inside is an error on every process. Nothing inside may be a method of this class."""
        return self.processes.together(what)

    def all(self, what: str, condition: bool) -> bool:
        """Whether it holds everywhere."""
        return all(self.processes.agree(what, int(condition)))

    def same(self, what: str, value: int) -> int:
        """The value that the first process has."""
        return self.processes.agree(what, value)[0]

    def sums(self, what: str, values: list[float]) -> list[float]:
        """The sums of the values of all processes."""
        return self.processes.sums(what, values)

    def columns(self, what: str, values: list[float]) -> list[list[float]]:
        """For each value, those of all processes: what `own` takes one from."""
        return [list(column) for column in zip(*self.processes.floats(what, values), strict=True)]

    def own(self, column: list[float]) -> float:
        """This process's value of those that `columns` gave. Another number of processes wrote them: the sum, on the first."""
        same = len(column) == self.processes.size
        return column[self.processes.rank] if same else sum(column) * self.main

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """From now on `stopping` goes by this."""
        self.processes.asked = asked

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop, which all processes know at the end of a step."""
        return self.processes.stopping

    @property
    def launched(self) -> bool:
        """Whether a launcher, torchrun, started this process and may stop it by SIGTERM."""
        return bool(launch())

    def require_whole(self, what: str) -> None:
        """Raise UserError where there are several processes."""
        if self.shards is not None:
            raise UserError(f"{what} on one process only: start it without torchrun")

    # ---- memory and devices ----

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes: of several GPUs the one with its number, unless the settings name one."""
        return self.processes.device(device)

    @property
    def neighbours(self) -> int:
        """Processes that share this machine, this one among them."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.shards is not None else 1

    # ---- users and items ----

    @property
    def own_users(self) -> range | None:
        """The users whose rows are here; None: all."""
        return None if self.shards is None else self.users

    @property
    def own_rows(self) -> dict[str, range]:
        """The rows of its tables that a model holds here, as `build_model` takes them; nothing: all."""
        return {} if self.shards is None else {"users": self.users, "items": self.items}

    def share(self, users: Tensor) -> Share:
        """What of a batch of users [B] int64 is here."""
        if self.shards is None:
            return Share(users, None, users)
        rows = ((users >= self.users.start) & (users < self.users.stop)).nonzero()[:, 0]
        return Share(users, rows, users[rows] - self.users.start)

    def ids(self, users: Tensor) -> Tensor:
        """The ids of users that are numbered from this process's first."""
        return users + self.users.start if self.users.start else users

    def turns(self, first: int, last: int, size: int) -> list[range]:
        """This process's users of the range from first to last, `size` at a time: as many turns on every process, some empty."""
        parts = [self.processes.range(self.n_users, place) for place in range(self.processes.size)]
        own = [range(max(first, part.start), max(first, part.start, min(last, part.stop))) for part in parts]
        turns = max(-(-len(users) // size) for users in own)
        return [own[self.processes.rank][turn * size : (turn + 1) * size] for turn in range(turns)]

    def rank(self, model: Scorer, ids: Tensor, seen: Seen) -> Tensor:
        """`bdkernels.rank` over all items, for users of this process. Of several processes, each gives `Factors`."""
        return rank(model, ids, seen) if self.shards is None else self.shards.rank(cast(Factors, model), ids, seen)

    def topk(self, model: Scorer, k: int, seen: Seen) -> TopK:
        """`bdkernels.topk` likewise."""
        return topk(model, k, seen) if self.shards is None else self.shards.topk(cast(Factors, model), k, seen)

    def rank_errors(self, model: Scorer, ids: Tensor, counted: Tensor, seen: Seen) -> Tensor:
        """`bdkernels.rank_errors` likewise, of ranks counted over the items `counted`."""
        run: Callable[..., Tensor] = rank_errors if self.shards is None else self.shards.rank_errors
        return run(model, ids, counted, seen)

    def sample(
        self, teacher: Scorer, student: Scorer, k: int, seen: Seen, *, users: Tensor, **settings: object
    ) -> Samples:
        """`bdkernels.sample` likewise, for users [B] numbered from this process's first."""
        run: Callable[..., Samples] = sample if self.shards is None else self.shards.sample
        return run(teacher, student, k, seen, user_ids=self.ids(users), **settings)
