"""What a training step of one learner is given: its tables, a batch, and the objective."""

from typing import NamedTuple

import torch
from torch import Tensor


class DistillInputs(NamedTuple):
    """What the distillation loss is computed of; see `bdkernels.distill_loss`."""

    learner_scores: Tensor
    guide_scores: Tensor
    tau_learner: float
    tau_guide: float
    mask: Tensor | None
    kind: str


class StepInputs(NamedTuple):
    """The arguments of `torch.ops.bdkernels.fused_gradient`, in their order; what they mean says `bdkernels.fused_loss`.

    B rows, M negatives and k distilled items a row, d factors.
    """

    user_table: Tensor  # [U, d]
    item_table: Tensor  # [N, d]
    item_bias: Tensor | None  # [N]
    users: Tensor  # [B]
    positives: Tensor  # [B]
    negatives: Tensor  # [B, M]
    distill_ids: Tensor  # [B, k]
    guide_scores: Tensor  # [B, k]
    distill_mask: Tensor | None  # [B, k]
    cf: str
    distill_kind: str
    distill_weight: float
    tau_learner: float
    tau_guide: float

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.user_table, self.item_table, self.item_bias

    @property
    def named_tables(self) -> dict[str, Tensor]:
        """Without a bias where there is none."""
        found = {"user_table": self.user_table, "item_table": self.item_table}
        return found if self.item_bias is None else found | {"item_bias": self.item_bias}

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self[3:9]

    def typed(self) -> bool:
        """Whether every entry is of the Python type that it is annotated with."""
        return (
            isinstance(self.user_table, Tensor)
            and isinstance(self.item_table, Tensor)
            and (self.item_bias is None or isinstance(self.item_bias, Tensor))
            and isinstance(self.users, Tensor)
            and isinstance(self.positives, Tensor)
            and isinstance(self.negatives, Tensor)
            and isinstance(self.distill_ids, Tensor)
            and isinstance(self.guide_scores, Tensor)
            and (self.distill_mask is None or isinstance(self.distill_mask, Tensor))
            and type(self.cf) is type(self.distill_kind) is str
            and type(self.distill_weight) is type(self.tau_learner) is type(self.tau_guide) is float
        )

    def listed(self) -> Tensor:
        """[B, 1 + M + k] item ids. The positive, touched anyway, stands in for what is masked: its slope there is 0."""
        positives, distilled = self.positives[:, None], self.distill_ids
        live = distilled if self.distill_mask is None else distilled.where(self.distill_mask, positives)
        return torch.cat([positives, self.negatives, live], 1)
