"""Negatives: items drawn uniformly from what a user has not seen, without a loop and without rejection."""

from __future__ import annotations

import torch
from torch import Tensor

from bdkernels import Seen


class NegativeSampler:
    """Draws unseen items, all equally likely.

    The r-th unseen item of a user is r + (the number of seen items before it), and seen item number p (counted from 0)
    has `item - p` unseen items before it; so that number is a binary search in the user's row of `item - p`.
    The rows are kept in one sorted table, each shifted by user * (n_items + 1), and searched together.

    Args:
        seen: sorted CSR rows of every user, numbered as in `draw`.
        n_items: size of the catalog.
    """

    def __init__(self, seen: Seen, n_items: int) -> None:
        self.seen, self.n_items = seen, n_items
        counts = seen.counts()
        rows = torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts)
        positions = torch.arange(rows.shape[0], device=rows.device) - seen.indptr[rows]
        self.unseen = n_items - counts  # [n_users]
        self.table = rows * (n_items + 1) + seen.indices - positions  # [nnz], sorted

    def draw(self, users: Tensor, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n items for each of users [B] int64, with replacement.

        Returns:
            ids [B, n] int64, and mask [B, n] bool. A user who has seen every item gets id -1 and mask False.
        """
        unseen = self.unseen[users][:, None]  # [B, 1]
        uniform = torch.rand(users.shape[0], n, generator=generator, dtype=torch.float64).to(users.device)
        r = torch.minimum((uniform * unseen).long(), unseen - 1)
        start = self.seen.indptr[users][:, None]
        before = torch.searchsorted(self.table, users[:, None] * (self.n_items + 1) + r, right=True) - start
        mask = (unseen > 0).expand_as(r)
        return torch.where(mask, r + before, -1), mask
