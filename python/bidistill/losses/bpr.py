"""Bayesian personalised ranking (Rendle et al., UAI 2009)."""

from torch import Tensor
from torch.nn.functional import softplus

from bidistill.registry import LOSSES


def bpr(positive: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """Bayesian personalised ranking, -log sigmoid(positive - negative): summed over a row, averaged over rows.

    Arguments and result as in `bce`.
    """
    return softplus(negatives - positive[:, None]).masked_fill(~mask, 0).sum(1).mean()


LOSSES.register("bpr", bpr)
