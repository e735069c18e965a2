"""RCE-KD (Zhu and Zhang, arXiv 2509.20989): cross entropy over items among which the student's own best ones are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdkernels import Draws, Tanh, topk
from bidistill.distill.lists import check_positive, cross_entropy, distinct, drawn, joined, of_ids
from bidistill.distill.method import Method, Request, register_method
from bidistill.models import Recommender


@dataclass
class RejuvenatedCrossEntropy(Method):
    """Cross entropy over a set of items bounds the NDCG in that set if it is closed: with an item, it has all that the student
    ranks higher. The teacher's best K items are no such set, so they are split by whether they are among the student's best K:

        loss = (1 - g) CE(the student's best K) + g CE(the others of the teacher's best K, and A),
        CE(J) = - sum_{i in J} p_i log q_i,   p, q = softmaxes over J of the teacher's scores / tau and of the student's,
        g = exp(-beta |both| / K),

    averaged over rows, where |both| counts the items that are among the best K of both. A are E items drawn by both models: those
    that the student ranks above the teacher, with P(i) ~ tanh(max(eps (rank_T - rank_S), 0)); they stand for what the student
    ranks above the teacher's items and thus nearly close the set.

    From the paper are the split, the two cross entropies, that the first set is closed, that the second is completed by a draw of
    both models, and that g adapts to each user. The exact distribution of A, and the form of g, are of this library: the paper's
    own were not at hand.

    Args:
        top: K. drawn: E. tau: temperature of the teacher. beta: how fast g falls. eps: sharpness for each rank.
    """

    top: int = 40
    drawn: int = 40
    tau: float = 1.0
    beta: float = 1.0
    eps: float = 1e-3

    learners: ClassVar[tuple[str, ...]] = ("student",)

    def __post_init__(self) -> None:
        check_positive(self, "top", "drawn", "tau", "beta", "eps")

    @property
    def list_size(self) -> int:
        return 2 * self.top + self.drawn

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        """The student's best, the teacher's best without these, and A without the latter."""
        guide, learner = asked.scorer(teacher), asked.scorer(student)
        own, theirs = (of_ids(topk(scorer, self.top, asked.seen).ids) for scorer in (learner, guide))
        others = of_ids(distinct(joined(own, theirs)).ids[:, self.top :])
        completed = distinct(joined(others, drawn(asked, guide, learner, self.drawn, Tanh(eps=self.eps))))
        return {"student": joined(own, completed)}

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """See the class."""
        k, mask, guide = self.top, draws.mask, guide_scores / self.tau
        # The teacher's best are as many as the student's, and those of both are masked among them.
        both = (mask[:, :k].sum(1) - mask[:, k : 2 * k].sum(1)).clamp(min=0)
        share = torch.exp(-self.beta * both / k)
        first = cross_entropy(scores[:, :k], guide[:, :k], mask[:, :k])
        second = cross_entropy(scores[:, k:], guide[:, k:], mask[:, k:])
        return ((1 - share) * first + share * second).mean()


register_method("rce_kd", RejuvenatedCrossEntropy)
