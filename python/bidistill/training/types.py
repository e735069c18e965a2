"""What a training step is given: what a model minimises, and the batch that it learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import Draws, distill_loss


class Terms(NamedTuple):
    """What a model minimises: cf + distill_weight * distill.

    Attributes:
        cf: name of the collaborative-filtering loss, of LOSSES.
        distill_kind: of the distillation loss, where that is `bdkernels.distill_loss`.
        distill_weight: weight of the distillation loss.
        tau_learner, tau_guide: its temperatures.
        distill: the distillation loss of (scores [B, k], guide_scores [B, k], draws), a scalar; None: `bdkernels.distill_loss`.
    """

    cf: str
    distill_kind: str
    distill_weight: float
    tau_learner: float
    tau_guide: float
    distill: Callable[[Tensor, Tensor, Draws], Tensor] | None = None

    def distill_loss(self, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """The distillation loss without its weight."""
        if self.distill is not None:
            return self.distill(scores, guide_scores, draws)
        numbers = self.tau_learner, self.tau_guide
        return distill_loss(scores, guide_scores, *numbers, draws.mask, kind=self.distill_kind)


class Batch(NamedTuple):
    """What one model learns from in a step.

    Attributes:
        users, positives: [B] int64 training interactions.
        negatives: [B, M] item ids; -1 where the mask is False.
        distill: [B, k] item ids likewise; k = 0 where nothing is distilled.
        guide_scores: [B, k] float32, the other model's scores of the distilled items.
    """

    users: Tensor
    positives: Tensor
    negatives: Draws
    distill: Draws
    guide_scores: Tensor

    def listed(self, fused: bool) -> Tensor:
        """[B, 1 + M + k] items that a step touches. What is missing is replaced by the positive in a fused step, whose negatives
        are all there, else by the first item.
        """
        positives, distilled = self.positives[:, None], self.distill
        live = distilled.ids.where(distilled.mask, positives) if fused else distilled.ids.clamp(min=0)
        return torch.cat([positives, self.negatives.ids.clamp(min=0), live], 1)
