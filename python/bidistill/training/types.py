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
        shared: whether rows share negatives: see `SharedNegatives`.
        distill: the distillation loss of (scores [B, k], guide_scores [B, k], draws), a scalar; None: `bdkernels.distill_loss`.
    """

    cf: str
    distill_kind: str
    distill_weight: float
    tau_learner: float
    tau_guide: float
    distill: Callable[[Tensor, Tensor, Draws], Tensor] | None = None
    shared: bool = False

    def distill_loss(self, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """The distillation loss without its weight."""
        if self.distill is not None:
            return self.distill(scores, guide_scores, draws)
        numbers = self.tau_learner, self.tau_guide
        return distill_loss(scores, guide_scores, *numbers, draws.mask, kind=self.distill_kind)


class SharedNegatives(NamedTuple):
    """Negatives that the rows of a batch share in groups: rows 0 .. size - 1 are group 0, the next ones group 1, and so on.

    G groups of M items.

    Attributes:
        ids: [G, M] int64, the items of each group; an item may be there several times.
        size: rows of a group, of which the last one may have fewer.
        mask: [B, M] bool, False where an item of the row's group is no negative of the row.
        log_q: [n_items] float32, log of the probability of each item in a draw, up to a constant: what is subtracted from the
            scores of positives and negatives before the loss; None where all items have the same.
    """

    ids: Tensor
    size: int
    mask: Tensor
    log_q: Tensor | None

    def with_positives(self, positives: Tensor) -> Tensor:
        """[B + G M] item ids: the positives [B], then those of the groups."""
        return torch.cat([positives, self.ids.flatten()])

    def of_rows(self) -> Draws:
        """The same item by item: ids [B, M] and the mask."""
        return Draws(self.ids.repeat_interleave(self.size, 0)[: len(self.mask)], self.mask)

    def corrected(self, scores: Tensor, ids: Tensor) -> Tensor:
        """Scores of these items, with the log-q correction."""
        return scores if self.log_q is None else scores - self.log_q[ids]


class Batch(NamedTuple):
    """What one model learns from in a step.

    Attributes:
        users, positives: [B] int64 training interactions.
        negatives: [B, M] item ids, -1 where the mask is False; or what the rows share.
        distill: [B, k] item ids likewise; k = 0 where nothing is distilled.
        guide_scores: [B, k] float32, the other model's scores of the distilled items.
    """

    users: Tensor
    positives: Tensor
    negatives: Draws | SharedNegatives
    distill: Draws
    guide_scores: Tensor

    def listed(self, fused: bool) -> Tensor:
        """[B, 1 + M + k] items that a step touches. What is missing is replaced by the positive in a fused step, whose negatives
        are all there, else by the first item.
        """
        positives, negatives, distilled = self.positives[:, None], self.negatives, self.distill
        own = negatives.of_rows() if isinstance(negatives, SharedNegatives) else negatives
        live = distilled.ids.where(distilled.mask, positives) if fused else distilled.ids.clamp(min=0)
        return torch.cat([positives, own.ids.clamp(min=0), live], 1)
