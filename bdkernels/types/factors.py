"""The factors of a dot-product model: what every operator scores with."""

from typing import NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """Any model whose score is a dot product plus an item bias: MF, LightGCN, two-tower, CDAE's decoder.

        s(u, i) = item_bias[i] + sum_k user_factors[u, k] * item_factors[i, k]

    Attributes:
        user_factors: [B, d] float32, float16 or bfloat16; one row for each user of the batch, not the whole user table.
        item_factors: [N, d] of the same dtype: the whole catalog (or one shard of it). Rows may be strided, columns not.
        item_bias: [N] of the same dtype, or None for no bias.
    """

    user_factors: Tensor
    item_factors: Tensor
    item_bias: Tensor | None = None

    @property
    def n_items(self) -> int:
        """N, the number of items in the table."""
        return self.item_factors.shape[0]
