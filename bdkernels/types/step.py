"""What a training step of one learner is given: its tables, a batch, and the objective."""

from typing import NamedTuple

import torch
from torch import Tensor


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
    distill_weight: float
    tau_learner: float
    tau_guide: float

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.user_table, self.item_table, self.item_bias

    @property
    def named_tables(self) -> dict[str, Tensor]:
        """Without a bias where there is none."""
        return {name: t for name, t in zip(self._fields, self.tables, strict=False) if t is not None}

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self[3:9]

    @property
    def objective(self) -> tuple[bool, float, float, float]:
        """As the kernels take it: whether cf is "bpr", and the numbers."""
        return self.cf == "bpr", self.distill_weight, self.tau_learner, self.tau_guide

    def listed(self) -> Tensor:
        """[B, 1 + M + k] item ids. The positive, touched anyway, stands in for what is masked: its slope there is 0."""
        positives, distilled = self.positives[:, None], self.distill_ids
        live = distilled if self.distill_mask is None else distilled.where(self.distill_mask, positives)
        return torch.cat([positives, self.negatives, live], 1)
