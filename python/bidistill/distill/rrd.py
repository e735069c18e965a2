"""RRD, Relaxed Ranking Distillation (Kang, Hwang, Kweon, Yu: DE-RRD, CIKM 2020): interesting items in order, above others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bdkernels import Draws, RankOnly, Uniform
from bidistill.distill.lists import check_positive, distinct, drawn, joined, relaxed_list_loss
from bidistill.distill.method import Method, Request, register_method
from bidistill.models import Recommender


@dataclass
class RelaxedRankingDistillation(Method):
    """The student learns the teacher's order of K interesting items, all of them above L uninteresting ones, which it need not
    order among themselves:

        loss = - sum_k log( exp(s_k) / (sum_{i = k..K} exp(s_i) + sum_{j = 1..L} exp(z_j)) ),

    averaged over rows: s_k is the student's score of the k-th interesting item by the teacher's order, z_j that of an
    uninteresting one. Interesting items are drawn by the teacher's rank with P(i) ~ exp(-rank(i) / scale), uninteresting ones
    with equal chances from the other unseen items. The paper draws without replacement, and the uninteresting ones below the
    interesting ones; here draws with replacement are made distinct, so that a list may be shorter, and an uninteresting item may
    be a good one by chance, which is rare in a large catalog. Default values are of the size that the paper uses.

    Args:
        interesting: K. uninteresting: L. scale: of ranks, T in the paper.
    """

    interesting: int = 40
    uninteresting: int = 40
    scale: float = 20.0

    learners: ClassVar[tuple[str, ...]] = ("student",)

    def __post_init__(self) -> None:
        check_positive(self, "interesting", "uninteresting", "scale")

    @property
    def list_size(self) -> int:
        return self.interesting + self.uninteresting

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        guide = asked.scorer(teacher)
        best = drawn(asked, guide, guide, self.interesting, RankOnly(self.scale))
        others = drawn(asked, guide, guide, self.uninteresting, Uniform(), "uninteresting")
        return {"student": distinct(joined(best, others))}

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """See the class."""
        k, mask = self.interesting, draws.mask
        return relaxed_list_loss(scores[:, :k], guide_scores[:, :k], mask[:, :k], scores[:, k:], mask[:, k:])


register_method("rrd", RelaxedRankingDistillation)
