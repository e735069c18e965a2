"""What the models minimise, and what they learn it from: positives, negatives, and the items on which they follow each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdkernels import Draws, Seen, score
from bidistill.config import Config
from bidistill.distill import Bidirectional
from bidistill.models import Recommender
from bidistill.negatives import NegativeSampler
from bidistill.part import Part
from bidistill.sharded.batches import fetch
from bidistill.update import Batch, Terms

GUIDES = {"teacher": "student", "student": "teacher"}


class Objective:
    """The batches of one step, as far as they are this process's.

    Args:
        config: settings of training and distillation.
        models: the "teacher" and the "student".
        seen: CSR rows of every user's training items: no negative and no distilled item is among them.
        part: what the models and `seen` are of; everything unless given. All processes call `batches` together.
        popularity: see `Bidirectional`.
    """

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Recommender],
        seen: Seen,
        part: Part | None = None,
        popularity: Tensor | None = None,
    ) -> None:
        self.config, self.models = config, models
        self.part = part or Part.whole(models["teacher"].n_users, models["teacher"].n_items)
        self.negatives = NegativeSampler(seen, models["teacher"].n_items)
        self.distiller: Bidirectional | None = None
        if config.distill.method == "bidirectional":
            pair = models["teacher"], models["student"]
            self.distiller = Bidirectional(config.distill, *pair, seen, config.run.seed, self.part, popularity)
        always = all(self.part.world.agree("negatives", int(self.negatives.always)))
        # Whether a negative may be masked out: of a user who has seen everything, or of one without a distilled item.
        self.may_lack_negatives = config.distill.negatives_from_samples or not always

    def terms(self, name: str) -> Terms:
        """What this model minimises."""
        distill = self.config.distill
        weight = distill.lambda_teacher if name == "teacher" else distill.lambda_student
        return Terms(self.config.train.loss, weight, distill.tau_learner, distill.tau_guide)

    def batches(
        self, names: Sequence[str], users: Tensor, positives: Tensor, step: int, generator: torch.Generator
    ) -> dict[str, Batch]:
        """What each named model learns from; where both are named, each follows the other as both are before the step.

        Args:
            names: the models that learn in this step. Both meet the same negatives.
            users, positives: [B] int64 training interactions: the whole batch, on every process.
            step: number of the step in its phase; picks the distilled items.
            generator: draws the negatives.
        """
        share = self.part.share(users)
        users, positives = share.users, share.keep(positives)
        negatives = self.negatives.draw(users, self.config.train.negatives, generator, share)
        drawn: dict[str, Draws] = {}
        if self.distiller is not None and len(names) == 2:
            drawn = self.distiller.draw(users, step, generator, share)
        nothing = Draws(negatives.ids[:, :0], negatives.mask[:, :0])
        own = drawn and self.config.distill.negatives_from_samples
        batches = {}
        for name in names:
            distill = drawn.get(name, nothing)
            unscored = torch.empty(distill.ids.shape, device=users.device)
            batches[name] = Batch(users, positives, distill if own else negatives, distill, unscored)
        if self.part.shards is not None:
            return fetch(self.part, self.models, batches, len(share.everyone), fused=not self.may_lack_negatives)
        for name, batch in batches.items():
            scores = score(self.models[GUIDES[name]].factors(users), batch.distill.ids.clamp(min=0))
            batches[name] = batch._replace(guide_scores=scores)
        return batches
