"""How many users have two items both: counted for a block of items at a time, so that items x items never has to be whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bdkernels import Seen

CELLS = 1 << 22  # of a block of counts
PAIRS = 1 << 22  # pairs that are listed at a time


def cooccurrences(train: Seen, n_items: int) -> Iterator[tuple[int, Tensor]]:
    """The number of a block's first item, and counts [block, n_items] float32: how many users have the item of the row and that
    of the column. A count with itself is that of the item's users. Counts are exact up to 2^24.

    Args:
        train: the items of each user.
    """
    device = train.indptr.device
    users_of = Seen.from_pairs(train.indices, train.row_of_each(), n_items)
    size = max(1, CELLS // n_items)
    for first in range(0, n_items, size):
        block = torch.arange(first, min(n_items, first + size), device=device)
        users = users_of.rows(block)
        found = torch.zeros(len(block) * n_items, device=device)
        lengths = shares(train.counts()[users.indices], PAIRS)
        for rows, some in zip(users.row_of_each().split(lengths), users.indices.split(lengths), strict=True):
            items = train.rows(some)
            cells = torch.repeat_interleave(rows * n_items, items.counts()) + items.indices
            found.index_add_(0, cells, torch.ones_like(cells, dtype=torch.float32))
        yield first, found.view(len(block), n_items)


def shares(sizes: Tensor, most: int) -> list[int]:
    """Into how long parts to split rows of these sizes, [n] int64, so that those of a part have about `most` in all."""
    turns = torch.div(torch.cumsum(sizes, 0), most, rounding_mode="floor")
    counts: list[int] = turns.unique_consecutive(return_counts=True)[1].tolist()
    return counts or [0]
