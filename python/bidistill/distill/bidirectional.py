"""Bidirectional distillation: which items the two models learn from each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bdkernels import Draws, Exp, Linear, RankOnly, Seen, Tanh, Uniform, Weight, sample
from bidistill.config import DistillConfig, WeightConfig
from bidistill.models import Recommender


class Bidirectional:
    """Draws items by the discrepancy of the two models' ranks: for each model those on which it follows the other.

    Args:
        config: weights, samples for each positive, refresh policy.
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

    def draw(self, users: Tensor, step: int, generator: torch.Generator) -> dict[str, Draws]:
        """Items for users [B] int64 (repeats allowed), `samples` for each row and direction.

        Args:
            step: number of the training step; other steps draw other items.
            generator: picks places in the pool, where there is one.

        Returns:
            {learner: [B, samples] draws} of the directions that are on; id -1 and mask False where there is nothing to learn.
        """
        k, device = self.config.samples, users.device
        if self.pool is None:
            # The same user gets the same draws in one step: draw enough for all its rows, and give each row its own.
            unique, rows, counts = users.unique(return_inverse=True, return_counts=True)
            most = int(counts.max()) * k
            source = self._sample(unique, most, step)
            places = k * occurrence(rows)[:, None] + torch.arange(k, device=device)
        else:
            most, source, rows = self.config.pool, self.pool, users
            places = torch.randint(most, (len(users), k), generator=generator).to(device)
        places += rows[:, None] * source.shape[1]
        learners = [name for name, weight in self.weights.items() if weight is not None]
        found = [source.take(places + at * most).long() for at in range(len(learners))]
        return {name: Draws(ids, ids >= 0) for name, ids in zip(learners, found, strict=True)}

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
            catalog=self.config.catalog or None,
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
