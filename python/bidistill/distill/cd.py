"""CD, Collaborative Distillation (Lee, Choi, Lee, Shin, ICDM 2019): soft targets on items drawn by their rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bdkernels import Draws, RankOnly
from bidistill.distill.lists import check_positive, drawn
from bidistill.distill.method import Method, Request, register_method
from bidistill.models import Recommender


@dataclass
class CollaborativeDistillation(Method):
    """Unseen items are drawn with chances that fall with their rank, and learned by the teacher's probabilities:

        P(i) ~ exp(-(rank(i) - 1) / mu),   loss = - mean over items of q log sigmoid(s) + (1 - q) log(1 - sigmoid(s)),

    where s is the student's score over distill.tau_learner, and q = sigmoid(teacher's score / distill.tau_guide) the target. The
    rank is the teacher's, or in student-guided training the student's, whose own best items are then corrected. The loss is
    `bdkernels.distill_loss`, so steps may be fused, and distill.pool and distill.samples say how many items there are.

    The paper's target has a shift besides the temperature, which is left out: its exact form is not known to us.

    Args:
        mu: scale of ranks. guided: by whose ranks items are drawn, "teacher" or "student".
    """

    mu: float = 10.0
    guided: str = "teacher"

    learners: ClassVar[tuple[str, ...]] = ("student",)

    def __post_init__(self) -> None:
        check_positive(self, "mu")
        if self.guided not in ("teacher", "student"):
            raise ValueError(f"guided must be teacher or student, found {self.guided!r}")

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        """By `RankOnly`, whose ranks are those of the guide."""
        pair = (teacher, student) if self.guided == "teacher" else (student, teacher)
        guide, other = (asked.scorer(model) for model in pair)
        return {"student": drawn(asked, guide, other, asked.k, RankOnly(self.mu))}


register_method("cd", CollaborativeDistillation)
