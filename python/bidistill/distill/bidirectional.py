"""Bidirectional distillation: which items the two models learn from each other."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bdkernels import Draws, Exp, Linear, PopularityStrata, RankOnly, Seen, Tanh, Uniform, Weight, occurrence
from bidistill.config import DistillConfig, WeightConfig
from bidistill.distributed.partition import Partition, Share
from bidistill.models import Recommender

PROBES = 32  # users, and items of each, by which the error of estimated ranks is measured
CHUNK = 1024  # users sampled in one call: enough that the kernels are at their best, few enough that no step waits long


class Bidirectional:
    """Draws items by the discrepancy of the two models' ranks: for each model those on which it follows the other.

    Args:
        config: weights, samples for each positive, when to resample.
        seen: CSR rows of all users; seen items are never drawn. n_users rows.
        seed: of the draws.
        partition: which users and items are here; the models, `seen` and the pool contain only those; all by default.
        popularity: [n_items] training interactions of each item, of all users; those of `seen` unless given.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: Recommender,
        student: Recommender,
        seen: Seen,
        seed: int,
        partition: Partition | None = None,
        popularity: Tensor | None = None,
    ) -> None:
        self.config, self.teacher, self.student, self.seen, self.seed = config, teacher, student, seen, seed
        self.partition = partition or Partition.whole(teacher.n_users, teacher.n_items)
        self.weights = {
            "student": make_weight(config.to_student, config.side) if config.lambda_student else None,
            "teacher": make_weight(config.to_teacher, config.side) if config.lambda_teacher else None,
        }
        self.subset = int(config.subset)  # how many items ranks are counted over; 0: all
        if self.subset >= self.partition.n_items:
            self.subset = 0
        if self.subset:
            counts = (
                torch.bincount(seen.indices, minlength=self.partition.n_items) if popularity is None else popularity
            )
            self.strata = PopularityStrata(counts)
        self.pool: Tensor | None = None  # [n_users, directions * config.pool] int32, -1 where there is no draw (yet)

    def resample(self, step: int, steps: int) -> None:
        """Draw anew for the users whose turn comes before this step; without a pool, do nothing.

        Every user's turn comes once in `resample_every` epochs: all at their start, or with resample "gradual" CHUNK users at a
        time at even distances, so that no step waits for a whole resampling. Whose turn it is depends on the step's number alone,
        and the pool is all the state there is, so a resumed run goes on as it would have. In the first `resample_every` epochs of
        "gradual", users whose turn has not come yet are not distilled.

        Args:
            step: number of the step in the joint phase, from 0.
            steps: how many steps an epoch has.
        """
        if self.config.resample_every == 0:
            return
        device = self.seen.indptr.device
        if self.pool is None:
            shape = len(self.partition.users), sum(w is not None for w in self.weights.values()) * self.config.pool
            self.pool = torch.full(shape, -1, dtype=torch.int32, device=device)
        cycle = self.config.resample_every * steps
        first, last = due(step % cycle, cycle if self.config.resample == "gradual" else 1, self.partition.n_users)
        for turn in self.partition.turns(first, last, CHUNK):
            users = torch.arange(turn.start, turn.stop, device=device) - self.partition.users.start
            drawn = self._sample(users, self.config.pool, step // cycle * self.config.resample_every)
            self.pool[users] = drawn.int()

    def draw(
        self, users: Tensor, step: int, generator: torch.Generator, share: Share | None = None
    ) -> dict[str, Draws]:
        """Items for users [B] int64 (repeats allowed), `samples` for each row and direction.

        Args:
            step: number of the training step; other steps draw other items.
            generator: picks places in the pool, where there is one.
            share: whose users these are, if they are not a whole batch: they draw what they draw in the whole batch.

        Returns:
            {learner: [B, samples] draws} of the directions that are on; id -1 and mask False where there is nothing to learn.
        """
        k, device = self.config.samples, users.device
        share = share or Share(users, None, users)
        learners = [name for name, weight in self.weights.items() if weight is not None]
        if self.pool is None:  # the rows of a user are numbered in the whole batch, so that each draws items of its own
            found = self._sample(users, k, step, share.keep(occurrence(share.everyone))).split(k, 1)
        else:
            most = self.config.pool
            places = share.keep(torch.randint(most, (len(share.everyone), k), generator=generator)).to(device)
            places += users[:, None] * self.pool.shape[1]
            found = tuple(self.pool.take(places + at * most).long() for at in range(len(learners)))
        return {name: Draws(ids, ids >= 0) for name, ids in zip(learners, found, strict=True)}

    def rank_error(self, step: int) -> float | None:
        """How far the ranks that draws go by are off, as a share of the catalog: the mean over PROBES items of as many users
        under both models; None where they are exact.

        Args:
            step: number of a step or resampling, which picks the items that are counted, as in `draw`.
        """
        if not self.subset:
            return None
        generator = torch.Generator().manual_seed(step)
        share = self.partition.share(torch.randint(self.teacher.n_users, (PROBES,), generator=generator))
        users = share.users.to(self.seen.indptr.device)
        seen = self.seen.rows(users)
        nth = share.keep(torch.randint(self.teacher.n_items, (PROBES, PROBES), generator=generator)).to(users.device)
        ids = seen.nth_unseen(nth % (self.teacher.n_items - seen.counts()).clamp(min=1)[:, None], self.teacher.n_items)
        counted = self._counted(step)
        assert counted is not None
        errors = (
            self.partition.rank_errors(model.factors(users), ids.clamp(min=0), counted, seen)
            for model in (self.teacher, self.student)
        )
        found = torch.stack(list(errors))[:, (ids >= 0).all(1)]
        total, n = self.partition.processes.sums("rank error", [float(found.sum()), float(found.numel())])
        return total / n if n else math.nan

    def _counted(self, step: int) -> Tensor | None:
        """The items that ranks are counted over: some of every popularity, others for each step or resampling; None: all."""
        if not self.subset:
            return None
        return self.strata.draw(self.subset, self.seed, step).to(self.seen.indptr.device)

    def _sample(self, users: Tensor, k: int, step: int, occurrence: Tensor | None = None) -> Tensor:
        """[B, directions * k] ids, -1 where none: to the student first."""
        samples = self.partition.sample(
            self.teacher.factors(users),
            self.student.factors(users),
            k,
            self.seen.rows(users),
            to_student=self.weights["student"],
            to_teacher=self.weights["teacher"],
            seed=self.seed,
            step=step,
            users=users,
            occurrence=occurrence,
            subset=self._counted(step),
            independent_directions=self.config.independent_directions,
        )
        return torch.cat([draws.ids for draws in samples if draws is not None], dim=1)


def due(place: int, places: int, n_users: int) -> tuple[int, int]:
    """The range of users whose turn it is at this place: whole CHUNKs, spread evenly over `places`, none after the last."""
    chunks = -(-n_users // CHUNK)
    first, last = (min(n_users, CHUNK * -(-chunks * min(at, places) // places)) for at in (place, place + 1))
    return first, last


def make_weight(config: WeightConfig, side_name: str) -> Weight:
    """The weight family that the options describe."""
    side: Literal["over", "under"] = "under" if side_name == "under" else "over"
    if config.kind == "uniform":
        return Uniform()
    if config.kind == "rank_only":
        return RankOnly(config.mu)
    if config.kind == "linear":
        return Linear(side=side)
    family = Tanh if config.kind == "tanh" else Exp
    return family(config.alpha, eps=config.eps, side=side)
