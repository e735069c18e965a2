"""Collaborative-filtering losses, one file each, on the scores of one positive and some negatives a row.

A loss is a function (positive [B], negatives [B, M], mask [B, M] bool: False where there is no negative) -> scalar. It adds up
the terms of a row and averages over rows, so that a training interaction weighs 1 however many negatives it has. The weights of
the distillation losses, which are means over samples, are relative to that. To add one, register it:

    LOSSES.register("mine", mine)

Those that the fused step of bdkernels knows are computed there, all others by autograd.

A loss over the whole catalog needs no negatives: it is registered as a `CatalogLoss`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdkernels import Factors
from bidistill.errors import UserError
from bidistill.registry import LOSSES

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
FULL_SOFTMAX = "full_softmax"  # the loss over the catalog that may have soft targets too, as distill.loss


@dataclass(frozen=True)
class CatalogLoss:
    """A loss that is computed of the scores of all items, for models with `trained_factors`: see `models.base`.

    Args:
        of: a function (factors, rows [B], positives [B]) -> scalar, as `bdkernels.softmax_loss` is: user factors of the distinct
            users of a batch, which of them each interaction has, and its item.
    """

    of: Callable[[Factors, Tensor, Tensor], Tensor]

    def __call__(self, model: Any, users: Tensor, positives: Tensor) -> Tensor:
        """The loss of training interactions: users and positives, int64 [B]."""
        distinct, rows = users.unique(return_inverse=True)
        return self.of(model.trained_factors(distinct), rows, positives)


def over_catalog(name: str) -> bool:
    """Whether the loss of this name is computed of all items, and takes no negatives."""
    return isinstance(LOSSES[name], CatalogLoss)


def check_loss(name: str, negatives: int) -> None:
    """Try a loss on a row without its last negative and one without any.

    Raises:
        UserError: it gives no finite scalar, or one that has no finite gradient.
    """
    if over_catalog(name):
        return
    mask = torch.ones(2, negatives, dtype=torch.bool)
    mask[0, -1] = mask[1] = False
    positive, others = (
        torch.linspace(-1, 1, shape.numel()).view(shape).requires_grad_() for shape in (mask[:, 0].shape, mask.shape)
    )
    loss = LOSSES[name](positive, others, mask)
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad or not loss.isfinite():
        found = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise UserError(
            f"the loss {name!r} must give a finite scalar with a gradient, for rows without a negative too, found {found}:"
            " mend that function"
        )
    gradients = torch.autograd.grad(loss, (positive, others), allow_unused=True)
    if any(each is not None and not each.isfinite().all() for each in gradients):
        raise UserError(
            f"the gradient of the loss {name!r} is not finite where a negative is missing: mend that function, for example by"
            " torch.where before what is not finite"
        )
