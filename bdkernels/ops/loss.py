"""The operators of the stage `loss`: schema, checks, dispatch. `autograd` makes the differentiable ones of them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from bdkernels import checks
from bdkernels.backends import steps
from bdkernels.ops.define import OPTIONS, define
from bdkernels.storage import mapped
from bdkernels.types.rule import RULES, Rule
from bdkernels.types.step import StepInputs

SCORES = "Tensor learner_scores, Tensor guide_scores, float tau_learner, float tau_guide, Tensor? mask"


def _distill_loss_fake(
    learner: Tensor,
    guide: Tensor,
    tau_learner: float,
    tau_guide: float,
    mask: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    return learner.new_empty((), dtype=checks.loss_dtype(learner))


def _distill_loss(
    learner: Tensor,
    guide: Tensor,
    tau_learner: float,
    tau_guide: float,
    mask: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    run = steps(learner.device, backend, learner.dtype).distill_loss
    return run(learner, guide, tau_learner, tau_guide, mask)


define("distill_loss_forward", f"({SCORES}, {OPTIONS}) -> Tensor", _distill_loss, _distill_loss_fake)


def _distill_loss_backward_fake(
    grad: Tensor,
    learner: Tensor,
    guide: Tensor,
    tau_learner: float,
    tau_guide: float,
    mask: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    checks.tensor("grad", grad, (), (checks.loss_dtype(learner),), learner.device)
    return torch.empty_like(learner, memory_format=torch.contiguous_format)


def _distill_loss_backward(
    grad: Tensor,
    learner: Tensor,
    guide: Tensor,
    tau_learner: float,
    tau_guide: float,
    mask: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    _distill_loss_backward_fake(grad, learner, guide, tau_learner, tau_guide, mask)
    run = steps(learner.device, backend, learner.dtype).distill_loss_backward
    return run(grad, learner, guide, tau_learner, tau_guide, mask)


define(
    "distill_loss_backward",
    f"(Tensor grad, {SCORES}, {OPTIONS}) -> Tensor",
    _distill_loss_backward,
    _distill_loss_backward_fake,
)


TABLES = "Tensor user_table, Tensor item_table, Tensor? item_bias"
BATCH = (
    "Tensor users, Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide_scores, Tensor? distill_mask, "
    "str cf, float distill_weight, float tau_learner, float tau_guide"
)


def _fused_gradient_fake(*arguments: Any, backend: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    s = StepInputs(*arguments)
    checks.step(s)
    (n_rows, m), k, d = s.negatives.shape, s.distill_ids.shape[1], s.user_table.shape[1]
    new = s.user_table.new_empty
    return new(()), new(()), new(n_rows, d), new(n_rows, 1 + m + k, d), new(n_rows, 1 + m + k)


def _fused_gradient(*arguments: Any, backend: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    s = StepInputs(*arguments)
    checks.step(s)
    mapped.trainable(*s.tables)
    s = checks.own_step(s)
    out = steps(s.user_table.device, backend, s.user_table.dtype).fused_gradient(s)
    checks.finite_losses(*out[:2])
    return out


define(
    "fused_gradient",
    f"({TABLES}, {BATCH}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fused_gradient,
    _fused_gradient_fake,
)


def _checked(
    user_table: Tensor, item_table: Tensor, item_bias: Tensor | None, state: list[Tensor], *rest: Any
) -> tuple[StepInputs, Rule]:
    """Arguments of fused_step without the state, checked as far as fake tensors can be."""
    batch, change = rest[: -len(Rule._fields)], rest[-len(Rule._fields) :]
    s, rule = StepInputs(user_table, item_table, item_bias, *batch), Rule(*change)
    checks.step(s)
    checks.in_place(*s.tables)
    checks.choice("rule", rule.kind, RULES)
    checks.state([t for t in s.tables if t is not None], state, RULES.index(rule.kind))
    return s, rule


def _fused_step_fake(*arguments: Any, backend: str = "") -> tuple[Tensor, Tensor]:
    s, _ = _checked(*arguments)
    return s.user_table.new_empty(()), s.user_table.new_empty(())


def _fused_step(*arguments: Any, backend: str = "") -> tuple[Tensor, Tensor]:
    (s, rule), state = _checked(*arguments), arguments[3]
    mapped.trainable(*s.tables)
    checks.own_memory(s.named_tables, state)
    checks.rule(*rule)
    s = checks.own_step(s)
    out = steps(s.user_table.device, backend, s.user_table.dtype).fused_step(s, state, rule._replace(lr=float(rule.lr)))
    checks.finite_losses(*out)
    increment_version([t for t in (*s.tables, *state) if t is not None])  # the kernels write behind autograd's back
    return out


# lr is a Scalar since SparseAdam's is another in each step: of a float argument torch.compile makes a constant.
define(
    "fused_step",
    "(Tensor(a!) user_table, Tensor(b!) item_table, Tensor(c!)? item_bias, Tensor(d!)[] state, "
    f"{BATCH}, str rule, Scalar lr, float weight_decay, float beta1, float beta2, float eps, {OPTIONS}) "
    "-> (Tensor, Tensor)",
    _fused_step,
    _fused_step_fake,
)
