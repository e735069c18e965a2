"""Matrix factorisation with an item bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdkernels import Factors
from bdkernels.storage.mapped import take
from bidistill.registry import MODELS
from bidistill.seeds import seed_of

INITIAL_STD = 0.01  # scores start near 0, where neither BCE nor BPR is saturated
BLOCK = 1 << 16  # rows that share a generator, so that any part of a table can be made without the rest


class MF(nn.Module):
    """score(u, i) = <user_factors[u], item_factors[i]> + item_bias[i].

    Args:
        n_users, n_items: sizes of the tables.
        dim: length of a user's or an item's vector.
        seed: of the initial values.
        sparse: give sparse gradients, whose cost does not grow with the tables; for SparseAdam, Adagrad or SGD.
        users, items: the rows that are here, where the tables lie on several processes; all unless given. A user or an item is
            then called by its place among them; n_users and n_items remain those of the whole.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int,
        *,
        seed: int = 0,
        sparse: bool = False,
        users: range | None = None,
        items: range | None = None,
    ) -> None:
        super().__init__()
        self.n_users, self.n_items, self.dim, self.sparse = n_users, n_items, dim, sparse
        if type(self) is MF:  # a subclass may score in another way
            self.built_from = {"kind": "mf", "n_users": n_users, "n_items": n_items, "dim": dim, "sparse": sparse}
        users, items = (range(n) if rows is None else rows for n, rows in ((n_users, users), (n_items, items)))
        user_rows = initial_rows(n_users, users, dim, seed_of(seed, "users"))
        item_rows = initial_rows(n_items, items, dim, seed_of(seed, "items"))
        self.user_factors = nn.Embedding.from_pretrained(user_rows, freeze=False, sparse=sparse)
        self.item_factors = nn.Embedding.from_pretrained(item_rows, freeze=False, sparse=sparse)
        self.item_bias = nn.Embedding.from_pretrained(torch.zeros(len(items), 1), freeze=False, sparse=sparse)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        dots = torch.bmm(self.item_factors(items), self.user_factors(users).unsqueeze(2))  # [B, C, 1]
        scores: Tensor = (dots + self.item_bias(items)).squeeze(2)
        return scores

    def factors(self, users: Tensor) -> Factors:
        """Rows of these users ([B] int64) and the item table, detached."""
        user_table, item_table, item_bias = self.tables()
        return Factors(take(user_table, users), item_table, item_bias)

    def trained_factors(self, users: Tensor) -> Factors:
        """The same with their gradients: rows of these users ([B] int64), and the parameters of all items."""
        return Factors(self.user_factors(users), self.item_factors.weight, self.item_bias.weight)

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters themselves, detached: [n_users, dim], [n_items, dim], [n_items]."""
        user_table, item_table = self.user_factors.weight.detach(), self.item_factors.weight.detach()
        return user_table, item_table, self.item_bias.weight.detach().squeeze(1)

    def row_kinds(self) -> dict[str, str]:
        """The user table grows with the users, the item table and its bias with the items."""
        return {"user_factors.weight": "users", "item_factors.weight": "items", "item_bias.weight": "items"}


def initial_rows(n: int, rows: range, dim: int, seed: int) -> Tensor:
    """[len(rows), dim] rows of a table [n, dim] of normal values, the same whichever others are made.

    On the meta device, where a model is made whose tables are elsewhere, they have no values.
    """
    table = torch.empty(len(rows), dim)
    if table.is_meta:
        return table
    for start in range(rows.start // BLOCK * BLOCK, rows.stop, BLOCK):
        first, last = max(start, rows.start), min(start + BLOCK, rows.stop)
        block = torch.empty(min(BLOCK, n - start), dim)
        block.normal_(0.0, INITIAL_STD, generator=torch.Generator().manual_seed(seed_of(seed, start // BLOCK)))
        table[first - rows.start : last - rows.start] = block[first - start : last - start]
    return table


@dataclass(frozen=True)
class MFSettings:
    """None besides `dim`, which every kind of model has."""


MODELS.register("mf", MF, MFSettings)
