"""Collaborative-filtering losses, one file each, on the scores of one positive and some negatives a row.

A loss is a function (positive [B], negatives [B, M], mask [B, M] bool: False where there is no negative) -> scalar. It adds up
the terms of a row and averages over rows, so that a training interaction weighs 1 however many negatives it has. The weights of
the distillation losses, which are means over samples, are relative to that. To add one, register it:

    LOSSES.register("mine", mine)
"""

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
