"""The operators of the stage `loss`. `autograd` makes the differentiable ones of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from bdkernels import checks, ranges
from bdkernels.backends import steps
from bdkernels.ops.define import define
from bdkernels.storage import mapped
from bdkernels.types.rule import RULES, Rule, rate
from bdkernels.types.step import DistillInputs, StepInputs


class DistillGradInputs(NamedTuple):
    """The gradient of the loss, and what it was computed of."""

    grad: Tensor  # []
    of: DistillInputs


class UpdateInputs(NamedTuple):
    """A step, the optimizer's state of its tables, one table after the other, and what it does to a row.

    lr: [] in the place of the rule's: float64 on the CPU, since of a number torch.compile makes a constant, and compiles again;
        or of the tables' dtype on their device, which a captured CUDA graph reads anew in each replay.
    steps_done: [] float64 on the tables' device. The rule's lr, or `lr`, which is float64 then, is not yet corrected for them by
        `rate`.
    """

    step: StepInputs
    state: list[Tensor]
    rule: Rule
    lr: Tensor | None = None
    steps_done: Tensor | None = None


def _check_distill(s: DistillInputs) -> Tensor:
    checks.losses(s)
    return s.learner_scores.new_empty((), dtype=checks.loss_dtype(s.learner_scores))


def _distill_loss(s: DistillInputs, backend: str) -> Tensor:
    return steps(s.learner_scores.device, backend, s.learner_scores.dtype).distill_loss(*s)


define("distill_loss_forward", DistillInputs, "Tensor", _check_distill, _distill_loss)


def _check_distill_grad(s: DistillGradInputs) -> Tensor:
    learner = s.of.learner_scores
    checks.losses(s.of)
    checks.tensor("grad", s.grad, (), (checks.loss_dtype(learner),), learner.device)
    return torch.empty_like(learner, memory_format=torch.contiguous_format)


def _distill_loss_backward(s: DistillGradInputs, backend: str) -> Tensor:
    learner = s.of.learner_scores
    return steps(learner.device, backend, learner.dtype).distill_loss_backward(s.grad, *s.of)


define("distill_loss_backward", DistillGradInputs, "Tensor", _check_distill_grad, _distill_loss_backward)


def _check_gradient(s: StepInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    checks.step(s)
    (n_rows, m), k, d = s.negatives.shape, s.distill_ids.shape[1], s.user_table.shape[1]
    new = s.user_table.new_empty
    return new(()), new(()), new(n_rows, d), new(n_rows, 1 + m + k, d), new(n_rows, 1 + m + k)


def _fused_gradient(s: StepInputs, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mapped.trainable(*s.tables)
    stages = steps(s.user_table.device, backend, s.user_table.dtype)
    if not (stages.queued and checks.asserts_ids(s)):
        s = checks.own_step(s)
    out = stages.fused_gradient(s)
    checks.finite_losses(*out[:2])
    return out


define("fused_gradient", StepInputs, "(Tensor, Tensor, Tensor, Tensor, Tensor)", _check_gradient, _fused_gradient)


def _check_update(u: UpdateInputs) -> tuple[Tensor, Tensor]:
    s, state, rule, lr, count = u
    checks.step(s)
    checks.rate(lr, count, s.user_table)
    checks.in_place(*s.tables)
    checks.choice("rule", rule.kind, RULES)
    checks.state(list(s.named_tables.values()), state, RULES.index(rule.kind))
    checks.rule(rule)
    return s.user_table.new_empty(()), s.user_table.new_empty(())


def _fused_step(u: UpdateInputs, backend: str) -> tuple[Tensor, Tensor]:
    s, state, rule, lr, count = u
    table = s.user_table
    stages = steps(table.device, backend, table.dtype)
    if lr is not None and (lr.device != table.device or (count is None and lr.dtype != table.dtype)):  # a number
        rule, lr = rule._replace(lr=float(lr)), None
    on_device = stages.queued and (lr is not None or count is not None)
    number: Any = rule.lr
    if (lr is not None or count is not None) and not (on_device and table.device.type in checks.ASSERTS):
        number = rule.lr if lr is None else lr
        if count is not None:
            number = torch.as_tensor(rate(rule, number, count)).to(table.dtype)
        number = float(number)  # where nobody may wait for its value, it is not asked for
    if number not in ranges.STEP_SIZE:
        checks.within("lr", number, ranges.STEP_SIZE)
    own = rule.lr if on_device else number
    if type(own) is not float or own is not rule.lr:  # a Scalar may be an integer
        rule = rule._replace(lr=float(own))
    mapped.trainable(*s.tables)
    tables = s.named_tables
    checks.own_memory(tables, state)
    if not (stages.queued and checks.asserts_ids(s)):
        s = checks.own_step(s)
    out = stages.fused_step(s, state, rule, *((lr, count) if on_device else ()))
    checks.finite_losses(*out)
    increment_version([*tables.values(), *state])  # the kernels write behind autograd's back
    return out


# lr is a Scalar since SparseAdam's is another in each step: of a float argument torch.compile makes a constant.
define(
    "fused_step", UpdateInputs, "(Tensor, Tensor)", _check_update, _fused_step,
    {"step_user_table": "Tensor(a!)", "step_item_table": "Tensor(b!)", "step_item_bias": "Tensor(c!)?",
     "state": "Tensor(d!)[]", "rule_lr": "Scalar"},
)  # fmt: skip
