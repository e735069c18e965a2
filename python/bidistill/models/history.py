"""Models that score an item for a user by the items that the user has: a sum of one weight for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from bdkernels import Seen
from bidistill.models.cooccurrence import shares

CELLS = 1 << 22  # weights that are held at a time


class HistoryModel(nn.Module):
    """score(u, i) = sum over the training items h of user u of W[h, i], in the order of their ids.

    The weights are a subclass's. The items of each user are a part of the state, so that a saved model scores by itself.

    Args:
        n_users, n_items: sizes of the data. Until it is fitted, no user has an item.
    """

    indptr: Tensor
    items: Tensor

    def __init__(self, n_users: int, n_items: int) -> None:
        super().__init__()
        self.n_users, self.n_items = n_users, n_items
        self.register_buffer("indptr", torch.zeros(n_users + 1, dtype=torch.int64))
        self.register_buffer("items", torch.zeros(0, dtype=torch.int64))

    def remember(self, train: Seen) -> None:
        """Take the training items of the users."""
        self.indptr.copy_(train.indptr)
        self.items = train.indices.to(self.indptr.device, copy=True)

    def weights_of(self, items: Tensor, others: Tensor) -> Tensor:
        """W[h, i], [n, C] float32, of items h [n] int64 and others i [n, C] int64."""
        raise NotImplementedError

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        found = [items.new_zeros(0, items.shape[1], dtype=torch.float32)]
        for rows, has in self.parts(users, items.shape[1]):
            weights = self.weights_of(has.indices, items[rows][has.row_of_each()])
            found.append(sums(weights, has.indptr))
        return torch.cat(found)

    def parts(self, users: Tensor, width: int) -> Iterator[tuple[Tensor, Seen]]:
        """The rows [B] int64 of users and their items, so many that a weight for each of `width` items is no more than CELLS."""
        has = Seen(self.indptr, self.items)
        for rows in torch.arange(len(users), device=users.device).split(shares(has.counts()[users] * width, CELLS)):
            yield rows, has.rows(users[rows])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if isinstance(found := state_dict.get(f"{prefix}items"), Tensor):
            self.items = self.items.new_empty(found.shape)  # as many as there were when it was fitted
        super()._load_from_state_dict(state_dict, prefix, *others)


def sums(values: Tensor, indptr: Tensor) -> Tensor:
    """[B, C]: the sums of rows indptr[b] to indptr[b + 1] - 1 of values [n, C], added one after the other."""
    if not values.numel():  # embedding_bag refuses no rows, and on several threads no columns
        return values.new_zeros(len(indptr) - 1, values.shape[1])
    order = torch.arange(len(values), device=values.device)
    return embedding_bag(order, values, indptr, mode="sum", include_last_offset=True)
