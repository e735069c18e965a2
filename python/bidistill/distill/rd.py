"""RD, Ranking Distillation (Tang and Wang, KDD 2018): the teacher's best items are further positives of the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bdkernels import Draws, Seen, Uniform, topk
from bidistill.distill.lists import check_positive, drawn, joined, of_ids
from bidistill.distill.method import Method, Request, register_method
from bidistill.distributed.partition import Partition
from bidistill.models import Recommender


@dataclass
class RankingDistillation(Method):
    """The student learns the teacher's `top` best unseen items as positives, with the paper's hybrid weights:

        loss = - sum_{r = 1..K} w_r log sigmoid(s_r),   w_r = a_r b_r / sum_i a_i b_i,
        a_r = exp(-r / scale),   b_r = tanh(max(mu (rank_r - r), 0)),

    averaged over rows, where s_r is the student's score of the teacher's r-th best item, and rank_r is the student's rank of it,
    estimated as in the paper: floor(n (N - 1) / E) + 1, if n of E uniformly drawn unseen items score higher among N in all. An
    item that the student ranks as high as the teacher has no weight; where none has any, the loss is 0.

    The paper begins with the weights a_r alone while the student is untrained. Here it is trained before, so b_r counts from
    the first step on. The default values are of the size that the paper uses, and not taken from one of its data sets.

    Args:
        top: K. counted: E. scale: of places in the list, lambda in the paper. mu: sharpness of a difference of ranks.
    """

    top: int = 10
    counted: int = 100
    scale: float = 10.0
    mu: float = 0.1

    learners: ClassVar[tuple[str, ...]] = ("student",)

    def __post_init__(self) -> None:
        check_positive(self, "top", "counted", "scale", "mu")

    @property
    def list_size(self) -> int:
        return self.top + self.counted

    def prepare(self, seen: Seen, popularity: Tensor, partition: Partition, seed: int) -> None:
        self.n_items = partition.n_items

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        guide = asked.scorer(teacher)
        best = of_ids(topk(guide, self.top, asked.seen).ids)
        return {"student": joined(best, drawn(asked, guide, guide, self.counted, Uniform()))}

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """See the class."""
        best, mask, counted = scores[:, : self.top], draws.mask[:, : self.top], draws.mask[:, self.top :]
        with torch.no_grad():
            above = ((scores[:, None, self.top :] > best[:, :, None]) & counted[:, None]).sum(2)
            ranks = above * (self.n_items - 1) // counted.sum(1, keepdim=True).clamp(min=1) + 1
            places = torch.arange(1, self.top + 1, device=scores.device)
            weights = torch.exp(-places / self.scale) * torch.tanh((self.mu * (ranks - places)).clamp(min=0)) * mask
            weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return -(weights * logsigmoid(best)).sum(1).mean()


register_method("rd", RankingDistillation)
