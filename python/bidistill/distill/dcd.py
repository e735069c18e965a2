"""DCD, Dual Correction strategy for Distillation (Lee and Kim, CIKM 2021, arXiv 2109.03459): lists of the student's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bdkernels import Draws, Tanh
from bidistill.distill.lists import check_positive, distinct, drawn, joined, relaxed_list_loss
from bidistill.distill.method import Method, Request, register_method
from bidistill.distill.rrd import RelaxedRankingDistillation
from bidistill.models import Recommender


@dataclass
class DualCorrection(Method):
    """RRD, and besides it a list of what the student gets wrong: items that it ranks too low, in the teacher's order, above items
    that it ranks too high:

        loss = L_RRD + correction * L_UCD,
        L_UCD = - sum_k log( exp(u_k) / (sum_{i = k..K} exp(u_i) + sum_{j = 1..L} exp(o_j)) ),

    averaged over rows, where u_k are the student's scores of the items that it underestimates, the best by the teacher first, and
    o_j those of the items that it overestimates. Both are drawn by the difference of the student's and the teacher's ranks:
    underestimated ones with P(i) ~ tanh(max(eps (rank_S - rank_T), 0)), overestimated ones with rank_T - rank_S.

    This is the user's side of the paper. Its item side, L_ICD, the same for the users of an item, is not here: a step has items
    of users, and not users of items. That the paper adds L_RRD with weight 1, and its eps, are from memory.

    Args:
        interesting, uninteresting, scale: of RRD. under: K. over: L. eps: sharpness for each rank. correction: weight of L_UCD.
    """

    interesting: int = 40
    uninteresting: int = 40
    scale: float = 20.0
    under: int = 40
    over: int = 40
    eps: float = 1e-3
    correction: float = 1.0

    learners: ClassVar[tuple[str, ...]] = ("student",)

    def __post_init__(self) -> None:
        check_positive(self, "under", "over", "eps", "correction")
        self._rrd = RelaxedRankingDistillation(self.interesting, self.uninteresting, self.scale)

    @property
    def list_size(self) -> int:
        return self._rrd.list_size + self.under + self.over

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        guide, learner, weight = asked.scorer(teacher), asked.scorer(student), Tanh(eps=self.eps)
        over = drawn(asked, guide, learner, self.over, weight, "over")
        under = drawn(asked, learner, guide, self.under, weight, "under")  # what the teacher ranks above the student
        errors = distinct(joined(under, over))
        return {"student": joined(self._rrd.draw(teacher, student, asked)["student"], errors)}

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """See the class."""
        n, mask = self._rrd.list_size, draws.mask
        k = n + self.under
        order = self._rrd.loss(learner, scores[:, :n], guide_scores[:, :n], Draws(draws.ids[:, :n], mask[:, :n]))
        errors = relaxed_list_loss(scores[:, n:k], guide_scores[:, n:k], mask[:, n:k], scores[:, k:], mask[:, k:])
        return order + self.correction * errors


register_method("dcd", DualCorrection)
