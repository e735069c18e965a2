"""Bidirectional distillation: which items the two models learn from each other (arXiv 2106.02870)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bdkernels import Draws, Exp, Linear, PopularityStrata, RankOnly, Scorer, Seen, Tanh, Uniform, Weight, rank_error
from bidistill.config import DistillConfig, WeightConfig
from bidistill.distill.method import GUIDES, Column, Method, Request, register_method
from bidistill.distributed.partition import Partition
from bidistill.models import Recommender
from bidistill.models.scoring import scorer_of
from bidistill.seeds import seed_of

PROBES = 32  # users, and items of each, by which the error of estimated ranks is measured


class Bidirectional(Method):
    """Draws items by the discrepancy of the two models' ranks: for each model those on which it follows the other.

    Args:
        to_student, to_teacher: how the gap of an item's ranks becomes its weight, in each direction.
        subset: how many items ranks are counted over; 0: all, exactly.
        independent_directions: draw the two directions from proposals of their own.
        top: how many of the items that it is asked for are the guide's best unseen ones instead.
        uniform: how many are drawn with equal chances from the unseen ones instead.
    """

    options = (
        "side",
        "subset",
        "auto_share",
        "independent_directions",
        "to_student",
        "to_teacher",
        "pool_top",
        "pool_uniform",
    )
    divisible = True

    def __init__(
        self,
        to_student: Weight = Tanh(),  # noqa: B008 (immutable)
        to_teacher: Weight = Exp(),  # noqa: B008
        *,
        subset: int = 0,
        independent_directions: bool = False,
        top: int = 0,
        uniform: int = 0,
    ) -> None:
        self.weights = {"student": to_student, "teacher": to_teacher}
        self.top, self.uniform = top, uniform
        self.subset, self.independent_directions = subset, independent_directions

    @classmethod
    def from_config(cls, config: DistillConfig) -> Bidirectional:
        """As the options of [distill] say; ranks are exact while `subset` is "auto"."""
        return cls(
            make_weight(config.to_student, config.side),
            make_weight(config.to_teacher, config.side),
            subset=0 if config.subset == "auto" else int(config.subset),
            independent_directions=config.independent_directions,
            top=config.pool_top,
            uniform=config.pool_uniform,
            **config.args,
        )

    def prepare(self, seen: Seen, popularity: Tensor, partition: Partition, seed: int) -> None:
        self.seen, self.partition, self.seed = seen, partition, seed
        self.strata: PopularityStrata | None = None
        if 0 < self.subset < partition.n_items:
            self.strata = PopularityStrata(popularity)

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        n_items, rest = self.partition.n_items, asked.k - self.top - self.uniform
        if rest < 0:
            raise ValueError(f"top and uniform: expected at most {asked.k} together, got {self.top} and {self.uniform}")
        scorers = {
            name: scorer_of(each, asked.queries, n_items) for name, each in (("teacher", teacher), ("student", student))
        }
        parts: list[Mapping[str, Draws]] = []
        if rest:
            counted = self._counted(asked.seed, asked.step)
            parts.append(self._sampled(scorers, asked, rest, self.weights, asked.seed, counted))
        if self.top:
            parts.append({name: self._best(scorers[GUIDES[name]], asked.seen) for name in asked.learners})
        if (
            self.uniform
        ):  # their ranks do not matter, so they are counted over one item; the seed makes proposals of their own
            weights = {"student": Uniform(), "teacher": Uniform()}
            seed, one = seed_of(asked.seed, "uniform"), torch.zeros(1, dtype=torch.int64, device=asked.users.device)
            parts.append(self._sampled(scorers, asked, self.uniform, weights, seed, one))
        if len(parts) == 1:
            return dict(parts[0])
        return {
            name: Draws(*(torch.cat(pieces, 1) for pieces in zip(*(part[name] for part in parts), strict=True)))
            for name in asked.learners
        }

    def _sampled(
        self,
        scorers: Mapping[str, Scorer],
        asked: Request,
        k: int,
        weights: Mapping[str, Weight],
        seed: int,
        counted: Tensor | None,
    ) -> dict[str, Draws]:
        """k draws by weights for each of `asked.learners`, by ranks over the items `counted`; None: all."""
        samples = self.partition.sample(
            scorers["teacher"],
            scorers["student"],
            k,
            asked.seen,
            to_student=weights["student"] if "student" in asked.learners else None,
            to_teacher=weights["teacher"] if "teacher" in asked.learners else None,
            seed=seed,
            step=asked.step,
            users=asked.users,
            occurrence=asked.occurrence,
            subset=counted,
            independent_directions=self.independent_directions,
        )
        return {name: draws for name, draws in samples._asdict().items() if draws is not None}

    def _best(self, guide: Scorer, seen: Seen) -> Draws:
        """The best unseen items of a guide, in their order."""
        ids = self.partition.topk(guide, self.top, seen).ids
        return Draws(ids, ids >= 0)

    def numbers(self, teacher: Recommender, student: Recommender, step: int) -> Mapping[str, float]:
        """Where ranks are estimated: how far they are off, and the bound that an error passes once in 20; both as shares of the
        catalog."""
        error = self.rank_error(teacher, student, step)
        return {} if error is None else {"rank_error": error, "rank_error_bound": rank_error(self.subset)}

    def columns(self) -> tuple[Column, ...]:
        return () if self.strata is None else (Column("rank_error", 10, "{:.2%}".format, "ranks off"),)

    def note(self) -> str:
        return "" if self.strata is None else f"ranks off by {rank_error(self.subset):.2%} at most"

    def rank_error(self, teacher: Recommender, student: Recommender, step: int) -> float | None:
        """How far the ranks that draws go by are off, as a share of the catalog: the mean over PROBES items of as many users
        under both models; None where they are exact.

        Args:
            step: picks the items that are counted, as in `draw`.
        """
        if self.strata is None:
            return None
        generator = torch.Generator().manual_seed(step)
        n_items = self.partition.n_items
        share = self.partition.share(torch.randint(self.partition.n_users, (PROBES,), generator=generator))
        users = share.users.to(self.seen.indptr.device)
        seen = self.seen.rows(users)
        nth = share.keep(torch.randint(n_items, (PROBES, PROBES), generator=generator)).to(users.device)
        ids = seen.nth_unseen(nth % (n_items - seen.counts()).clamp(min=1)[:, None], n_items)
        counted = self._counted(self.seed, step)
        assert counted is not None
        errors = (
            self.partition.rank_errors(scorer_of(model, users, n_items), ids.clamp(min=0), counted, seen)
            for model in (teacher, student)
        )
        found = torch.stack(list(errors))[:, (ids >= 0).all(1)]
        total, n = self.partition.processes.sums("rank error", [float(found.sum()), float(found.numel())])
        return total / n if n else math.nan

    def _counted(self, seed: int, step: int) -> Tensor | None:
        """The items that ranks are counted over: some of every popularity, others for each step or resampling; None: all."""
        if self.strata is None:
            return None
        return self.strata.draw(self.subset, seed, step).to(self.seen.indptr.device)


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


@dataclass(frozen=True)
class BidirectionalSettings:
    """None in [distill.args]: its options are in [distill] itself."""


register_method("bidirectional", Bidirectional, BidirectionalSettings)
