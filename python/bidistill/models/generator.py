"""The model that made the data up: what any other can reach at best."""

from __future__ import annotations

from torch import Tensor, nn

from bdkernels import Factors


class Generator(nn.Module):
    """score(u, i) = <user_factors[u], item_factors[i]>.

    Args:
        user_factors, item_factors: float32 [n_users, d], [n_items, d], such as `generate` gives: of the users and items that are
            here, see `MF`.
        n_users, n_items: of the whole data; by default as many as are here.
    """

    user_factors: Tensor
    item_factors: Tensor

    def __init__(
        self, user_factors: Tensor, item_factors: Tensor, n_users: int | None = None, n_items: int | None = None
    ) -> None:
        super().__init__()
        self.n_users = len(user_factors) if n_users is None else n_users
        self.n_items = len(item_factors) if n_items is None else n_items
        self.register_buffer("user_factors", user_factors)
        self.register_buffer("item_factors", item_factors)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        return (self.user_factors[users][:, None] * self.item_factors[items]).sum(2)

    def factors(self, users: Tensor) -> Factors:
        """The users' factors and those of all items."""
        return Factors(self.user_factors[users], self.item_factors)
