"""The factors of a dot-product model: what every operator scores with."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Any model whose score is a dot product plus an item bias: MF, LightGCN, two-tower, CDAE's decoder.

        s(u, i) = item_bias[i] + sum_k user_factors[u, k] * item_factors[i, k]

    Attributes:
        user_factors: [B, d] float32, float16 or bfloat16; one row for each user of the batch, not the whole user table.
        item_factors: [N, d] of the same dtype: the whole catalog (or one shard of it). Rows may be strided, columns not.
        item_bias: [N] of the same dtype, or [N, 1] as torch.nn.Embedding(N, 1) has it, or None for no bias.

    `torch.load` reads what `torch.save` wrote, also with weights_only=True.
    """

    user_factors: Tensor
    item_factors: Tensor
    item_bias: Tensor | None = None

    @property
    def n_items(self) -> int:
        """N, the number of items in the table."""
        return self.item_factors.shape[0]

    @property
    def flat_bias(self) -> Tensor | None:
        """The bias as the operators take it: [N] where it is [N, 1]; any other is left as it is."""
        bias = self.item_bias
        return bias.squeeze(1) if bias is not None and bias.dim() == 2 and bias.shape[1] == 1 else bias

    def to(self, device: torch.device | str) -> "Factors":
        """The same factors on another device."""
        bias = None if self.item_bias is None else self.item_bias.to(device)
        return Factors(self.user_factors.to(device), self.item_factors.to(device), bias)


torch.serialization.add_safe_globals([Factors])
