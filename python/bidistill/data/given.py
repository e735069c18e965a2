"""A split that someone else made: three files, arrays or data sets that share users and items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bidistill.data.files import load_npz
from bidistill.data.ids import number
from bidistill.data.interactions import Interactions
from bidistill.data.read import read
from bidistill.data.split import PARTS, Split
from bidistill.errors import UserError


def given_split(train: Any, val: Any = None, test: Any = None, **options: Any) -> Split:
    """Make a Split of parts that are split already.

    train, val, test: each Interactions, or whatever `read` reads (with its `options`); val or test may be left out. Or
    train alone: the path of an .npz with the arrays `train`, `val`, `test` of (user, item) rows.
    Users and items get one numbering over all parts. Rows repeated within a part are dropped.
    Raises UserError where a part cannot be read, a pair is in two parts, or a held-out user has no training row.
    """
    sources = {"train": train, "val": val, "test": test}
    if val is None and test is None:
        sources = _parts_of_npz(train)
    parts = {name: _read_part(name, source, options) for name, source in sources.items() if not _is_empty(source)}
    if "train" not in parts:
        raise UserError("given split: part train has no rows, so there is nothing to learn from; give training rows")
    user_maps, user_ids = _join([part.user_ids for part in parts.values()])
    item_maps, item_ids = _join([part.item_ids for part in parts.values()])
    numbers = {name: (np.empty(0, np.int64), np.empty(0, np.int64)) for name in PARTS}
    for (name, part), user_map, item_map in zip(parts.items(), user_maps, item_maps, strict=True):
        numbers[name] = user_map[part.users], item_map[part.items]
    _refuse_overlap(numbers, user_ids, item_ids)
    return Split.of(numbers, user_ids, item_ids)


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


def _refuse_overlap(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], user_ids: np.ndarray, item_ids: np.ndarray
) -> None:
    """A held-out pair that is also seen earlier could never be ranked among the unseen items."""
    keys = {name: users * np.int64(len(item_ids)) + items for name, (users, items) in parts.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        common = np.intersect1d(keys[first], keys[second], assume_unique=True)
        if len(common):
            user, item = user_ids[common[0] // len(item_ids)], item_ids[common[0] % len(item_ids)]
            raise UserError(
                f"given split: {len(common):,} (user, item) pairs are in {first} and in {second},"
                f" for example ({user}, {item}); keep each in one part"
            )
