"""Gradients: of `score`, and of the losses. Nothing else here has one.

Each of them is an operator over a torch.autograd.Function, for torch.compile to look at no further: it cannot trace what
makes sparse gradients, though it can run it. They have first derivatives in reverse mode alone. The others, which would be lost
without a word, are refused: by `_refuse` those of function transforms and of forward mode, by `_once` those of a gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bdkernels.ops import LIBRARY
from bdkernels.ops.define import schema
from bdkernels.ops.score import ScoreInputs
from bdkernels.ops.softmax import SoftmaxInputs
from bdkernels.types.step import DistillInputs, StepInputs

INSTEAD = (
    "it has first derivatives by torch.autograd (backward, torch.autograd.grad) alone; "
    "compute this part with operations of torch itself where you need others"
)


def _refuse(name: str, arguments: tuple[Any, ...]) -> None:
    """RuntimeError where torch.func or forward mode differentiates: the operators would drop the derivative."""
    for t in arguments:
        if isinstance(t, Tensor):
            if torch._C._functorch.is_gradtrackingtensor(t):
                raise RuntimeError(f"{name}: no derivative by torch.func (grad, jvp, hessian, ...): {INSTEAD}")
            if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
                raise RuntimeError(f"{name}: no forward-mode derivative: {INSTEAD}")


class _Once(torch.autograd.Function):
    """Gradients as they are, whose own gradient is an error."""

    @staticmethod
    def forward(ctx: Any, name: str, sources: int, *tensors: Any) -> tuple[Any, ...]:
        ctx.name = name
        return tuple(t.detach() if t is not None and t.is_sparse else t for t in tensors[sources:])  # they have no view

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"{ctx.name}: no second derivative: {INSTEAD}")


def _once(name: str, sources: tuple[Tensor | None, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients, made of the sources, for a backward pass to return; with create_graph=True alone this records anything."""
    return _Once.apply(name, len(sources), *sources, *grads) if torch.is_grad_enabled() else grads


def _wanted(tensors: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if isinstance(t, Tensor) and t.requires_grad:
                return True
    return False


def _scattered(index: Tensor, values: Tensor, like: torch.Size, dtype: torch.dtype, sparse: bool) -> Tensor:
    """The gradient of a table, given that of the rows that `index` names, which may repeat."""
    if sparse:
        return torch.sparse_coo_tensor(index[None], values.to(dtype), like, check_invariants=False)
    return values.new_zeros(like).index_add_(0, index, values).to(dtype)


class _Score(torch.autograd.Function):
    """`torch.ops.bdkernels.score_forward`."""

    @staticmethod
    def forward(ctx: Any, sparse: bool, backend: str, *arguments: Any) -> Tensor:
        users, items, item_bias, ids = arguments
        ctx.save_for_backward(users, items, ids)
        ctx.sparse = sparse
        return torch.ops.bdkernels.score_forward(users, items, item_bias, ids, backend=backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        users, items, ids = ctx.saved_tensors
        _, _, of_users, of_items, of_bias, _ = ctx.needs_input_grad
        with torch.no_grad():
            listed = ids.flatten()
            rows = torch.ops.bdkernels.score_backward(grad, users, items, ids, of_users, of_items)
            grads = (
                rows[0].to(users.dtype) if of_users else None,
                _scattered(listed, rows[1], items.shape, items.dtype, ctx.sparse) if of_items else None,
                _scattered(listed, grad.flatten(), items.shape[:1], items.dtype, ctx.sparse) if of_bias else None,
            )
        return None, None, *_once("score", (grad, users, items), grads), None


class _DistillLoss(torch.autograd.Function):
    """`torch.ops.bdkernels.distill_loss_forward`."""

    @staticmethod
    def forward(ctx: Any, backend: str, *arguments: Any) -> Tensor:
        s: Any = DistillInputs(*arguments)
        ctx.backend, ctx.rest = backend, s._replace(learner_scores=None, guide_scores=None, mask=None)
        ctx.save_for_backward(s.learner_scores, s.guide_scores, s.mask)
        return torch.ops.bdkernels.distill_loss_forward(*arguments, backend=backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        learner, guide, mask = ctx.saved_tensors
        with torch.no_grad():
            s = ctx.rest._replace(learner_scores=learner, guide_scores=guide, mask=mask)
            of_scores = torch.ops.bdkernels.distill_loss_backward(grad, *s, backend=ctx.backend)
        return None, *_once("distill_loss", (grad, learner), (of_scores,)), *(None,) * (len(DistillInputs._fields) - 1)


class _FusedLoss(torch.autograd.Function):
    """Loss of `torch.ops.bdkernels.fused_gradient` with the gradient rows that the same call made."""

    @staticmethod
    def forward(ctx: Any, sparse: bool, backend: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        s = StepInputs(*arguments)
        cf, distill, *rows = torch.ops.bdkernels.fused_gradient(*s, backend=backend)
        ctx.save_for_backward(s.users.clone(), s.listed().flatten(), *rows)
        ctx.tables = (
            s.tables
        )  # not saved: a step may have changed them before the backward pass, which reads none of them
        ctx.sparse = sparse
        ctx.mark_non_differentiable(cf, distill)
        return cf + s.distill_weight * distill, cf, distill

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        users, listed, g_users, g_items, g_bias = ctx.saved_tensors
        rows = ((users, g_users), (listed, g_items.flatten(0, 1)), (listed, g_bias.flatten()))
        with torch.no_grad():
            grads = tuple(
                None if table is None else _scattered(index, values * grad, table.shape, values.dtype, ctx.sparse)
                for (index, values), table in zip(rows, ctx.tables, strict=True)
            )
        return None, None, *_once("fused_loss", (grad, *ctx.tables), grads), *(None,) * (len(StepInputs._fields) - 3)


class _SoftmaxLoss(torch.autograd.Function):
    """Loss of `torch.ops.bdkernels.softmax_gradient` with the gradients that the same call made."""

    @staticmethod
    def forward(ctx: Any, backend: str, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, logs, *gradients = torch.ops.bdkernels.softmax_gradient(*arguments, backend=backend)
        ctx.save_for_backward(*gradients)
        ctx.sources = arguments[:3]
        ctx.mark_non_differentiable(logs)
        return loss, logs

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            wanted = ctx.needs_input_grad[1:4]
            grads = tuple(each * grad if of else None for each, of in zip(ctx.saved_tensors, wanted, strict=True))
        return None, *_once("softmax_loss", (grad, *ctx.sources), grads), *(None,) * (len(SoftmaxInputs._fields) - 1)


def _score(*arguments: Any, sparse: bool = False, backend: str = "") -> Tensor:
    _refuse("score", arguments)
    if _wanted(arguments):
        return _Score.apply(sparse, backend, *arguments)
    return torch.ops.bdkernels.score_forward(*arguments, backend=backend)


def _distill_loss(*arguments: Any, backend: str = "") -> Tensor:
    _refuse("distill_loss", arguments)
    if _wanted(arguments):
        return _DistillLoss.apply(backend, *arguments)
    return torch.ops.bdkernels.distill_loss_forward(*arguments, backend=backend)


def _fused_loss(*arguments: Any, sparse: bool = True, backend: str = "") -> tuple[Tensor, Tensor, Tensor]:
    _refuse("fused_loss", arguments)
    return _FusedLoss.apply(sparse, backend, *arguments)


def _softmax_loss(*arguments: Any, backend: str = "") -> tuple[Tensor, Tensor]:
    _refuse("softmax_loss", arguments)
    if _wanted(arguments):
        return _SoftmaxLoss.apply(backend, *arguments)
    return torch.ops.bdkernels.softmax_loss_forward(*arguments, backend=backend)


for name, declared, run in (
    ("score", f"({schema(ScoreInputs)}, *, bool sparse=False, str backend='') -> Tensor", _score),
    ("distill_loss", f"({schema(DistillInputs)}, *, str backend='') -> Tensor", _distill_loss),
    ("softmax_loss", f"({schema(SoftmaxInputs)}, *, str backend='') -> (Tensor, Tensor)", _softmax_loss),
    (
        "fused_loss",
        f"({schema(StepInputs)}, *, bool sparse=True, str backend='') -> (Tensor, Tensor, Tensor)",
        _fused_loss,
    ),
):
    LIBRARY.define(name + declared)
    LIBRARY.impl(name, run, "CompositeImplicitAutograd")
