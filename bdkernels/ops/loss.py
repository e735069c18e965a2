"""The operators of the stage `loss`: schema, checks, dispatch."""

import torch
from torch import Tensor

from .. import checks, reference
from .define import define


def _distill_loss_fake(
    learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None
) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    return learner.new_empty((), dtype=torch.float64 if learner.dtype == torch.float64 else torch.float32)


def _distill_loss(learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    return reference.distill_loss(learner, guide, tau_learner, tau_guide, mask)


define(
    "distill_loss",
    "(Tensor learner_scores, Tensor guide_scores, float tau_learner, float tau_guide, Tensor? mask) -> Tensor",
    _distill_loss,
    _distill_loss_fake,
)


def _distill_loss_backward_fake(
    grad: Tensor, learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None
) -> Tensor:
    return torch.empty_like(learner, memory_format=torch.contiguous_format)


define(
    "distill_loss_backward",
    "(Tensor grad, Tensor learner_scores, Tensor guide_scores, float tau_learner, float tau_guide, Tensor? mask) -> Tensor",
    reference.distill_loss_backward,
    _distill_loss_backward_fake,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (user_table, item_table, item_bias, users, positives, negatives, distill_ids, guide_scores, distill_mask)
    _bd_step_fake(*tensors, cf, lambda_, tau_learner, tau_guide)
    checks.ids_values("users", users, user_table.shape[0])
    checks.ids_values("positives", positives, item_table.shape[0])
    checks.ids_values("negatives", negatives, item_table.shape[0])
    live = distill_ids if distill_mask is None else distill_ids[distill_mask]
    checks.ids_values("distill_ids", live, item_table.shape[0])
    return reference.bd_step(*tensors, cf, lambda_, tau_learner, tau_guide)


define(
    "bd_step",
    "(Tensor user_table, Tensor item_table, Tensor? item_bias, Tensor users, Tensor positives, Tensor negatives, "
    "Tensor distill_ids, Tensor guide_scores, Tensor? distill_mask, str cf, float lambda_, float tau_learner, "
    "float tau_guide) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bd_step,
    _bd_step_fake,
)
