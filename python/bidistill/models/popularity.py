"""The same list for everybody: items by how often they were taken. What any model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdkernels import Factors, Seen
from bidistill.registry import MODELS


class Popularity(nn.Module):
    """score(u, i) = the number of training interactions of item i, as float32: exact up to 2^24.

    Args:
        n_users, n_items: sizes of the data.
        users, items: the rows that are here, see `MF`.
    """

    counts: Tensor

    def __init__(
        self, n_users: int, n_items: int, *, seed: int = 0, users: range | None = None, items: range | None = None
    ) -> None:
        super().__init__()
        self.n_users, self.n_items = n_users, n_items
        self.own = range(n_items) if items is None else items
        self.register_buffer("counts", torch.zeros(len(self.own)))

    def fit(self, train: Seen, seed: int) -> None:
        """Count."""
        counts = torch.bincount(train.indices, minlength=self.n_items)
        self.counts.copy_(counts[self.own.start : self.own.stop])

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        return self.counts[items]

    def factors(self, users: Tensor) -> Factors:
        """Vectors of length 1: every user's is 1."""
        return Factors(self.counts.new_ones(len(users), 1), self.counts[:, None])

    def row_kinds(self) -> dict[str, str]:
        """Counts are of the items."""
        return {"counts": "items"}


@dataclass(frozen=True)
class PopularitySettings:
    """None."""


MODELS.register("popularity", Popularity, PopularitySettings)
