"""A split that someone else made: three files, arrays or data sets that share users and items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bidistill.data.ids import number
from bidistill.data.interactions import Interactions
from bidistill.data.origin import Origin, dropped_rows, reading_notes
from bidistill.data.reader import read
from bidistill.data.splits import PARTS, Split
from bidistill.errors import UserError
from bidistill.files.access import load_npz, npz_names

Pairs = tuple[np.ndarray, np.ndarray]  # users, items


def given_split(
    train: Any,
    val: Any = None,
    test: Any = None,
    *,
    drop_seen_pairs: bool = False,
    drop_cold_users: bool = False,
    **options: Any,
) -> Split:
    """Make a Split of parts that are split already.

    train, val, test: each Interactions, or whatever `read` reads (with its `options`); val or test may be left out. Or
    train alone: the path of an .npz with the arrays `train`, `val`, `test` of (user, item) rows.
    drop_seen_pairs: drop held-out rows whose pair is in an earlier part (train, then val, then test).
    drop_cold_users: drop held-out rows of users who have no training row.
    Users and items get one numbering over all parts; those left without a row get none. Rows repeated within a part
    are dropped. `origin` of the result counts what was dropped, for each part and reason.
    Raises UserError where a part cannot be read, nothing is held out, or a held-out row would have to be dropped and
    the option does not allow it.
    """
    sources = {"train": train, "val": val, "test": test}
    if val is None and test is None:
        sources = _parts_of_npz(train)
    read_parts = {name: _read_part(name, source, options) for name, source in sources.items() if not _is_empty(source)}
    if "train" not in read_parts:
        raise UserError("given split: part train has no rows, so there is nothing to learn from; give training rows")
    user_maps, user_ids = _join([part.user_ids for part in read_parts.values()])
    item_maps, item_ids = _join([part.item_ids for part in read_parts.values()])
    parts: dict[str, Pairs] = {name: (np.empty(0, np.int64), np.empty(0, np.int64)) for name in PARTS}
    for (name, part), user_map, item_map in zip(read_parts.items(), user_maps, item_maps, strict=True):
        parts[name] = user_map[part.users], item_map[part.items]
    dropped = {f"{name}: {why}": n for name, part in read_parts.items() for why, n in dropped_rows(part).items()}
    rows = sum(map(len, read_parts.values())) + sum(dropped.values())
    for earlier, later in (("train", "val"), ("train", "test"), ("val", "test")):
        seen = _in(parts[later], parts[earlier], len(item_ids))
        if seen.any() and not drop_seen_pairs:
            user, item = (ids[parts[later][k][seen][0]] for k, ids in enumerate((user_ids, item_ids)))
            raise UserError(
                f"given split: {int(seen.sum()):,} (user, item) pairs are in {earlier} and in {later},"
                f" for example ({user}, {item}); keep each in one part, or set `drop_seen_pairs` to drop those of {later}"
            )
        _drop(parts, later, seen, f"{later}: pair is in {earlier}", dropped)
    trained = np.bincount(parts["train"][0], minlength=len(user_ids)) > 0
    notes = [*reading_notes(*read_parts.values())]
    for name in PARTS[1:]:
        users = parts[name][0]
        cold = ~trained[users]
        some = np.unique(users[cold])
        if len(some) and not drop_cold_users:
            raise UserError(
                f"given split: {len(some):,} of {len(np.unique(users)):,} users of part {name} have no training row,"
                f" such as {user_ids[some[0]]}; give them one, or set `drop_cold_users` to drop their"
                f" {int(cold.sum()):,} rows"
            )
        _drop(parts, name, cold, f"{name}: user without a training row", dropped)
        if len(some):
            notes.append(
                f"part {name}: {len(some):,} users without a training row are dropped, such as {user_ids[some[0]]}"
            )
    if not any(len(parts[name][0]) for name in PARTS[1:]):
        raise UserError(
            "given split: no held-out row is left, so nothing can be evaluated; give other rows as val or test"
        )
    users = np.unique(np.concatenate([parts[name][0] for name in PARTS]))
    items = np.unique(np.concatenate([parts[name][1] for name in PARTS]))
    numbered = {
        name: (np.searchsorted(users, part[0]), np.searchsorted(items, part[1])) for name, part in parts.items()
    }
    return Split.of(numbered, user_ids[users], item_ids[items], Origin(rows, dropped, notes=tuple(notes)))


def is_split(source: Any) -> bool:
    """Whether this is the path of an .npz that holds a whole split: a saved one, or arrays `train` and `val` or `test`."""
    if not (isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".npz"):
        return False
    names = set(npz_names(source))
    return "train_users" in names or ("train" in names and bool(names & {"val", "test"}))


def _parts_of_npz(path: Any) -> dict[str, Any]:
    if not (isinstance(path, (str, Path)) and Path(path).suffix.lower() == ".npz"):
        raise UserError(
            "given split: nothing is held out; give val or test, or one .npz with arrays train, val and test"
        )
    arrays = load_npz(path)
    if "train" not in arrays or not arrays.keys() & {"val", "test"}:
        found = ", ".join(arrays) or "none"
        raise UserError(
            f"{path}: needs the arrays train and val or test of (user, item) rows; the arrays found: {found}"
        )
    return {name: arrays.get(name) for name in PARTS}


def _read_part(name: str, source: Any, options: dict[str, Any]) -> Interactions:
    if isinstance(source, Interactions):
        return source
    try:
        if is_split(source):
            raise UserError(f"{source} holds a whole split, not one part; give it alone, without the other parts")
        return read(source, **options)
    except UserError as error:
        raise UserError(f"given split, part {name}: {error}") from error


def _is_empty(source: Any) -> bool:
    return source is None or (isinstance(source, np.ndarray) and source.shape[0] == 0)


def _join(ids: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """One numbering of the ids of all parts: for each part the map from its numbers to the common ones, and the ids."""
    if any(part.dtype.kind not in "iu" for part in ids):
        ids = [np.array([str(i) for i in part], dtype=object) for part in ids]
    codes, common = number(pa.chunked_array([pa.array(part) for part in ids]), "given split")
    ends = np.cumsum([len(part) for part in ids])
    return np.split(codes, ends[:-1]), common


def _in(pairs: Pairs, others: Pairs, n_items: int) -> np.ndarray:
    """Whether each pair is among the others, bool [pairs]. A pair seen earlier could never rank among the unseen items."""
    keys, known = (users * np.int64(n_items) + items for users, items in (pairs, others))
    return np.isin(keys, known)


def _drop(parts: dict[str, Pairs], name: str, gone: np.ndarray, reason: str, dropped: dict[str, int]) -> None:
    """Take rows out of a part and count them."""
    if gone.any():
        users, items = parts[name]
        parts[name] = users[~gone], items[~gone]
        dropped[reason] = int(gone.sum())
