"""Matrix factorisation with an item bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bdkernels import Factors
from bdkernels.stored import take

INITIAL_STD = 0.01  # scores start near 0, where neither BCE nor BPR is saturated


class MF(nn.Module):
    """score(u, i) = <user_factors[u], item_factors[i]> + item_bias[i].

    Args:
        n_users, n_items: sizes of the tables.
        dim: length of a user's or an item's vector.
        seed: of the initial values.
        sparse: give sparse gradients, whose cost does not grow with the tables; for SparseAdam, Adagrad or SGD.
    """

    def __init__(self, n_users: int, n_items: int, dim: int, *, seed: int = 0, sparse: bool = False) -> None:
        super().__init__()
        self.n_users, self.n_items, self.dim, self.sparse = n_users, n_items, dim, sparse
        generator = torch.Generator().manual_seed(seed)
        self.user_factors = nn.Embedding.from_pretrained(_initial(n_users, dim, generator), freeze=False, sparse=sparse)
        self.item_factors = nn.Embedding.from_pretrained(_initial(n_items, dim, generator), freeze=False, sparse=sparse)
        self.item_bias = nn.Embedding.from_pretrained(torch.zeros(n_items, 1), freeze=False, sparse=sparse)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        dots = torch.bmm(self.item_factors(items), self.user_factors(users).unsqueeze(2))  # [B, C, 1]
        return (dots + self.item_bias(items)).squeeze(2)

    def factors(self, users: Tensor) -> Factors:
        """Rows of these users ([B] int64) and the item table, detached."""
        user_table, item_table, item_bias = self.tables()
        return Factors(take(user_table, users), item_table, item_bias)

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters themselves, detached: [n_users, dim], [n_items, dim], [n_items]."""
        parameters = self.user_factors.weight, self.item_factors.weight, self.item_bias.weight.squeeze(1)
        user_table, item_table, item_bias = (each.detach() for each in parameters)
        return user_table, item_table, item_bias

    def row_kinds(self) -> dict[str, str]:
        """The user table grows with the users, the item table and its bias with the items."""
        return {"user_factors.weight": "users", "item_factors.weight": "items", "item_bias.weight": "items"}

    def config(self) -> dict[str, Any]:
        """What `build_model` makes an equal model from."""
        return {
            "kind": "mf",
            "n_users": self.n_users,
            "n_items": self.n_items,
            "dim": self.dim,
            "sparse": self.sparse,
        }


def _initial(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """[n, dim] normal values; on the meta device, where a model is made whose tables are elsewhere, none."""
    table = torch.empty(n, dim)
    return table if table.is_meta else table.normal_(generator=generator).mul_(INITIAL_STD)
