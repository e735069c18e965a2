"""Collaborative-filtering losses on the scores of one positive and some negatives a row.

Both add up the terms of a row and average over rows, so that a training interaction weighs 1 however many negatives it has.
The weights lambda of the distillation losses, which are means over samples, are relative to that.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def bce(positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, label 1 for the positive and 0 for the negatives: summed over a row, averaged over rows.

    Args:
        positive: [B] float scores.
        negatives: [B, M] float scores.
        mask: [B, M] bool, False where there is no negative.

    Returns:
        A scalar.
    """
    return softplus(-positive).mean() + softplus(negatives).masked_fill(~mask, 0).sum(1).mean()


def bpr(positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """Bayesian personalised ranking, -log sigmoid(positive - negative): summed over a row, averaged over rows.

    Arguments and result as in `bce`.
    """
    return softplus(negatives - positive[:, None]).masked_fill(~mask, 0).sum(1).mean()


LOSSES: dict[str, Loss] = {"bce": bce, "bpr": bpr}
