"""Sampled softmax (Bengio and Senecal 2008)."""

import torch
from torch import Tensor

from bidistill.registry import LOSSES


def softmax(positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """-log of the positive's share of exp(score), among its row's: log(exp(s_0) + sum of exp(s_j)) - s_0, averaged over rows.

    There is no correction for the probabilities by which negatives are drawn: of uniform ones it is one constant. Arguments and
    result as in `bce`.
    """
    margins = torch.where(mask, negatives - positive[:, None], -torch.inf)
    return torch.cat([torch.zeros_like(positive[:, None]), margins], 1).logsumexp(1).mean()


LOSSES.register("softmax", softmax)
