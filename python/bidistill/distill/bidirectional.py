"""Bidirectional distillation: which items the two models learn from each other, and the two losses on them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bdkernels import Exp, Linear, RankOnly, Seen, Tanh, Uniform, Weight, distill_loss, sample
from bidistill.config import DistillConfig, WeightConfig
from bidistill.models import Recommender


class Drawn(NamedTuple):
    """Items for one batch: the first columns for the student to learn, the rest for the teacher.

    Attributes:
        ids: [B, E] int64, valid items everywhere (0 where the mask is False).
        mask: [B, E] bool, False where there is nothing to learn.
        split: how many columns are the student's.
    """

    ids: Tensor
    mask: Tensor
    split: int

    def of(self, learner: str, values: Tensor) -> Tensor:
        """The columns of `values` [B, E] that the "student" or the "teacher" learns from."""
        return values[:, : self.split] if learner == "student" else values[:, self.split :]


class Bidirectional:
    """Draws items by the discrepancy of the two models' ranks and lets each model follow the other on its own ones.

    Args:
        config: weights, temperatures, samples for each positive, refresh policy.
        seen: CSR rows of all users; seen items are never drawn. n_users rows.
        seed: of the draws.
    """

    def __init__(
        self, config: DistillConfig, teacher: Recommender, student: Recommender, seen: Seen, seed: int
    ) -> None:
        self.config, self.teacher, self.student, self.seen, self.seed = config, teacher, student, seen, seed
        self.weights = {
            "student": make_weight(config.to_student, config.side) if config.lambda_student else None,
            "teacher": make_weight(config.to_teacher, config.side) if config.lambda_teacher else None,
        }
        self.pool: Tensor | None = None  # [n_users, directions * config.pool] int32, -1 where none was found

    def begin_epoch(self, epoch: int, batch: int = 1024) -> None:
        """Refill the pool if this epoch (counted from 0) is due; without a pool, do nothing."""
        if self.config.refresh == 0 or epoch % self.config.refresh:
            return
        users = torch.arange(self.teacher.n_users, device=self.seen.indptr.device)
        self.pool = torch.cat([self._sample(some, self.config.pool, epoch).int() for some in users.split(batch)])

    def draw(self, users: Tensor, step: int, generator: torch.Generator) -> Drawn:
        """Items for users [B] int64 (repeats allowed), `samples` for each row and direction.

        Args:
            step: number of the training step; other steps draw other items.
            generator: picks places in the pool, where there is one.
        """
        k, rows = self.config.samples, users
        if self.pool is None:
            # The same user gets the same draws in one step: draw enough for all its rows, and give each row its own.
            rows, inverse, counts = users.unique(return_inverse=True, return_counts=True)
            most = int(counts.max()) * k
            source = self._sample(rows, most, step)[inverse]
            places = k * occurrence(inverse)[:, None] + torch.arange(k, device=users.device)
        else:
            most, source = self.config.pool, self.pool[users].long()
            places = torch.randint(most, (users.shape[0], k), generator=generator).to(users.device)
        directions = source.shape[1] // most
        ids = torch.cat([source.gather(1, places + d * most) for d in range(directions)], dim=1)
        return Drawn(ids.clamp(min=0), ids >= 0, k if self.weights["student"] else 0)

    def losses(self, teacher_scores: Tensor, student_scores: Tensor, drawn: Drawn) -> dict[str, Tensor]:
        """Distillation loss of each model that learns, without lambda: means over the mask.

        teacher_scores, student_scores: [B, E] float32 scores of `drawn.ids`.
        """
        pairs = {"teacher": (teacher_scores, student_scores), "student": (student_scores, teacher_scores)}
        return {
            learner: distill_loss(
                drawn.of(learner, own),
                drawn.of(learner, guide).detach(),
                self.config.tau_learner,
                self.config.tau_guide,
                drawn.of(learner, drawn.mask),
            )
            for learner, (own, guide) in pairs.items()
            if self.weights[learner] is not None
        }

    def _sample(self, users: Tensor, k: int, step: int) -> Tensor:
        """[B, directions * k] ids, -1 where none: to the student first."""
        samples = sample(
            self.teacher.factors(users),
            self.student.factors(users),
            k,
            self.seen.rows(users),
            to_student=self.weights["student"],
            to_teacher=self.weights["teacher"],
            seed=self.seed,
            step=step,
            user_ids=users,
        )
        return torch.cat([draws.ids for draws in (samples.to_student, samples.to_teacher) if draws is not None], dim=1)


def occurrence(values: Tensor) -> Tensor:
    """For each element of values [B] int64: how many equal elements stand before it."""
    order = values.argsort(stable=True)
    ordered = values[order]
    index = torch.arange(values.shape[0], device=values.device)
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(index).scatter_(0, order, index - first)


def make_weight(config: WeightConfig, side_name: str) -> Weight:
    """The weight family that the options describe."""
    side: Literal["over", "under"] = "under" if side_name == "under" else "over"
    if config.weight == "uniform":
        return Uniform()
    if config.weight == "rank_only":
        return RankOnly(config.mu)
    if config.weight == "linear":
        return Linear(side=side)
    family = Tanh if config.weight == "tanh" else Exp
    return family(config.alpha, eps=config.eps, side=side)
