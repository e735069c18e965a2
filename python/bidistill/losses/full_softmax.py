"""Softmax cross entropy over the whole catalog (multinomial likelihood; Liang et al., WWW 2018)."""

from bdkernels import softmax_loss
from bidistill.losses import CatalogLoss
from bidistill.registry import LOSSES

LOSSES.register("full_softmax", CatalogLoss(softmax_loss))
