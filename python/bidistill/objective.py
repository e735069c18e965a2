"""What the models minimise: their own loss on positives and negatives, plus lambda times the distillation loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdkernels import Seen
from bidistill.config import Config
from bidistill.distill import Bidirectional
from bidistill.losses import LOSSES
from bidistill.models import Recommender
from bidistill.negatives import NegativeSampler


class Objective:
    """The losses of one step.

    Args:
        config: settings of training and distillation.
        models: the "teacher" and the "student".
        seen: CSR rows of every user's training items: no negative and no distilled item is among them.
    """

    def __init__(self, config: Config, models: Mapping[str, Recommender], seen: Seen) -> None:
        self.config, self.models = config, models
        self.loss = LOSSES[config.train.loss]
        self.negatives = NegativeSampler(seen, models["teacher"].n_items)
        self.distiller: Bidirectional | None = None
        if config.distill.method == "bidirectional":
            self.distiller = Bidirectional(config.distill, models["teacher"], models["student"], seen, config.run.seed)

    def losses(
        self, names: Sequence[str], users: Tensor, positives: Tensor, step: int, generator: torch.Generator
    ) -> dict[str, dict[str, Tensor]]:
        """{"cf": loss} of each named model, and where both are named and distillation is on, "distill" too.

        Args:
            names: the models that learn in this step. Both meet the same negatives.
            users, positives: [B] int64 training interactions.
            step: number of the step in its phase; picks the distilled items.
            generator: draws the negatives.
        """
        negatives, mask = self.negatives.draw(users, self.config.train.negatives, generator)
        columns = [positives[:, None], negatives.clamp(min=0)]
        drawn = None
        if self.distiller is not None and len(names) == 2:
            drawn = self.distiller.draw(users, step, generator)
            columns.append(drawn.ids)
        ids = torch.cat(columns, dim=1)  # [B, 1 + M + E]: one call a model scores everything
        scores = {name: self.models[name].score(users, ids) for name in names}
        first = 1 + negatives.shape[1]
        losses = {}
        for name in names:
            wrong, where = scores[name][:, 1:first], mask
            if drawn is not None and self.config.distill.negatives_from_samples:
                wrong, where = drawn.of(name, scores[name][:, first:]), drawn.of(name, drawn.mask)
            losses[name] = {"cf": self.loss(scores[name][:, 0], wrong, where)}
        if self.distiller is not None and drawn is not None:
            extra = self.distiller.losses(scores["teacher"][:, first:], scores["student"][:, first:], drawn)
            for name, loss in extra.items():
                losses[name]["distill"] = loss
        return losses

    def total(self, name: str, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar that a model minimises: cf + lambda * distill."""
        weight = self.config.distill.lambda_teacher if name == "teacher" else self.config.distill.lambda_student
        return losses["cf"] + weight * losses["distill"] if "distill" in losses else losses["cf"]
