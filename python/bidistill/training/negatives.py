"""Negatives: items drawn uniformly from what a user has not seen, without a loop and without rejection."""

from __future__ import annotations

import torch
from torch import Tensor

from bdkernels import Draws, Seen
from bdkernels.types.seen import Unseen
from bidistill.distributed.partition import Share


class NegativeSampler:
    """Draws unseen items, all equally likely: a random number r below the count of unseen items, then the r-th of them.

    Args:
        seen: sorted CSR rows of every user, numbered as in `draw`.
        n_items: size of the catalog.

    Attributes:
        always: whether every user has something unseen, so that no mask has a False.
    """

    def __init__(self, seen: Seen, n_items: int) -> None:
        self.unseen = Unseen(seen, n_items)
        self.always = bool((self.unseen.counts > 0).all())

    def draw(
        self, users: Tensor, n: int, generator: torch.Generator | None = None, share: Share | None = None
    ) -> Draws:
        """Draw n items for each of users [B] int64, with replacement.

        share: whose users these are, if they are not a whole batch: they draw what they draw in the whole batch.

        Returns:
            ids [B, n] int64, and mask [B, n] bool. A user who has seen every item gets id -1 and mask False.
        """
        unseen = self.unseen.counts[users][:, None]  # [B, 1]
        share = share or Share(users, None, users)
        uniform = torch.rand(share.everyone.shape[0], n, generator=generator, dtype=torch.float64)
        uniform = share.keep(uniform).to(users.device)
        nth = torch.minimum((uniform * unseen).long(), unseen - 1).clamp(min=0)
        ids = self.unseen.nth(users, nth)
        return Draws(ids, ids >= 0)
