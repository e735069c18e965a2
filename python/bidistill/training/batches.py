"""What the models learn from: positives, negatives, and the items on which they follow each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bdkernels import Draws, Seen
from bidistill.config import Config
from bidistill.distill import Distiller
from bidistill.distill.lists import of_shares
from bidistill.distill.method import GUIDES
from bidistill.distributed.partition import Partition
from bidistill.models import Recommender
from bidistill.training.fusion import unfused
from bidistill.training.negatives import NegativeSampler, SharedSampler
from bidistill.training.strategy import Strategy
from bidistill.training.types import Batch, SharedNegatives, Terms


class Objective:
    """The batches of one step.

    Args:
        config: settings of training and distillation.
        models: the "teacher" and the "student".
        seen: CSR rows of the users' training items: no negative and no distilled item is among them.
        strategy: completes the batches.
        partition: what of the users and items is here.
        popularity: see `Distiller`.

    Attributes:
        distiller: draws the items on which the models follow each other; None where they do not.
        unfused: why no step of this run may be fused; "" where it may.
    """

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Recommender],
        seen: Seen,
        strategy: Strategy,
        partition: Partition,
        popularity: Tensor | None = None,
    ) -> None:
        self.config, self.models, self.strategy, self.partition = config, models, strategy, partition
        self.negatives: NegativeSampler | SharedSampler
        if config.train.shares_negatives:
            assert popularity is not None
            self.negatives = SharedSampler(seen, popularity, config.train.negative_source, config.train.negatives)
        else:
            self.negatives = NegativeSampler(seen, partition.n_items)
        self.drawn_negatives = config.train.drawn_negatives
        distill = config.distill
        if config.train.joint == "student":  # the teacher stays as it is, so that no copy of it is needed
            distill = replace(distill, guide="live")
        self.distiller = Distiller.from_config(distill, seen, config.run.seed, partition, popularity)
        self.unfused = unfused(config)
        always = isinstance(self.negatives, SharedSampler) or self.negatives.always
        if not partition.all("negatives", always):
            self.unfused = "a user has seen every item, and has no negative"

    @property
    def pair(self) -> tuple[Recommender, Recommender]:
        """The teacher and the student."""
        return self.models["teacher"], self.models["student"]

    @property
    def fuse(self) -> bool:
        """Whether steps may be fused where model and optimizer allow it."""
        return not self.unfused

    def resample(self, step: int, steps: int) -> None:
        """Before a step of the joint phase: see `Distiller.resample`."""
        if self.distiller is not None:
            self.distiller.resample(*self.pair, step, steps)

    def terms(self, name: str) -> Terms:
        """What this model minimises."""
        distill = self.config.distill
        weight = distill.lambda_teacher if name == "teacher" else distill.lambda_student
        method = None if self.distiller is None else self.distiller.method
        own = partial(method.loss, name) if method is not None and method.own_loss else None
        losses = self.config.train.loss, distill.loss
        return Terms(*losses, weight, distill.tau_learner, distill.tau_guide, own, self.config.train.shares_negatives)

    def batches(
        self,
        names: Sequence[str],
        users: Tensor,
        positives: Tensor,
        step: int,
        generator: torch.Generator,
        *,
        joint: bool,
    ) -> Mapping[str, Any]:
        """What each named model learns from; in the joint phase also from its guide, as it is before the step.

        Args:
            names: the models that learn in this step. Both meet the same negatives.
            users, positives: [B] int64 training interactions.
            step: number of the step in its phase; picks the distilled items.
            generator: draws the negatives.
            joint: whether this is a step of the joint phase.

        Returns:
            a batch for each name, as the strategy's updates take it.
        """
        share = self.partition.share(users)
        users, positives = share.users, share.keep(positives)
        negatives: Draws | SharedNegatives
        if isinstance(self.negatives, SharedSampler):
            negatives = self.negatives.draw(users, positives, generator)
        else:
            negatives = self.negatives.draw(users, self.drawn_negatives, generator, share)
        drawn: dict[str, Draws] = {}
        pair = self.pair
        guides = {name: self.models[GUIDES[name]] for name in names}
        if self.distiller is not None and joint:
            drawn = self.distiller.draw(*pair, users, step, generator, share)
            guides |= self.distiller.guides(*pair)
        none = users.new_empty((users.shape[0], 0))
        nothing = Draws(none, none.bool())
        own = drawn and self.config.distill.negatives_from_samples
        batches = {}
        for name in names:
            distill = drawn.get(name, nothing)
            unscored = torch.empty(distill.ids.shape, device=users.device)
            batches[name] = Batch(users, positives, distill if own else negatives, distill, unscored)
        guided = dict(
            self.strategy.guided(self.models, guides, batches, share.everyone.shape[0], fuse=not self.unfused)
        )
        if self.config.distill.guide_scores == "shares":
            for name, batch in guided.items():
                draws, logits = of_shares(batch.distill, batch.guide_scores)
                guided[name] = batch._replace(distill=draws, guide_scores=logits)
        return guided
