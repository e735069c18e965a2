"""Item neighbours: an item is recommended to who has items that the same users have (Sarwar et al., WWW 2001; Deshpande, Karypis,
TOIS 2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdkernels import Seen
from bidistill.errors import UserError
from bidistill.models.cooccurrence import cooccurrences
from bidistill.models.history import HistoryModel, sums
from bidistill.registry import MODELS

NONE = torch.iinfo(torch.int64).max  # the place of a neighbour that is not there


@dataclass(frozen=True)
class ItemKNNSettings:
    """k: neighbours of each item. shrink: makes items that few users have less similar; 0: the plain cosine. of: whose neighbours
    count: "scored": those of the item that is scored (Sarwar et al.); "taken": those of the user's items (Deshpande, Karypis).
    """

    k: int = 100
    shrink: float = 50.0
    of: str = "scored"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UserError(f"k must be a whole number above 0, found {self.k!r}")
        if not 0 <= self.shrink < float("inf"):
            raise UserError(f"shrink must be at least 0, found {self.shrink!r}")
        if self.of not in ("scored", "taken"):
            raise UserError(f"of must be scored or taken, found {self.of!r}")


class ItemKNN(HistoryModel):
    """W[h, i] = both(h, i) / (sqrt(users(h) users(i)) + shrink) if h is one of the k items for which that is largest, else 0;
    with of "taken", if i is one of the k for which it is largest.

    Here users(i) is the number of users who have item i, and both(h, i) of those who have both. Ties go to the smaller id. With
    "scored" each item can be reached from k others; with "taken" each of a user's items names k, so that items that are like
    many others are reached from more of them.

    Args:
        n_users, n_items: sizes of the data. The weights take 12 k n_items bytes.
        k, shrink, of: see `ItemKNNSettings`.
    """

    places: Tensor
    values: Tensor

    def __init__(
        self, n_users: int, n_items: int, *, k: int = 100, shrink: float = 50.0, of: str = "scored", seed: int = 0
    ) -> None:
        super().__init__(n_users, n_items)
        self.k, self.shrink, self.of = min(k, n_items), shrink, of
        n = n_items * self.k
        # Entry (h, i) has the place h * n_items + i. Places rise; those that are left over are NONE.
        self.register_buffer("places", torch.full((n,), NONE))
        self.register_buffer("values", torch.zeros(n))

    def fit_bytes(self, interactions: int) -> int:
        """The entries before and after they are put in order."""
        return 2 * 12 * self.n_items * self.k

    def fit(self, train: Seen, seed: int) -> None:
        """Find the neighbours. Nothing in it is random."""
        places, values = [], []
        norms = torch.bincount(train.indices, minlength=self.n_items).double().sqrt()
        for first, both in cooccurrences(train, self.n_items):
            rows, others = both.nonzero(as_tuple=True)  # other items in the order of their ids
            apart = rows + first != others  # an item is not its own neighbour
            rows, others = rows[apart], others[apart]
            alike = (both[rows, others] / (norms[rows + first] * norms[others] + self.shrink)).float()
            order = alike.argsort(descending=True, stable=True)
            order = order[rows[order].argsort(stable=True)]
            counts = torch.bincount(rows, minlength=len(both))
            nth = torch.arange(len(rows), device=rows.device) - (torch.cumsum(counts, 0) - counts)[rows[order]]
            near = order[nth < self.k]
            item, neighbour = rows[near] + first, others[near]
            taken, scored = (neighbour, item) if self.of == "scored" else (item, neighbour)
            places.append(taken * self.n_items + scored)
            values.append(alike[near])
        every = torch.cat(places)
        order = every.argsort()
        self.places.fill_(NONE)[: len(every)] = every[order]
        self.values.zero_()[: len(every)] = torch.cat(values)[order]
        self.remember(train)

    def weights_of(self, items: Tensor, others: Tensor) -> Tensor:
        """W[h, i] [n, C] of items h [n] and others i [n, C]."""
        wanted = items[:, None] * self.n_items + others
        at = torch.searchsorted(self.places, wanted).clamp(max=len(self.places) - 1)
        return torch.where(self.places[at] == wanted, self.values[at], 0.0)

    def score_block(self, users: Tensor, first: int, stop: int) -> Tensor:
        """Scores [B, stop - first] float32 of a range of items for users [B] int64, with the bits of `score`."""
        found = self.values.new_zeros(len(users), stop - first)
        for rows, has in self.parts(users, min(self.k, stop - first)):
            row_starts = has.indices * self.n_items
            low, high = (torch.searchsorted(self.places, row_starts + end) for end in (first, stop))
            entries = Seen(torch.cat([low.new_zeros(1), torch.cumsum(high - low, 0)]), low)
            of = entries.indptr[:-1]
            each = torch.repeat_interleave(torch.arange(len(low), device=low.device), high - low)
            at = torch.arange(len(each), device=low.device) - of[each] + low[each]
            cells = rows[has.row_of_each()[each]] * (stop - first) + self.places[at] - row_starts[each] - first
            order = cells.argsort(stable=True)  # the items of a user keep the order of their ids
            unique, counts = cells[order].unique_consecutive(return_counts=True)
            ends = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
            found.view(-1)[unique] = sums(self.values[at][order][:, None], ends)[:, 0]
        return found


MODELS.register("item_knn", ItemKNN, ItemKNNSettings)
