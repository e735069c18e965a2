"""Made-up interactions of any size: drawn from a model that is known, so that what a model may reach at best is known too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bidistill.data.interactions import Interactions
from bidistill.errors import UserError

TASTES = 3.0  # tastes then decide more than popularity does
MOST_TASTES = 10.0
OWN = 0.1  # share of the variance of an item's vector that is its own, not its group's
BLOCK = 1 << 18  # rows of a block, about: part of what a seed means
NUMBERS = 1 << 18  # held at a time while rows are drawn, about: part of it too
TRIES = 8  # proposals for each missing item in the first round; twice as many in each round after it


def generate(
    n_users: int,
    n_items: int,
    n_interactions: int,
    *,
    dim: int = 16,
    seed: int = 0,
    zipf: float = 1.0,
    tastes: float = TASTES,
) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """Make up exactly `n_interactions` distinct (user, item) pairs: choices by popularity and by tastes of a low rank.

    The generating model scores an item for a user by <user_factors[u], item_factors[i]>, of which the last product, 1 times the
    item's last number, is its popularity -zipf * log(r), where r is its place, 1 to n_items, in a random order. The others are
    tastes: their sum has mean 0 and standard deviation `tastes`, and the k-th of the `dim` products has a share of the
    variance in proportion to 1 / k. Items belong to round(sqrt(n_items)) groups, such as genres: an item's vector is that of
    its group but for a tenth of its variance. A user takes one item after the other, each with the chances softmax(scores of
    the items that the user does not have): the Plackett-Luce model (Plackett, Applied Statistics 1975). How many items a user
    takes is log-normal, at least min(3, n_interactions // n_users, n_items // 2).

    So no model can expect to rank held-out items better than the scores <user_factors[u], item_factors[i]> do, whose metrics are
    the ceiling; `tastes` 0 lets popularity decide alone. Memory grows with the interactions, never with users x items. Rows are
    sorted by user, then item; their times are the numbers 0..n_interactions-1 in a random order. Ids equal the numbers, and
    unpopular items may have no interaction.

    Returns (interactions, user factors float32 [n_users, dim + 1], item factors float32 [n_items, dim + 1]).
    Raises UserError for sizes below 1, fewer interactions than users, more than half of all pairs, or tastes above 10.
    """
    population = Population.of(n_users, n_items, n_interactions, dim=dim, seed=seed, zipf=zipf, tastes=tastes)
    users, items, times = (np.concatenate(columns) for columns in zip(*population.blocks(), strict=True))
    interactions = Interactions(users, items, times, np.arange(n_users), np.arange(n_items))
    return interactions, population.user_factors, population.item_factors


@dataclass(frozen=True, eq=False)
class Population:
    """The users and items behind the rows that `generate` makes up, for those who take the rows block by block.

    user_factors, item_factors: float32 [n_users, dim + 1], [n_items, dim + 1]. order: int64 [n_items], the items group by group.
    starts: int64 [groups + 1], where in it each group begins. reach: float64 [n_items + 1], the cumulative popularity in that
    order. centres: float32 [groups, dim], the groups' vectors. spread: float32 [dim], how far an item's vector is from its
    group's.
    wanted: int64 [n_users], each user's interactions. Nothing here grows with the interactions.
    """

    seed: int
    user_factors: np.ndarray
    item_factors: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    reach: np.ndarray
    centres: np.ndarray
    spread: np.ndarray
    wanted: np.ndarray

    @classmethod
    def of(
        cls,
        n_users: int,
        n_items: int,
        n_interactions: int,
        *,
        dim: int = 16,
        seed: int = 0,
        zipf: float = 1.0,
        tastes: float = TASTES,
    ) -> Population:
        """Draw it. Arguments and errors are those of `generate`."""
        _check(n_users, n_items, n_interactions, dim, seed, zipf, tastes)
        rng = np.random.default_rng(seed)
        shares = 1 / np.arange(1, dim + 1)
        scale = (np.sqrt(tastes) * (shares / shares.sum()) ** 0.25).astype(np.float32)  # of users and of items alike
        user_factors = np.ones((n_users, dim + 1), np.float32)
        user_factors[:, :dim] = rng.standard_normal((n_users, dim), np.float32) * scale
        groups = max(1, round(n_items**0.5))
        order, starts = rng.permutation(n_items), np.arange(groups + 1) * n_items // groups
        centres = rng.standard_normal((groups, dim), np.float32) * scale * np.float32(np.sqrt(1 - OWN))
        spread = scale * np.float32(np.sqrt(OWN))
        item_factors = np.empty((n_items, dim + 1), np.float32)
        item_factors[order, :dim] = np.repeat(centres, np.diff(starts), axis=0)
        item_factors[:, :dim] += np.where(rng.integers(0, 2, (n_items, dim), np.int8) > 0, spread, -spread)
        item_factors[:, dim] = -zipf * np.log(rng.permutation(n_items) + 1.0)
        reach = np.concatenate([[0], np.cumsum(np.exp(item_factors[order, dim].astype(np.float64)))])
        wanted = _activity(rng, n_users, n_items // 2, n_interactions)
        return cls(seed, user_factors, item_factors, order, starts, reach, centres, spread, wanted)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The rows as (users, items, times), int64 [about BLOCK] each, a few whole users at a time."""
        ends = np.cumsum(self.wanted)
        clock = Clock(int(ends[-1]), self.seed)
        for number, (first, last) in enumerate(_cuts(ends, BLOCK)):
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
            numbers = np.cumsum(TRIES * self.wanted[first:last] + len(self.centres))
            keys = np.concatenate([self._chosen(rng, first + a, first + b) for a, b in _cuts(numbers, NUMBERS)])
            users, items = np.divmod(keys, len(self.order))
            yield users, items, clock.times(int(ends[last - 1]) - len(keys), len(keys))

    def _chosen(self, rng: np.random.Generator, first: int, last: int) -> np.ndarray:
        """Keys user * n_items + item of what the users from `first` to `last` - 1 take, int64, rising.

        Items are proposed with replacement by their group's share and their popularity, and accepted by their own vectors; one
        that is there already is passed over. That gives Plackett-Luce exactly. A user for whom more items than the catalog has
        would be proposed takes the rest in one go instead.
        """
        n_items, missing, tries = np.int64(len(self.order)), self.wanted[first:last].copy(), TRIES
        taken = np.empty(0, np.int64)
        reach = self._group_reach(first, last)
        while missing.any():
            for user in np.flatnonzero(missing * tries > n_items):
                has = taken[slice(*np.searchsorted(taken, (np.array([user, user + 1]) + first) * n_items))]
                rest = self._rest(rng, first + user, has % n_items, missing[user])
                taken, missing[user] = np.sort(np.append(taken, rest + (first + user) * n_items)), 0
            for a, b in _cuts(np.cumsum(missing * tries), NUMBERS):
                users = np.repeat(np.arange(a, b), missing[a:b] * tries)
                if not len(users):  # users who have all
                    continue
                users, items = self._accepted(rng, users, reach, first)
                keys, places = np.unique((users + first) * n_items + items, return_index=True)
                places = np.sort(places[~_among(taken, keys)])  # the order in which they were proposed
                users, items = users[places], items[places]
                keep = np.arange(len(users)) - np.searchsorted(users, users) < missing[users]
                taken = np.sort(np.concatenate([taken, (users[keep] + first) * n_items + items[keep]]))
                missing -= np.bincount(users[keep], minlength=len(missing))
            tries *= 2
        return taken

    def _group_reach(self, first: int, last: int) -> np.ndarray:
        """User u's cumulative chances that an item of each group is proposed, plus u: rising float64 [users * groups]."""
        tastes = self.user_factors[first:last, :-1]
        with np.errstate(divide="ignore"):  # a steep popularity leaves nothing to some groups
            chances = np.einsum("ud,gd->ug", tastes, self.centres) + np.log(np.diff(self.reach[self.starts]))
        chances = np.exp(chances - chances.max(1, keepdims=True)).cumsum(1)
        chances /= chances[:, -1:].copy()
        reach: np.ndarray = (chances + np.arange(len(chances))[:, None]).reshape(-1)
        return reach

    def _accepted(
        self, rng: np.random.Generator, users: np.ndarray, reach: np.ndarray, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A proposal for each of these users, numbered from `first`, as far as the items' own vectors accept them."""
        kept = []
        for start in range(0, len(users), 1 << 16):
            some = users[start : start + (1 << 16)]
            group = np.searchsorted(reach, some + rng.random(len(some)), side="right") - some * len(self.centres)
            group = np.clip(group, 0, len(self.centres) - 1)
            low, high = self.reach[self.starts[group]], self.reach[self.starts[group + 1]]
            place = np.searchsorted(self.reach, low + rng.random(len(some)) * (high - low), side="right") - 1
            items = self.order[np.clip(place, self.starts[group], self.starts[group + 1] - 1)]
            tastes = self.user_factors[some + first, :-1]
            own = np.einsum("nd,nd->n", tastes, self.item_factors[items, :-1] - self.centres[group])
            most = np.abs(tastes) @ self.spread
            accepted = rng.random(len(some)) < np.exp((own - most).astype(np.float64))
            kept.append((some[accepted], items[accepted]))
        found, items = (np.concatenate(column) for column in zip(*kept, strict=True))
        return found, items

    def _rest(self, rng: np.random.Generator, user: int, has: np.ndarray, count: int) -> np.ndarray:
        """What a user takes of the items besides those that the user has, int64 [count]: the best by score + Gumbel noise, which
        are as many draws of the Plackett-Luce model (Yellott 1977)."""
        scores = np.einsum("nd,d->n", self.item_factors, self.user_factors[user]).astype(np.float64)
        scores -= np.log(rng.standard_exponential(len(scores)))
        scores[has] = -np.inf
        best: np.ndarray = np.argpartition(-scores, count - 1)[:count]
        return best


class Clock:
    """A pseudo-random permutation of 0..n-1 that needs no table: rounds of invertible steps on the bits of a number."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        bits = max(1, (n - 1).bit_length())
        self.mask, self.shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
        keys = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0))).integers(0, 1 << 63, (4, 2))
        self.rounds = keys.astype(np.uint64) | np.array([1, 0], np.uint64)  # an odd factor can be undone modulo 2**bits

    def times(self, start: int, count: int) -> np.ndarray:
        """What start, start + 1, ... (`count` of them) become, int64 [count]."""
        times = self._mixed(np.arange(start, start + count, dtype=np.uint64))
        while len(outside := np.flatnonzero(times >= self.n)):  # on and on until it comes back: still a permutation
            times[outside] = self._mixed(times[outside])
        return times.astype(np.int64)

    def _mixed(self, numbers: np.ndarray) -> np.ndarray:
        for factor, offset in self.rounds:
            numbers = (numbers * factor + offset) & self.mask
            numbers ^= numbers >> self.shift
        return numbers


def _check(n_users: int, n_items: int, n_interactions: int, dim: int, seed: int, zipf: float, tastes: float) -> None:
    for name, value in (("n_users", n_users), ("n_items", n_items), ("n_interactions", n_interactions), ("dim", dim)):
        if value < 1:
            raise UserError(f"generate: `{name}` must be at least 1, got {value}")
    if seed < 0:
        raise UserError(f"generate: `seed` must be at least 0, got {seed}")
    if not 0 <= zipf < np.inf:
        raise UserError(f"generate: `zipf` must be 0 (no long tail) or larger, got {zipf}")
    if not 0 <= tastes <= MOST_TASTES:
        raise UserError(f"generate: `tastes` must lie between 0 (popularity alone) and {MOST_TASTES:g}, got {tastes}")
    most = n_users * (n_items // 2)
    if not n_users <= n_interactions <= most:
        raise UserError(
            f"generate: `n_interactions` must lie between {n_users:,} (one a user) and {most:,} (half of the items for"
            f" each user), got {n_interactions:,}"
        )


def _activity(rng: np.random.Generator, n_users: int, most: int, total: int) -> np.ndarray:
    """Interactions of each user, int64 [n_users]: long-tailed, from min(3, the mean) to `most`, summing to `total`."""
    least = min(3, total // n_users, most)
    weights = rng.lognormal(0.0, 1.0, n_users)
    wanted = least + rng.multinomial(total - least * n_users, weights / weights.sum())
    excess = int(np.maximum(wanted - most, 0).sum())
    if excess:
        wanted = np.minimum(wanted, most)
        room = np.cumsum(most - wanted)
        wanted += np.diff(excess * room // room[-1], prepend=0)  # shares of the excess in proportion to the room
    return wanted


def _cuts(ends: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of users who have about `most` of something together, at least one user. ends: its cumulative sums."""
    first = 0
    while first < len(ends):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield first, last
        first = last


def _among(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Whether each key asked for is among the sorted keys, bool [asked]."""
    place = np.searchsorted(keys, asked)
    among: np.ndarray = np.append(keys, -1)[place] == asked
    return among
