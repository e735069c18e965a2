"""Made-up interactions of any size: long-tailed, and following latent factors that are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bidistill.data.interactions import Interactions
from bidistill.errors import UserError

SCORE_SPREAD = 3.0  # standard deviation of the true scores: strong tastes, yet no choice is certain
FREE_ROUNDS = 40  # proposals follow popularity and taste for so many rounds; later ones fill what is still missing
BLOCK = 1 << 18  # rows of a block, about: part of what a seed means


def generate(
    n_users: int,
    n_items: int,
    n_interactions: int,
    *,
    dim: int = 16,
    seed: int = 0,
    zipf: float = 1.0,
) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """Make up exactly `n_interactions` distinct (user, item) pairs.

    Items are proposed by popularity, proportional to rank**-zipf, and accepted with probability sigmoid(user factor .
    item factor); how active a user is follows a log-normal. So a model with `dim` factors and an item bias can learn
    both popularity and taste. Memory grows with the interactions, never with users x items.
    Every user gets at least min(3, n_interactions // n_users, n_items // 2) interactions. Rows are sorted by user, then
    item; their times are the numbers 0..n_interactions-1 in a random order. Ids equal the numbers, and unpopular items
    may have no interaction.
    Returns (interactions, user factors float32 [n_users, dim], item factors float32 [n_items, dim]).
    Raises UserError for sizes below 1, fewer interactions than users, or more than half of all pairs.
    """
    population = Population.of(n_users, n_items, n_interactions, dim=dim, seed=seed, zipf=zipf)
    users, items, times = (np.concatenate(columns) for columns in zip(*population.blocks(), strict=True))
    interactions = Interactions(users, items, times, np.arange(n_users), np.arange(n_items))
    return interactions, population.user_factors, population.item_factors


@dataclass(frozen=True, eq=False)
class Population:
    """The users and items behind the rows that `generate` makes up, for those who take the rows block by block.

    user_factors, item_factors: float32 [n_users, dim], [n_items, dim]. reach: float64 [n_items], the cumulative
    popularity. wanted: int64 [n_users], each user's interactions. Nothing here grows with the interactions.
    """

    seed: int
    user_factors: np.ndarray
    item_factors: np.ndarray
    reach: np.ndarray
    wanted: np.ndarray

    @classmethod
    def of(
        cls, n_users: int, n_items: int, n_interactions: int, *, dim: int = 16, seed: int = 0, zipf: float = 1.0
    ) -> Population:
        """Draw it. Arguments and errors are those of `generate`."""
        _check(n_users, n_items, n_interactions, dim, seed, zipf)
        rng = np.random.default_rng(seed)
        scale = np.sqrt(SCORE_SPREAD) / dim**0.25  # the product of two such vectors has standard deviation SCORE_SPREAD
        user_factors = rng.standard_normal((n_users, dim), np.float32) * np.float32(scale)
        item_factors = rng.standard_normal((n_items, dim), np.float32) * np.float32(scale)
        popularity = np.arange(1, n_items + 1, dtype=np.float64) ** -zipf
        reach = np.cumsum(rng.permutation(popularity))
        wanted = _activity(rng, n_users, n_items // 2, n_interactions)
        return cls(seed, user_factors, item_factors, reach / reach[-1], wanted)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The rows as (users, items, times), int64 [about BLOCK] each, a few whole users at a time."""
        ends = np.cumsum(self.wanted)
        clock = Clock(int(ends[-1]), self.seed)
        for number, (first, last) in enumerate(_cuts(ends)):
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
            keys = _choose(rng, self.wanted[first:last], self.reach, self.user_factors[first:last], self.item_factors)
            users, items = np.divmod(keys, len(self.reach))
            yield users + first, items, clock.times(int(ends[last - 1]) - len(keys), len(keys))


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


def _check(n_users: int, n_items: int, n_interactions: int, dim: int, seed: int, zipf: float) -> None:
    for name, value in (("n_users", n_users), ("n_items", n_items), ("n_interactions", n_interactions), ("dim", dim)):
        if value < 1:
            raise UserError(f"generate: `{name}` must be at least 1, got {value}")
    if seed < 0:
        raise UserError(f"generate: `seed` must be at least 0, got {seed}")
    if not 0 <= zipf < np.inf:
        raise UserError(f"generate: `zipf` must be 0 (no long tail) or larger, got {zipf}")
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


def _cuts(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each block's users: about BLOCK rows, at least one user. ends: the users' last rows + 1."""
    first = 0
    while first < len(ends):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        yield first, last
        first = last


def _choose(
    rng: np.random.Generator, wanted: np.ndarray, reach: np.ndarray, user_factors: np.ndarray, item_factors: np.ndarray
) -> np.ndarray:
    """Distinct keys user * n_items + item, sorted int64 [sum(wanted)], with `wanted[u]` of them for each user u."""
    n_items = len(reach)
    missing = wanted.copy()
    runs: list[np.ndarray] = []  # the keys that each round added, sorted
    while missing.any():
        users = np.repeat(np.arange(len(missing)), missing)
        if len(runs) < FREE_ROUNDS:
            items = np.minimum(np.searchsorted(reach, rng.random(len(users)), side="right"), n_items - 1)
            users, items = _accepted(rng, users, items, user_factors, item_factors)
        else:  # at most half of a user's items are taken, so each round fills about half of the rest or more
            items = rng.integers(0, n_items, len(users))
        fresh = np.unique(users * np.int64(n_items) + items)
        for run in runs:
            fresh = fresh[~_among(run, fresh)]
        missing -= np.bincount(fresh // n_items, minlength=len(missing))
        runs.append(fresh)
    return np.sort(np.concatenate(runs))


def _among(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Whether each key asked for is among the sorted keys, bool [asked]."""
    place = np.searchsorted(keys, asked)
    among: np.ndarray = np.append(keys, -1)[place] == asked
    return among


def _accepted(
    rng: np.random.Generator, users: np.ndarray, items: np.ndarray, user_factors: np.ndarray, item_factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The proposals that taste accepts, scored in chunks so that the gathered factors stay small."""
    accepted = np.empty(len(users), bool)
    for start in range(0, len(users), 1 << 16):
        rows = slice(start, start + (1 << 16))
        scores = np.einsum("nd,nd->n", user_factors[users[rows]], item_factors[items[rows]])
        accepted[rows] = rng.random(len(scores)) * (1 + np.exp(-scores.astype(np.float64))) < 1
    return users[accepted], items[accepted]
