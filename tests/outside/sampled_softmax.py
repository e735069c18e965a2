"""A loss of one's own: the softmax over the positive and the drawn negatives."""

import torch
from bidistill import LOSSES
from torch import Tensor


def sampled_softmax(positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """-log of the positive's share of exp(score), averaged over rows."""
    scores = torch.cat([positive[:, None], negatives.masked_fill(~mask, -torch.inf)], dim=1)  # [B, 1 + M]
    return -scores.log_softmax(dim=1)[:, 0].mean()


LOSSES.register("sampled_softmax", sampled_softmax)
