"""The items that a user has already: sparse rows of sorted item ids (CSR), excluded from every ranking."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Seen(NamedTuple):
    """Training positives, one row for each user of the batch.

    Attributes:
        indptr: [B + 1] int64; row b is indices[indptr[b] : indptr[b + 1]].
        indices: [nnz] int64 item ids, strictly increasing in a row.

    `torch.load` reads what `torch.save` wrote, also with weights_only=True.
    """

    indptr: Tensor
    indices: Tensor

    @classmethod
    def from_csr(cls, matrix: Any) -> "Seen":
        """The stored entries of a sparse matrix [n_users, n_items], whatever their values; its arrays are copied.

        Args:
            matrix: a scipy.sparse.csr_matrix or csr_array, a sparse CSR tensor of torch, or any object whose `indptr`
                [n_users + 1] and `indices` [nnz] are numpy arrays or tensors of int32 or int64. The ids of a row may stand in any
                order and repeat.

        Raises:
            ValueError: the matrix has another format, its arrays have another dtype or shape, `indptr` does not rise from 0 to
                nnz, or an item is not in [0, 2^31).
        """
        if isinstance(matrix, Tensor):
            if matrix.layout != torch.sparse_csr:
                raise ValueError(f"matrix: expected a sparse CSR tensor, got layout {matrix.layout}")
            arrays = matrix.crow_indices(), matrix.col_indices()
        else:
            if getattr(matrix, "format", "csr") != "csr" or not hasattr(matrix, "indptr"):
                found = getattr(matrix, "format", type(matrix).__name__)
                raise ValueError(f"matrix: expected the format csr, got {found}; a scipy matrix has `tocsr()`")
            arrays = matrix.indptr, matrix.indices
        indptr, indices = (_integers(name, each) for name, each in zip(("indptr", "indices"), arrays, strict=True))
        ends = [int(indptr[0]), int(indptr[-1])] if len(indptr) else []
        if ends != [0, len(indices)] or bool((indptr.diff() < 0).any()):
            raise ValueError(f"indptr: expected numbers that rise from 0 to {len(indices)}, got others")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < 2**31:
            raise ValueError(f"indices: expected ids in [0, 2^31), got {int(indices.min())} to {int(indices.max())}")
        seen = cls(indptr, indices)
        rows = seen.row_of_each()
        rising = (indices.diff() > 0) | (rows.diff() > 0)
        return seen if bool(rising.all()) else cls.from_pairs(rows, indices, len(indptr) - 1)

    @classmethod
    def from_pairs(cls, users: Tensor, items: Tensor, n_users: int) -> "Seen":
        """Rows for users 0 .. n_users - 1 from (user, item) pairs in any order; repeated pairs count once.

        Args:
            users: [n] int64 in [0, n_users).
            items: [n] int64 in [0, 2^31).
            n_users: number of rows.

        Raises:
            TypeError: n_users is no integer.
            ValueError: users or items are no integers, lengths differ, a user is not in [0, n_users) or an item not in [0, 2^31).
        """
        for name, t in (("users", users), ("items", items)):
            if t.dtype == torch.bool or t.is_floating_point() or t.is_complex():
                raise ValueError(f"{name}: expected integers, got {t.dtype}")
        if isinstance(n_users, bool) or not isinstance(n_users, (int, np.integer)):
            raise TypeError(f"n_users: expected int, got {type(n_users).__name__}")
        if users.shape != items.shape or users.dim() != 1:
            raise ValueError(
                f"users, items: expected two 1-D tensors of one length, got {list(users.shape)} and {list(items.shape)}"
            )
        if users.numel() and (int(users.min()) < 0 or int(users.max()) >= n_users):
            raise ValueError(f"users: expected ids in [0, {n_users}), got {int(users.min())} to {int(users.max())}")
        if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < 2**31:
            raise ValueError(f"items: expected ids in [0, 2^31), got {int(items.min())} to {int(items.max())}")
        width = int(items.max()) + 1 if items.numel() else 1
        keys = torch.unique(users.long() * width + items.long())  # sorted
        rows = torch.div(keys, width, rounding_mode="floor")
        indptr = torch.zeros(n_users + 1, dtype=torch.int64, device=users.device)
        torch.cumsum(torch.bincount(rows, minlength=n_users), 0, out=indptr[1:])
        return cls(indptr, keys - rows * width)

    def counts(self) -> Tensor:
        """[B] int64: how many items each user has."""
        return self.indptr.diff()

    def rows(self, user_ids: Tensor, nnz: int | None = None) -> "Seen":
        """The rows of these users ([C] int64, repeats allowed), in that order.

        Args:
            nnz: how many items these rows have together, where that is known: then nothing waits for a GPU to tell.
        """
        counts = self.counts()[user_ids]
        indptr = torch.zeros(user_ids.shape[0] + 1, dtype=torch.int64, device=self.indptr.device)
        torch.cumsum(counts, 0, out=indptr[1:])
        shift = torch.repeat_interleave(self.indptr[user_ids] - indptr[:-1], counts, output_size=nnz)
        positions = torch.arange(shift.shape[0], device=self.indptr.device) + shift
        return Seen(indptr, self.indices.index_select(0, positions))

    def between(self, first: int, stop: int) -> "Seen":
        """What of the items first .. stop - 1 has been seen, numbered from 0."""
        inside = (self.indices >= first) & (self.indices < stop)
        before = torch.zeros(len(inside) + 1, dtype=torch.int64, device=inside.device)
        torch.cumsum(inside, 0, out=before[1:])
        return Seen(before[self.indptr], self.indices[inside] - first)

    def row_of_each(self) -> Tensor:
        """[nnz] int64: the row that each entry of `indices` belongs to."""
        rows = torch.arange(self.indptr.shape[0] - 1, device=self.indptr.device)
        return torch.repeat_interleave(rows, self.counts(), output_size=self.indices.shape[0])

    def nth_unseen(self, nth: Tensor, n_items: int) -> Tensor:
        """[B, C] int64: the id of each row's unseen item number nth ([B, C] int64, from 0), or -1 where a row has too few."""
        return Unseen(self, n_items).nth(torch.arange(nth.shape[0], device=nth.device), nth)

    def to(self, device: torch.device | str) -> "Seen":
        """The same rows on another device."""
        return Seen(self.indptr.to(device), self.indices.to(device))


def _integers(name: str, array: Any) -> Tensor:
    """A copy of a one-dimensional array of int32 or int64 as int64."""
    t = torch.as_tensor(array)
    if t.dtype not in (torch.int32, torch.int64) or t.dim() != 1:
        raise ValueError(f"{name}: expected one dimension of int32 or int64, got {list(t.shape)} of {t.dtype}")
    return t.to(torch.int64, copy=True)


torch.serialization.add_safe_globals([Seen])


class Unseen:
    """The items that `seen` leaves of a catalog, by number: what all lookups share is computed once.

    The nth unseen id is nth + (the seen ids with at most nth unseen ids before them), and seen id number p has id - p unseen
    ids before it: one binary search in all rows at once, each row shifted past the one before.

    Attributes:
        counts: [B] int64, how many each row has.
    """

    def __init__(self, seen: Seen, n_items: int) -> None:
        rows = seen.row_of_each()
        self.counts = n_items - seen.counts()
        self._stride, self._starts = n_items + 1, seen.indptr[:-1]
        unseen_before = seen.indices - (torch.arange(rows.shape[0], device=rows.device) - self._starts[rows])
        self._keys = rows * self._stride + unseen_before  # rising

    def nth(self, rows: Tensor, nth: Tensor) -> Tensor:
        """[C, D] int64: ids of the unseen items number nth ([C, D] int64, from 0) of rows [C], -1 where a row has too few."""
        rows = rows[:, None]
        skipped = torch.searchsorted(self._keys, rows * self._stride + nth, right=True) - self._starts[rows]
        return torch.where(nth < self.counts[rows], nth + skipped, -1)
