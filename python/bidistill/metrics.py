"""Metrics of top-K recommendation, from the exact ranks of held-out items. What evaluates, monitors, reports or explains a
metric takes it from the table METRICS.

A metric is a function (held: UserRanks) -> [users], or (held: UserRanks, k: int) -> [users] where it has a cut-off: a number for
each user, of which the mean is reported; higher is better. To add one, register it:

    METRICS.register("mine", mine)

With a cut-off its values are called "mine@10", for each K of `eval.ks`; without one, "mine".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bidistill.errors import UserError
from bidistill.registry import METRICS

Metric = Callable[..., np.ndarray]


@dataclass(frozen=True)
class UserRanks:
    """The ranks of held-out items, user by user: those of user u are `ranks[starts[u] : starts[u + 1]]`.

    Attributes:
        starts: int64 [users + 1]; every user has at least one held-out item.
        ranks: int64 [n], 1 = best, among all items that the user does not have; in no order within a user.
        rows: int64 [n], which user each rank belongs to: 0 to users - 1.
    """

    starts: np.ndarray
    ranks: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, UserRanks]:
        """The users, int64 [users], rising, and their ranks.

        Args:
            users, ranks: int64 [n], one pair for each held-out item, in any order.
        """
        unique, rows, counts = np.unique(users, return_inverse=True, return_counts=True)
        order = np.argsort(rows, kind="stable")  # sums then have the order of the interactions
        return unique, cls(np.concatenate([[0], np.cumsum(counts)]), ranks[order], rows[order])

    @property
    def counts(self) -> np.ndarray:
        """int64 [users]: held-out items of each user."""
        return np.diff(self.starts)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """float64 [users]: the sum of each user's values, of which there is one for each rank, [n]."""
        return np.bincount(self.rows, values, len(self.starts) - 1)

    def best(self) -> np.ndarray:
        """int64 [users]: each user's best rank."""
        return np.minimum.reduceat(self.ranks, self.starts[:-1])

    def sorted(self) -> UserRanks:
        """The same with the ranks of each user rising."""
        return UserRanks(self.starts, self.ranks[np.lexsort((self.ranks, self.rows))], self.rows)


def hr(held: UserRanks, k: int) -> np.ndarray:
    """Hit rate: 1 for a user with a held-out item in the top k, else 0."""
    return (held.best() <= k).astype(float)


def ndcg(held: UserRanks, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain (Järvelin, Kekäläinen, TOIS 2002): gain 1 for each hit, discount log2(1 + rank), over
    the best that the user's number of held-out items allows.
    """
    sizes = np.minimum(held.counts, k)
    ideal = np.cumsum(1 / np.log2(np.arange(2, sizes.max() + 2)))
    share: np.ndarray = held.sum((held.ranks <= k) / np.log2(held.ranks + 1)) / ideal[sizes - 1]
    return share


def recall(held: UserRanks, k: int) -> np.ndarray:
    """The share of a user's held-out items that is in the top k."""
    share: np.ndarray = held.sum(held.ranks <= k) / held.counts
    return share


def precision(held: UserRanks, k: int) -> np.ndarray:
    """Held-out items in the top k, divided by k."""
    share: np.ndarray = held.sum(held.ranks <= k) / k
    return share


def mrr(held: UserRanks) -> np.ndarray:
    """Mean reciprocal rank: 1 / rank of a user's first held-out item, at any depth."""
    return 1 / held.best()


for _metric in (hr, ndcg, recall, precision, mrr):
    METRICS.register(_metric.__name__, _metric)


def cut_off() -> list[str]:
    """The metrics that take a k."""
    return [name for name in METRICS if "k" in inspect.signature(METRICS[name]).parameters]


def whole() -> list[str]:
    """The metrics without a cut-off."""
    cut = cut_off()
    return [name for name in METRICS if name not in cut]


def names_of(ks: Sequence[int | str]) -> list[str]:
    """What the values of all metrics are called: "hr@10", ..., "mrr"; those with a cut-off for each K first."""
    return [f"{name}@{k}" for k in ks for name in cut_off()] + whole()


def metrics_of(users: np.ndarray, ranks: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """`per_user` from known ranks: users and ranks int64 [n], one pair for each held-out item.

    Raises:
        UserError: a metric does not give a finite number for each user.
    """
    unique, held = UserRanks.of(users, ranks)
    found = {"users": unique}
    for name in names_of(ks):
        metric, _, k = name.partition("@")
        values = np.asarray(METRICS[metric](held, int(k)) if k else METRICS[metric](held), dtype=np.float64)
        if values.shape != unique.shape:
            raise UserError(
                f"the metric {metric!r} must give a number for each of {len(unique)} users, shape {unique.shape}, found"
                f" {values.shape}: mend that function"
            )
        if not np.isfinite(values).all():
            raise UserError(f"the metric {metric!r} gives numbers that are not finite: mend that function")
        found[name] = values
    return found


def means(of_users: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What `evaluate` gives, from what `per_user` gives."""
    found = {name: float(values.mean()) for name, values in of_users.items() if name != "users"}
    return found | {"users": float(len(of_users["users"]))}


def heading(metric: str) -> str:
    """How a metric is written: "ndcg@10" -> "NDCG@10", "recall@10" -> "Recall@10"; short names are initials."""
    name, at, k = metric.partition("@")
    return (name.upper() if len(name) <= 4 else name.capitalize().replace("_", " ")) + at + k


def listed() -> str:
    """The metrics as a sentence names them: "HR, NDCG, Recall and Precision at each K, and MRR"."""
    cut, others = ([heading(name) for name in names] for names in (cut_off(), whole()))
    return f"{', '.join(cut[:-1])} and {cut[-1]} at each K, and {', '.join(others)}"
