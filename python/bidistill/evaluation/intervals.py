"""How far a mean over users may be off: 95 % intervals, by the bootstrap over users."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000  # the ends of an interval then vary by some 3 % of its width from seed to seed
GROUPS = 4096  # more users are resampled in this many random groups, which costs an interval's width 1 % at most


class Interval(NamedTuple):
    """The ends of an interval. They are NaN for a single user, who says nothing about others."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the width."""
        return (self.high - self.low) / 2


def interval(values: np.ndarray, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """The interval in which the mean of all users lies, as far as these users tell.

    Percentile bootstrap over users (Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). What varies is which
    users there are; the seed of the training does not.

    Args:
        values: [users] numbers, such as `per_user` gives, or differences of two models for the same users.
        level: share of the means of resampled users that lie inside.
        seed: of the resampling.
    """
    return intervals(np.asarray(values, dtype=np.float64)[:, None], level=level, seed=seed)[0]


def intervals(columns: np.ndarray, *, level: float = LEVEL, seed: int = 0) -> list[Interval]:
    """`interval` of each column of [users, columns] float64, from the same resampled users."""
    users, width = columns.shape
    if users < 2:
        return [Interval(math.nan, math.nan)] * width
    ends = np.quantile(resampled(columns, RESAMPLES, seed), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(float(low), float(high)) for low, high in ends.T]


def resampled(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples, columns] float64: the means of each column of [users, columns] float64 over users drawn with replacement, the
    same ones for all columns. resamples: a multiple of CHUNK.
    """
    users = len(columns)
    rng = np.random.default_rng(seed)
    n = min(users, GROUPS)
    group = rng.permutation(users) % n
    sizes = np.bincount(group, minlength=n).astype(np.float64)
    sums = np.stack([*(np.bincount(group, column, n) for column in columns.T), sizes], axis=1)
    found = []
    for _ in range(0, resamples, CHUNK):
        drawn = rng.integers(n, size=(CHUNK, n)) + n * np.arange(CHUNK)[:, None]
        found.append(np.bincount(drawn.reshape(-1), minlength=CHUNK * n).reshape(CHUNK, n) @ sums)
    totals = np.concatenate(found)
    means: np.ndarray = totals[:, :-1] / totals[:, -1:]
    return means


CHUNK = 250  # resamples at a time: at most 8 MB of draws


def decimals(half: float) -> int:
    """How many decimals to print: those of one or two digits of the half width, as the Particle Data Group rounds."""
    if not math.isfinite(half) or half < 1e-9:  # equal for all users, but for rounding
        return 3
    power = math.floor(math.log10(half))
    return min(4, max(0, int(half / 10.0**power < 3.55) - power))
