"""Metrics beside accuracy: of the lists that all users together get, which no rank of a held-out item tells.

A metric is a class. It is made once for an evaluation and a K, adds up what batches of users get, and then gives one number:

    class Mine:
        def __init__(self, catalog: Catalog, k: int) -> None: ...
        def add(self, lists: Lists) -> None: ...
        def value(self) -> float: ...

    CATALOG_METRICS.register("mine", Mine)

`eval.metrics` chooses it, and its values are called "mine@10", for each K of `eval.ks`. It may raise a UserError when it is made,
where the data leave it undefined. It is of all users together, so there is no interval over users, and no best epoch by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from bidistill.errors import UserError
from bidistill.registry import CATALOG_METRICS

COLD = 0.2  # share of the training interactions that cold items have together, at most


@dataclass(frozen=True, eq=False)
class Catalog:
    """What lists are judged by.

    Attributes:
        counts: int64 [n_items], the training interactions of each item.
        held_items: int64 [n], the held-out items that the evaluation is on.
    """

    counts: np.ndarray
    held_items: np.ndarray

    @cached_property
    def cold(self) -> np.ndarray:
        """bool [n_items]: an item is cold if the items that are no more popular have at most a fifth of all training interactions
        together. Items of equal popularity are cold together."""
        numbers, items = np.unique(self.counts, return_counts=True)
        few = np.cumsum(numbers * items) <= COLD * self.counts.sum()
        cold: np.ndarray = self.counts <= (numbers[few].max() if few.any() else -1)
        return cold


@dataclass(frozen=True, eq=False)
class Lists:
    """What a batch of users gets.

    Attributes:
        items: int64 [B, K], the best items that each user does not have, best first; -1 where there are no more.
        held_items, ranks: int64 [n], the held-out items of these users and their ranks, 1 = best.
    """

    items: np.ndarray
    held_items: np.ndarray
    ranks: np.ndarray

    def first(self, k: int) -> Lists:
        """The same with the best k of each list."""
        return Lists(self.items[:, :k], self.held_items, self.ranks)


class CatalogMetric(Protocol):
    """See above."""

    def add(self, lists: Lists) -> None: ...

    def value(self) -> float: ...


class Coverage:
    """The share of the catalog that is in the list of any user (Ge, Delgado-Battenfeld, Jannach, RecSys 2010)."""

    def __init__(self, catalog: Catalog, k: int) -> None:
        self.listed = np.zeros(len(catalog.counts), bool)

    def add(self, lists: Lists) -> None:
        self.listed[lists.items[lists.items >= 0]] = True

    def value(self) -> float:
        return float(self.listed.mean())


class _ListMean:
    """The mean over users of the mean over a user's list of a number that each item has."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers, self.of_users = numbers, [np.empty(0)]

    def add(self, lists: Lists) -> None:
        there = lists.items >= 0
        sizes = there.sum(1)
        sums = np.where(there, self.numbers[lists.items], 0).sum(1)
        self.of_users.append(sums[sizes > 0] / sizes[sizes > 0])

    def value(self) -> float:
        found = np.concatenate(self.of_users)  # one sum, so that the batches do not matter
        return float(found.mean()) if len(found) else 0.0


class Popularity(_ListMean):
    """Average recommendation popularity (Yin, Cui, Li, Yao, Chen, PVLDB 2012): the mean over users of the mean number of training
    interactions of the items in their lists. It has no better end: one that is far above that of the held-out items says that the
    model recommends what everybody takes.
    """

    def __init__(self, catalog: Catalog, k: int) -> None:
        super().__init__(catalog.counts.astype(np.float64))


class ColdShare(_ListMean):
    """The mean over users of the share of cold items in their lists (average percentage of long-tail items; Abdollahpouri, Burke,
    Mobasher, FLAIRS 2019). Cold: see `Catalog.cold`.
    """

    def __init__(self, catalog: Catalog, k: int) -> None:
        super().__init__(catalog.cold.astype(np.float64))


class ColdRecall:
    """The share of the held-out interactions with cold items whose item is in its user's list. Cold: see `Catalog.cold`."""

    def __init__(self, catalog: Catalog, k: int) -> None:
        self.cold, self.k, self.hits = catalog.cold, k, 0
        self.held = int(self.cold[catalog.held_items].sum())
        if not self.held:
            raise UserError(
                "eval.metrics has cold_recall, but none of the held-out interactions is with a cold item, one of those that"
                " have a fifth of the training interactions together: leave it out, or hold out more"
            )

    def add(self, lists: Lists) -> None:
        self.hits += int((self.cold[lists.held_items] & (lists.ranks <= self.k)).sum())

    def value(self) -> float:
        return self.hits / self.held


for _name, _metric in (
    ("coverage", Coverage),
    ("popularity", Popularity),
    ("cold_share", ColdShare),
    ("cold_recall", ColdRecall),
):
    CATALOG_METRICS.register(_name, _metric)


def made(names: Sequence[str], catalog: Catalog, ks: Sequence[int]) -> dict[str, tuple[int, CatalogMetric]]:
    """{"coverage@10": (10, the metric), ...} of these names, each for each K. Raises UserError where one is not defined."""
    return {f"{name}@{k}": (k, CATALOG_METRICS[name](catalog, k)) for k in ks for name in dict.fromkeys(names)}
