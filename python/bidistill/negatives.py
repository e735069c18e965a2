"""Negatives: items drawn uniformly from what a user has not seen, without a loop and without rejection."""

from __future__ import annotations

import torch
from torch import Tensor

from bdkernels import Seen


class NegativeSampler:
    """Draws unseen items, all equally likely: a random number r below the count of unseen items, then the r-th of them.

    Args:
        seen: sorted CSR rows of every user, numbered as in `draw`.
        n_items: size of the catalog.
    """

    def __init__(self, seen: Seen, n_items: int) -> None:
        self.seen, self.n_items = seen, n_items
        self.unseen = n_items - seen.counts()  # [n_users]

    def draw(self, users: Tensor, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n items for each of users [B] int64, with replacement.

        Returns:
            ids [B, n] int64, and mask [B, n] bool. A user who has seen every item gets id -1 and mask False.
        """
        unseen = self.unseen[users][:, None]  # [B, 1]
        uniform = torch.rand(users.shape[0], n, generator=generator, dtype=torch.float64).to(users.device)
        nth = torch.minimum((uniform * unseen).long(), unseen - 1).clamp(min=0)
        ids = self.seen.rows(users).nth_unseen(nth, self.n_items)
        return ids, ids >= 0
