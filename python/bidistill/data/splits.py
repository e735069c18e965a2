"""Which interactions train, which choose settings (val) and which report (test)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidistill.data.ids import pack, unpack
from bidistill.data.interactions import Interactions, check_pairs, digest
from bidistill.data.lots import lots
from bidistill.data.origin import Origin, Ties, dropped_rows, reading_notes
from bidistill.errors import UserError
from bidistill.files.access import load_npz, npz_names, replacing, require_room

METHODS = ("leave_last", "leave_one", "ratio")
PARTS = ("train", "val", "test")
KINDS = ("users", "items")
FORMAT = "bidistill split 2"


@dataclass(frozen=True, eq=False)
class Split:
    """A data set in three parts that share users, items and ids. All numbers are int64, from 0.

    A user may have any number of held-out items, also none: then they train and are not evaluated.
    origin: what happened to the source's rows, where that is known; it is not saved, and no part of the fingerprint.
    Raises UserError where a number is out of range, `train` is empty, or a held-out user has no training item.
    """

    n_users: int
    n_items: int
    train_users: np.ndarray
    train_items: np.ndarray
    val_users: np.ndarray
    val_items: np.ndarray
    test_users: np.ndarray
    test_items: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    origin: Origin | None = None

    def __post_init__(self) -> None:
        for name, ids, size in (("user", self.user_ids, self.n_users), ("item", self.item_ids, self.n_items)):
            if len(ids) != size:
                raise UserError(f"split: {size:,} {name}s but {len(ids):,} {name} ids; give one id for each {name}")
        for name in PARTS:
            check_pairs(f"split, part {name}", *self.part(name), self.n_users, self.n_items)
        if len(self.train_users) == 0:
            raise UserError("split: part train has no row, so there is nothing to learn from")
        trained = np.bincount(self.train_users, minlength=self.n_users) > 0
        for name in PARTS[1:]:
            users = self.part(name)[0]
            if not trained[users].all():
                lost = self.user_ids[users[~trained[users]][0]]
                raise UserError(
                    f"split: user {lost} is in part {name} but has no training item; move or remove their rows"
                )

    @classmethod
    def of(
        cls,
        parts: dict[str, tuple[np.ndarray, np.ndarray]],
        user_ids: np.ndarray,
        item_ids: np.ndarray,
        origin: Origin | None = None,
    ) -> Split:
        """The split with these (users, items) as "train", "val" and "test"."""
        numbers: dict[str, Any] = {
            f"{name}_{kind}": array for name in PARTS for kind, array in zip(KINDS, parts[name], strict=True)
        }
        return cls(len(user_ids), len(item_ids), **numbers, user_ids=user_ids, item_ids=item_ids, origin=origin)

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(users, items) of "train", "val" or "test"."""
        if name not in PARTS:
            raise UserError(f"split: there is no part {name!r}; the parts are {', '.join(PARTS)}")
        return getattr(self, f"{name}_users"), getattr(self, f"{name}_items")

    def describe(self) -> dict[str, Any]:
        """Sizes (JSON-ready): rows of each part, users evaluated, held-out rows whose item never occurs in train.

        Where the origin is known, also the rows read, those dropped for each reason, and the users with ties at the cut.
        """
        known = np.bincount(self.train_items, minlength=self.n_items) > 0
        rows: dict[str, Any] = {"users": self.n_users, "items": self.n_items, "train": len(self.train_users)}
        for name in PARTS[1:]:
            users, items = self.part(name)
            rows[name] = len(users)
            rows[f"{name}_users"] = int(np.count_nonzero(np.bincount(users, minlength=1)))
            rows[f"{name}_items_unknown"] = int((~known[items]).sum())
        return rows if self.origin is None else rows | self.origin.values()

    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of all parts and ids."""
        return digest(*self._arrays().values())

    def save(self, path: str | Path) -> None:
        """Write one .npz (no pickle), whole or not at all. Raises UserError where it cannot be written."""
        arrays = self._arrays()
        with replacing(path) as temporary, temporary.open("wb") as file:
            require_room(path, sum(array.nbytes for array in arrays.values()))
            about = {"format": np.array(FORMAT), "fingerprint": np.array(self.fingerprint())}
            np.savez(file, **arrays, **about)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle

    @staticmethod
    def is_saved(path: str | Path) -> bool:
        """Whether the file is one that `save` wrote, rather than some other .npz."""
        return Path(path).suffix.lower() == ".npz" and "train_users" in npz_names(path)

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what `save` wrote. Raises UserError that says what is wrong with a missing or damaged file."""
        names = [f"{part}_{kind}" for part in PARTS for kind in KINDS] + ["user_ids", "item_ids"]
        arrays = load_npz(path)
        if missing := [name for name in names if name not in arrays]:
            raise UserError(f"{path}: no saved split, it lacks the array {missing[0]!r}; make it again with split")
        try:
            ids = {name: unpack(arrays[name]) for name in ("user_ids", "item_ids")}
            parts: dict[str, Any] = {name: arrays[name] for name in names[:-2]}
            found = cls(n_users=len(ids["user_ids"]), n_items=len(ids["item_ids"]), **parts | ids)
        except ValueError as error:
            raise UserError(f"{path}: damaged split ({error}); make it again with split") from error
        form, kept = (str(arrays[name]) if name in arrays else None for name in ("format", "fingerprint"))
        if form != FORMAT:
            raise UserError(f"{path}: a split of the format {form!r}, not {FORMAT!r}; make it again with split")
        if kept != found.fingerprint():
            raise UserError(
                f"{path}: damaged split (its fingerprint is not the one that it names); make it again with split"
            )
        return found

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"{name}_{kind}": getattr(self, f"{name}_{kind}") for name in PARTS for kind in KINDS}
        return arrays | {"user_ids": pack(self.user_ids), "item_ids": pack(self.item_ids)}


def split(
    interactions: Interactions,
    method: str = "leave_last",
    *,
    val: float | None = None,
    test: float | None = None,
    seed: int = 0,
    min_per_user: int | None = None,
) -> Split:
    """Hold out some interactions of each user.

    method: "leave_last": each user's last `test` interactions by time are test, the `val` before them validation;
        "leave_one": the same numbers, chosen at random; "ratio": the shares `val` and `test` of each user's
        interactions, at random, rounded down but at least one.
    val, test: numbers of interactions (default 1 each), for "ratio" shares below 1 (default 0.1 each). 0 = empty.
    seed: of what is random: which interactions are held out, with "leave_last" the order of those with equal times.
        Chance is a hash of (seed, user id, item id), so neither the order of the rows nor the numbering changes which
        pairs are held out. `origin.ties` counts the users for whom equal times let chance decide.
    min_per_user: users with fewer interactions than this, and users who would be left without a training item, keep
        everything in train and are not evaluated. They are not removed.
    Row order is kept in each part. Raises UserError for missing times, numbers out of range, a catalog of one item, or
    when no user is left to evaluate.
    """
    held_val, held_test = _held_out(method, val, test)
    if seed < 0:
        raise UserError(f"split: `seed` must be 0 or larger, got {seed}")
    if method == "leave_last" and interactions.times is None:
        raise UserError(
            f"split {method!r} needs times, but the data has none; name the column with `time` or choose the `method`"
            " leave_one"
        )
    if interactions.n_items == 1:
        raise UserError(f"the data has only one item ({interactions.item_ids[0]}), so nothing can be ranked; add items")
    users = interactions.users
    counts = np.bincount(users, minlength=interactions.n_users)
    if method == "ratio":
        n_val, n_test = (_share(counts, share) for share in (held_val, held_test))
    else:
        n_val, n_test = (np.full(len(counts), int(number)) for number in (held_val, held_test))
    evaluated = (counts > n_val + n_test) & (counts >= (min_per_user or 0))
    if not evaluated.any():
        needed = max(int((n_val + n_test).min()) + 1, min_per_user or 0)
        raise UserError(
            f"split {method!r} leaves no user to evaluate: the most active one has {counts.max():,} interactions,"
            f" {needed:,} are needed; hold out less (`val`, `test`), lower `min_per_user`, or use more data"
        )
    rows, tied = _ordered(interactions, method, seed)
    ends = np.cumsum(counts)
    from_end = np.empty(len(rows), np.int64)  # 0: the last of its user's rows
    from_end[rows] = np.repeat(ends, counts) - 1 - np.arange(len(rows))
    n_test, n_held = (np.where(evaluated, number, 0) for number in (n_test, n_test + n_val))
    is_test, is_held = from_end < n_test[users], from_end < n_held[users]
    chosen = {"train": ~is_held, "val": is_held & ~is_test, "test": is_test}
    parts = {name: (users[part], interactions.items[part]) for name, part in chosen.items()}
    ties = None
    if method == "leave_last":
        at_cut = [evaluated & (size > 0) & tied[np.maximum(ends - size - 1, 0)] for size in (n_test, n_held)]
        ties = Ties(int((at_cut[0] | at_cut[1]).sum()), int(evaluated.sum()), seed)
    dropped = dropped_rows(interactions)
    notes = reading_notes(interactions)
    if method != "leave_last" and interactions.times is not None:
        notes += (
            f"the rows have times, but `method` {method} holds out at random, so that models learn from what users took later:"
            " leave_last, which splits by time, tells better what to expect of them",
        )
    origin = Origin(len(rows) + sum(dropped.values()), dropped, ties, notes)
    return Split.of(parts, interactions.user_ids, interactions.item_ids, origin)


def _held_out(method: str, val: float | None, test: float | None) -> tuple[float, float]:
    """Checked numbers or shares to hold out."""
    if method not in METHODS:
        raise UserError(f"split: `method` must be one of {', '.join(METHODS)}, got {method!r}")
    default = 0.1 if method == "ratio" else 1
    held = (default if val is None else val, default if test is None else test)
    for name, value in zip(("val", "test"), held, strict=True):
        if method == "ratio" and not 0 <= value < 1:
            raise UserError(f"split 'ratio': `{name}` must be a share from 0 to below 1, got {value}")
        if method != "ratio" and not (value >= 0 and float(value).is_integer()):
            raise UserError(
                f"split {method!r}: `{name}` must be a whole number of interactions, 0 or more, got {value}"
            )
    if method == "ratio" and sum(held) >= 1:
        raise UserError(
            f"split 'ratio': `val` + `test` must stay below 1 to leave something to train, got {sum(held):g}"
        )
    if sum(held) == 0:
        raise UserError(
            f"split {method!r}: `val` and `test` are both 0, so nothing would be held out; set at least one"
        )
    return held


def _share(counts: np.ndarray, share: float) -> np.ndarray:
    """How many of each user's interactions a share is: rounded down, at least one; none for share 0."""
    if share == 0:
        return np.zeros_like(counts)
    parts: np.ndarray = np.maximum(
        np.floor(counts * share + 1e-9).astype(counts.dtype), 1
    )  # 1e-9: 0.29 * 100 is 28.999...
    return parts


def _ordered(data: Interactions, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows by user, then by time where the method is "leave_last", then by lot: int64 [n].

    And bool [n]: whether the row at this place is followed by one of the same user and time.
    """
    n = len(data)
    by_time = method == "leave_last"
    when = data.times if by_time and data.times is not None else lots(data, np.arange(n), seed)
    rows = _sorted(data.users, when)
    tied = np.zeros(n, bool)
    tied[:-1] = (data.users[rows[1:]] == data.users[rows[:-1]]) & (when[rows[1:]] == when[rows[:-1]])
    if by_time and tied.any():
        follows = np.append(False, tied[:-1])
        places = np.flatnonzero(tied | follows)
        run = np.cumsum(~follows[places])  # tied rows stand side by side; the first of a run follows none
        rows[places] = rows[places[_sorted(run, lots(data, rows[places], seed))]]
    return rows, tied


def _sorted(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What sorts by group, then by value; equal ones are left in any order. groups: int64 from 0."""
    n = len(groups)
    order = np.argsort(values)
    key = groups[order] * np.int64(n) + np.arange(n)
    key.sort()  # faster than a stable second sort
    key %= n
    sorted_rows: np.ndarray = order[key]
    return sorted_rows
