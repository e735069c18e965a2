"""Gradients of the two losses; nothing else here has one."""

from typing import Any

import torch
from torch import Tensor

from .ops import LIBRARY, loss
from .step import StepInputs


def _distill_loss_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    learner, guide, ctx.tau_learner, ctx.tau_guide, mask = inputs
    ctx.options = keyword_only_inputs
    ctx.save_for_backward(learner, guide, mask)


def _distill_loss_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    learner, guide, mask = ctx.saved_tensors
    backward = torch.ops.bdkernels.distill_loss_backward
    return backward(grad, learner, guide, ctx.tau_learner, ctx.tau_guide, mask, **ctx.options), None, None, None, None


torch.library.register_autograd(
    "bdkernels::distill_loss", _distill_loss_backward, setup_context=_distill_loss_setup, lib=LIBRARY
)


class _BdStep(torch.autograd.Function):
    """Loss of `torch.ops.bdkernels.bd_step` with the gradient rows that the same call made."""

    @staticmethod
    def forward(ctx: Any, sparse: bool, backend: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        s = StepInputs(*arguments)
        cf, distill, *rows = torch.ops.bdkernels.bd_step(*s, backend=backend)
        ctx.save_for_backward(s.users.clone(), s.listed().flatten(), *rows)
        ctx.shapes = [None if t is None else t.shape for t in s.tables]
        ctx.sparse = sparse
        ctx.mark_non_differentiable(cf, distill)
        return cf + s.lambda_ * distill, cf, distill

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        users, listed, g_users, g_items, g_bias = ctx.saved_tensors
        user_shape, item_shape, bias_shape = ctx.shapes

        def rows(index: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
            if ctx.sparse:
                return torch.sparse_coo_tensor(index[None], values * grad, shape, check_invariants=False)
            return values.new_zeros(shape).index_add_(0, index, values * grad)

        return (
            None,
            None,
            rows(users, g_users, user_shape),
            rows(listed, g_items.flatten(0, 1), item_shape),
            None if bias_shape is None else rows(listed, g_bias.flatten(), bias_shape),
            *(None,) * (len(StepInputs._fields) - 3),
        )


def _bd_step_loss(*arguments: Any, sparse: bool = True, backend: str = "") -> tuple[Tensor, Tensor, Tensor]:
    return _BdStep.apply(sparse, backend, *arguments)


# An operator, for torch.compile to look at no further: it cannot trace what makes sparse gradients, though it can run it.
LIBRARY.define(
    f"bd_step_loss({loss.TABLES}, {loss.BATCH}, *, bool sparse=True, str backend='') -> (Tensor, Tensor, Tensor)"
)
LIBRARY.impl("bd_step_loss", _bd_step_loss, "CompositeImplicitAutograd")
