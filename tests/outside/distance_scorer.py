"""A scorer that is no dot product: the nearer an item is to the user, the better."""

from torch import Tensor


class DistanceScorer:
    """score(u, i) = -|users[u] - items[i]|^2, for users [B, d] and items [N, d] float32."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users, self.items = users, items
        self.n_rows, self.n_items, self.device = len(users), len(items), items.device

    def block(self, first: int, stop: int) -> Tensor:
        return -(self.users[:, None] - self.items[first:stop]).square().sum(2)

    def take(self, rows: Tensor) -> "DistanceScorer":
        return DistanceScorer(self.users[rows], self.items)
