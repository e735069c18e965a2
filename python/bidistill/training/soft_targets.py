"""What a model learns from soft targets over the whole catalog: distill.loss "full_softmax"."""

from __future__ import annotations

import torch
from torch import Tensor

from bdkernels import softmax_losses
from bidistill.losses import FULL_SOFTMAX
from bidistill.models.base import FactorLearner
from bidistill.models.scoring import distinct_users
from bidistill.training.types import Batch, Terms


def learns_from_targets(batch: Batch, terms: Terms) -> bool:
    """Whether this step has soft targets over the whole catalog."""
    return terms.distill_kind == FULL_SOFTMAX and batch.distill.ids.shape[1] > 0


def soft_target_loss(model: FactorLearner, batch: Batch, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """cf + distill_weight * distill, and both parts by "cf" and "distill", constants.

    cf is the mean over the B rows of log sum_i exp(s_i) - s_0; distill that of

        sum over the row's list of p_j (log sum_i exp(s_i) - s_j),   p = softmax(guide's scores / tau_guide) over the list,

    the cross entropy of the learner's chances of all items against the guide's, which are 0 beside its list (soft targets: Hinton
    et al. 2015). A row without a list counts 0. Each user is scored once for both parts. All rows of a user have the same list,
    so that it is entered once, with the weight of all of them.
    """
    distinct, rows, first = distinct_users(batch.users)
    ids, mask = batch.distill.ids[first], batch.distill.mask[first]
    targets = (batch.guide_scores[first] / terms.tau_guide).masked_fill(~mask, -torch.inf)
    targets = targets.softmax(1).where(mask, 0.0)
    share = 1 / len(rows)
    counts = torch.bincount(rows, minlength=len(distinct))
    factors = model.trained_factors(distinct)
    dtype = factors.user_factors.dtype
    soft = (targets * counts[:, None]).to(dtype).mul_(share * terms.distill_weight)
    weights = torch.cat([soft.new_full((len(rows),), share), soft.flatten()])
    listed = torch.arange(len(distinct), device=rows.device).repeat_interleave(ids.shape[1])
    loss, log_sums = softmax_losses(
        factors, torch.cat([rows, listed]), torch.cat([batch.positives, ids.clamp(min=0).flatten()]), weights
    )
    with torch.no_grad():
        users, items, bias = factors
        scores = (users[rows] * items[batch.positives]).sum(1)
        if bias is not None:
            scores += bias.view(-1)[batch.positives]
        cf = (log_sums[rows] - scores).mean()
        distill = (loss - cf) / terms.distill_weight
    return loss, {"cf": cf, "distill": distill}
