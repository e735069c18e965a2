"""The operators of the stage `loss`: schema, checks, dispatch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import checks
from ..backends import steps
from ..optim import RULES, Rule
from .define import OPTIONS, define

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


define("distill_loss", f"({SCORES}, {OPTIONS}) -> Tensor", _distill_loss, _distill_loss_fake)


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


def _check_values(
    user_table: Tensor,
    item_table: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    distill_mask: Tensor | None,
) -> None:
    checks.ids_values("users", users, user_table.shape[0])
    checks.ids_values("positives", positives, item_table.shape[0])
    checks.ids_values("negatives", negatives, item_table.shape[0])
    live = distill_ids if distill_mask is None else distill_ids.where(distill_mask, 0)
    checks.ids_values("distill_ids", live, item_table.shape[0])


Args = tuple[Any, ...]
TABLES = "Tensor user_table, Tensor item_table, Tensor? item_bias"
BATCH = (
    "Tensor users, Tensor positives, Tensor negatives, Tensor distill_ids, Tensor guide_scores, Tensor? distill_mask, "
    "str cf, float lambda_, float tau_learner, float tau_guide"
)


def _bd_step_fake(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    guide_scores: Tensor,
    distill_mask: Tensor | None,
    cf: str,
    lambda_: float,
    tau_learner: float,
    tau_guide: float,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    checks.step(user_table, item_table, item_bias, users, positives, negatives, distill_ids, guide_scores, distill_mask)
    checks.temperatures(tau_learner, tau_guide)
    checks.finite("lambda_", lambda_)
    checks.choice("cf", cf, ("bce", "bpr"))
    (n_rows, m), k, d = negatives.shape, distill_ids.shape[1], user_table.shape[1]
    new = user_table.new_empty
    return new(()), new(()), new(n_rows, d), new(n_rows, 1 + m + k, d), new(n_rows, 1 + m + k)


def _bd_step(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    guide_scores: Tensor,
    distill_mask: Tensor | None,
    cf: str,
    lambda_: float,
    tau_learner: float,
    tau_guide: float,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments: Args = (
        user_table, item_table, item_bias, users, positives, negatives, distill_ids, guide_scores, distill_mask,
        cf, lambda_, tau_learner, tau_guide,
    )  # fmt: skip
    _bd_step_fake(*arguments)
    _check_values(user_table, item_table, users, positives, negatives, distill_ids, distill_mask)
    return steps(user_table.device, backend, user_table.dtype).bd_step(*arguments)


define(
    "bd_step",
    f"({TABLES}, {BATCH}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bd_step,
    _bd_step_fake,
)


def _bd_step_update_fake(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    state: list[Tensor],
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    guide_scores: Tensor,
    distill_mask: Tensor | None,
    cf: str,
    lambda_: float,
    tau_learner: float,
    tau_guide: float,
    rule: str,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    tables = user_table, item_table, item_bias
    cf_loss, loss, *_ = _bd_step_fake(
        *tables,
        users,
        positives,
        negatives,
        distill_ids,
        guide_scores,
        distill_mask,
        cf,
        lambda_,
        tau_learner,
        tau_guide,
    )
    checks.in_place(*tables)
    checks.choice("rule", rule, RULES)
    checks.state([t for t in tables if t is not None], state, RULES.index(rule))
    return cf_loss, loss


def _bd_step_update(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    state: list[Tensor],
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    guide_scores: Tensor,
    distill_mask: Tensor | None,
    cf: str,
    lambda_: float,
    tau_learner: float,
    tau_guide: float,
    rule: str,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    arguments: Args = (
        user_table, item_table, item_bias, state, users, positives, negatives, distill_ids, guide_scores, distill_mask,
        cf, lambda_, tau_learner, tau_guide,
    )  # fmt: skip
    change: Args = (rule, lr, weight_decay, beta1, beta2, eps)
    _bd_step_update_fake(*arguments, *change)
    checks.own_memory(user_table, item_table, item_bias)
    _check_values(user_table, item_table, users, positives, negatives, distill_ids, distill_mask)
    out = steps(user_table.device, backend, user_table.dtype).bd_step_update(*arguments, Rule(*change))
    written = (user_table, item_table, item_bias, *state)
    increment_version([t for t in written if t is not None])  # the kernels write behind autograd's back
    return out


define(
    "bd_step_update",
    "(Tensor(a!) user_table, Tensor(b!) item_table, Tensor(c!)? item_bias, Tensor(d!)[] state, "
    f"{BATCH}, str rule, float lr, float weight_decay, float beta1, float beta2, float eps, {OPTIONS}) "
    "-> (Tensor, Tensor)",
    _bd_step_update,
    _bd_step_update_fake,
)
