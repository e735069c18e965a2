"""One implicit-feedback data set: which user met which item, and when."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from bidistill.data.ids import pack
from bidistill.data.reading import Reading
from bidistill.errors import UserError


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct (user, item) pairs with users and items numbered from 0, and the ids they had in the source.

    users, items: int64 [n], in the source's row order; no pair twice.
    times: int64 or float64 [n] in the source's own unit (dates: microseconds since 1970), or None.
    user_ids, item_ids: int64 (ascending) or objects of type str (sorted), indexed by the internal number.
    duplicates: rows dropped because their (user, item) was there already; below_threshold: dropped by `min_rating`.
    reading: how the source was read, or None for interactions that were not read.

    Raises UserError where lengths disagree, a number is out of range, a time is NaN, or there is no row at all.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    user_ids: np.ndarray
    item_ids: np.ndarray
    duplicates: int = 0
    below_threshold: int = 0
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if len(self.users) == 0:
            raise UserError("interactions: no row at all; at least one (user, item) pair is needed")
        if self.times is not None and len(self.times) != len(self.users):
            raise UserError(
                f"interactions: {len(self.users):,} users but {len(self.times):,} times; give one time a row"
            )
        if self.times is not None and np.isnan(self.times.max()):
            raise UserError("interactions: times hold NaN; give every row a time, or none")
        if self.reading is not None and self.reading.rows != self.rows:
            raise UserError(
                f"{self.reading.source}: has {self.reading.rows:,} rows, but {len(self):,} were kept and"
                f" {self.duplicates + self.below_threshold:,} dropped; report this as a fault of the reader"
            )
        check_pairs("interactions", self.users, self.items, self.n_users, self.n_items)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def rows(self) -> int:
        """Rows in the source: those kept, and those dropped for each reason."""
        return len(self) + self.duplicates + self.below_threshold

    def account(self) -> str:
        """One line: what the source was taken for, its rows, and how many were dropped for which reason."""
        dropped = {"below min_rating": self.below_threshold, "repeated (user, item) pairs": self.duplicates}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
        rows = f"{self.rows:,} rows = {len(self):,} kept + {self.rows - len(self):,} dropped"
        line = f"{rows} ({reasons})" if reasons else rows
        return line if self.reading is None else f"{self.reading.source}: {self.reading.sentence()}; {line}"

    def describe(self) -> dict[str, Any]:
        """Plain numbers about the data set (JSON-ready): sizes, density, what was dropped, spread per user and item.

        `top_tenth_share` is the share of interactions that falls on the most popular tenth of the items.
        """
        per_item = np.sort(np.bincount(self.items, minlength=self.n_items))
        top = max(1, self.n_items // 10)
        return {
            "users": self.n_users,
            "items": self.n_items,
            "interactions": len(self),
            "density": len(self) / (self.n_users * self.n_items),
            "rows": self.rows,
            "duplicates_dropped": self.duplicates,
            "below_threshold_dropped": self.below_threshold,
            "per_user": _spread(np.bincount(self.users, minlength=self.n_users)),
            "per_item": _spread(per_item),
            "top_tenth_share": float(per_item[-top:].sum() / len(self)),
            "first_time": None if self.times is None else self.times.min().item(),
            "last_time": None if self.times is None else self.times.max().item(),
            "reading": None if self.reading is None else self.reading.describe(),
        }

    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of everything in it: equal for equal data sets, on any machine."""
        times = np.empty(0) if self.times is None else self.times
        return digest(self.users, self.items, times, pack(self.user_ids), pack(self.item_ids))


def drop_duplicates(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, n_items: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Keep one row of each (user, item): the one with the largest time, else (no times, equal times) the first.

    The kept rows stay in their order.
    """
    key = users * np.int64(n_items) + items
    ordered = np.sort(key)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated) == 0:
        return users, items, times
    place = np.minimum(np.searchsorted(repeated, key), len(repeated) - 1)
    rows = np.flatnonzero(repeated[place] == key)[::-1]
    # Backwards, so that the last of a run of equal keys has the largest time and, among those, is the first row.
    rows = rows[np.lexsort((key[rows],) if times is None else (times[rows], key[rows]))]
    kept = np.ones(len(key), bool)
    kept[rows[:-1][key[rows[1:]] == key[rows[:-1]]]] = False
    return users[kept], items[kept], None if times is None else times[kept]


def check_pairs(what: str, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
    """Raise UserError unless users and items are int64 [n] with numbers in 0..n_users-1 and 0..n_items-1."""
    if users.ndim != 1 or users.shape != items.shape:
        raise UserError(f"{what}: users and items must be flat and equally long, got {users.shape} and {items.shape}")
    for name, numbers, size in (("user", users, n_users), ("item", items, n_items)):
        if numbers.dtype != np.int64:
            raise UserError(f"{what}: {name} numbers must be int64, got {numbers.dtype}")
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= size):
            found = f"{numbers.min()}..{numbers.max()}"
            raise UserError(f"{what}: {name} numbers must lie in 0..{size - 1}, got {found}")


def digest(*arrays: np.ndarray) -> str:
    """First 16 hex digits of the sha256 of the arrays: their types, sizes and (little-endian) bytes."""
    total = hashlib.sha256()
    for array in arrays:
        portable = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        total.update(f"{portable.dtype.str}{portable.shape}".encode())
        total.update(portable.data)
    return total.hexdigest()[:16]


def _spread(counts: np.ndarray) -> dict[str, float]:
    low, first, middle, third, ninth, high = np.quantile(counts, [0, 0.25, 0.5, 0.75, 0.9, 1]).tolist()
    return {
        "mean": float(counts.mean()),
        "min": low,
        "q25": first,
        "median": middle,
        "q75": third,
        "q90": ninth,
        "max": high,
    }
