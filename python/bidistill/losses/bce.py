"""Binary cross-entropy."""

from torch import Tensor
from torch.nn.functional import softplus

from bidistill.registry import LOSSES


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


LOSSES.register("bce", bce)
