"""Softmax cross entropy over the whole catalog (multinomial likelihood; Liang et al., WWW 2018)."""

from bdkernels import softmax_loss
from bidistill.losses import FULL_SOFTMAX, CatalogLoss
from bidistill.registry import LOSSES

LOSSES.register(FULL_SOFTMAX, CatalogLoss(softmax_loss))
