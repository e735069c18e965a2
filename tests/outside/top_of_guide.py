"""A distillation method of one's own: each learner follows the order of its guide's best unseen items, listwise."""

from dataclasses import dataclass

from bidistill import Method, Request, register_method
from torch import Tensor

from bdkernels import Draws, topk


@dataclass
class TopOfGuide(Method):
    tau: float = 1.0  # temperature of both models' scores

    def draw(self, teacher, student, asked: Request) -> dict[str, Draws]:
        """The best `asked.k` items of the other model; -1 where a user has fewer unseen ones."""
        guides, found = {"student": teacher, "teacher": student}, {}
        for learner in asked.learners:
            ids = topk(asked.scorer(guides[learner]), asked.k, asked.seen).ids
            found[learner] = Draws(ids, ids >= 0)
        return found

    def loss(self, learner: str, scores: Tensor, guide_scores: Tensor, draws: Draws) -> Tensor:
        """Cross entropy of the two softmaxes over the drawn items, averaged over rows."""
        own, guide = ((s / self.tau).masked_fill(~draws.mask, -1e9) for s in (scores, guide_scores))
        rows = -(guide.softmax(1) * own.log_softmax(1) * draws.mask).sum(1)
        return rows.mean()


register_method("top_of_guide", TopOfGuide)
