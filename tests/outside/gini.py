"""A metric of the catalog of one's own: how unequally items are recommended."""

import numpy as np
from bidistill import CATALOG_METRICS, Catalog, Lists


class Gini:
    """The Gini coefficient of how often each item is in a list: 0, all alike, to almost 1, the same few items for everybody."""

    def __init__(self, catalog: Catalog, k: int) -> None:
        self.counts = np.zeros(len(catalog.counts))

    def add(self, lists: Lists) -> None:
        self.counts += np.bincount(lists.items[lists.items >= 0], minlength=len(self.counts))

    def value(self) -> float:
        n = len(self.counts)
        return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(self.counts) / (n * self.counts.sum()))


CATALOG_METRICS.register("gini", Gini)
