"""What of the users and items is this process's, and the operators over all of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bdkernels import Factors, Samples, Seen, rank, rank_errors, sample
from bdkernels.distributed import Shards
from bidistill.world import World


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


class Part:
    """This process's part: a range of the users and a range of the items. In a world of one it is everything.

    Args:
        world: the processes.
        n_users, n_items: of the whole.

    Attributes:
        users, items: the ranges.
        shards: the operators on a catalog that lies on several processes; None in a world of one.
    """

    def __init__(self, world: World, n_users: int, n_items: int) -> None:
        self.world, self.n_users, self.n_items = world, n_users, n_items
        self.users, self.items = world.range(n_users), world.range(n_items)
        self.shards = Shards(len(self.items), group=world.exchange.group) if world.size > 1 else None

    @classmethod
    def whole(cls, n_users: int, n_items: int) -> Part:
        """Everything, in a world of one."""
        return cls(World(), n_users, n_items)

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
        parts = [self.world.range(self.n_users, place) for place in range(self.world.size)]
        own = [range(max(first, part.start), max(first, part.start, min(last, part.stop))) for part in parts]
        turns = max(-(-len(users) // size) for users in own)
        return [own[self.world.rank][turn * size : (turn + 1) * size] for turn in range(turns)]

    def rank(self, factors: Factors, ids: Tensor, seen: Seen) -> Tensor:
        """`bdkernels.rank` over all items, for users of this process."""
        return rank(factors, ids, seen) if self.shards is None else self.shards.rank(factors, ids, seen)

    def rank_errors(self, factors: Factors, ids: Tensor, counted: Tensor, seen: Seen) -> Tensor:
        """`bdkernels.rank_errors` likewise, of ranks counted over the items `counted`."""
        run = rank_errors if self.shards is None else self.shards.rank_errors
        return run(factors, ids, counted, seen)

    def sample(
        self, teacher: Factors, student: Factors, k: int, seen: Seen, *, users: Tensor, **settings: object
    ) -> Samples:
        """`bdkernels.sample` likewise, for users [B] numbered from this process's first."""
        run = sample if self.shards is None else self.shards.sample
        return run(teacher, student, k, seen, user_ids=self.ids(users), **settings)  # type: ignore[arg-type]
