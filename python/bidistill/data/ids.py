"""Original ids of users and items: numbering them, and storing them beside the numbers."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bidistill.data.casting import cast, first_misfit
from bidistill.errors import UserError

INTEGER = r"^-?(0|[1-9][0-9]*)$"  # no leading zeros: "007" and "7" are different ids
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def number(column: pa.ChunkedArray, what: str, text: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct ids of a column from 0: integers ascending, strings in sorted order.

    column: at least one row of integers, integral floats or strings, without nulls.
    what: names the column in errors ("data.csv: column 'user'").
    text: strings come from a text file, so ids that are all whole numbers become integers.
    Returns (numbers int64 [n], ids [distinct], int64 or str objects).
    Raises UserError for a missing, negative or fractional id and for a type that can be no id.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pa.chunked_array(pc.if_else(pc.is_nan(column), None, column), type=column.type)
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py() + 1
        raise UserError(
            f"{what} has no id in data row {row:,} ({column.null_count:,} in all); remove or mend those rows"
        )
    if (numbered := _dense(column)) is not None:
        return numbered
    encoded = column.dictionary_encode().combine_chunks()
    merged = _typed(encoded.dictionary, what, text).dictionary_encode()  # "1" and "1.0" have become one id
    values = merged.dictionary
    order = pc.sort_indices(values).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ids = values.take(pa.array(order)).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type) and len(ids) and ids[0] < 0:
        raise UserError(f"{what} holds the negative id {ids[0]}; ids must be 0 or larger (or strings)")
    return place[merged.indices.to_numpy()][encoded.indices.to_numpy()], ids


def _dense(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray] | None:
    """What `number` returns, by a table of all integers up to the largest id; None where that would be large."""
    if not pa.types.is_integer(column.type) or not len(column):
        return None
    lowest, highest = pc.min_max(column).as_py().values()
    if lowest < 0 or highest > 2 * len(column):
        return None
    values = column.cast(pa.int64()).to_numpy()
    used = np.zeros(highest + 1, bool)
    used[values] = True
    return (np.cumsum(used) - 1)[values], np.flatnonzero(used)


def _typed(values: pa.Array, what: str, text: bool) -> pa.Array:
    """Distinct ids as int64 where they are whole numbers, else as strings."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if text and _has(values, "[\r\n]"):
            raise UserError(f"{what} holds an id with a line break: a quotation mark is left open; close or remove it")
        if text and pc.all(pc.match_substring_regex(values, INTEGER)).as_py():
            return _whole(values, what)
        if text and pc.all(pc.match_substring_regex(values, NUMBER)).as_py() and _has(values, "[.eE]"):
            return _whole(values.cast(pa.float64()), what)
        return values.cast(pa.string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _whole(values, what)
    raise UserError(f"{what} is of type {kind}, which can be no id; ids are integers or strings")


def _whole(values: pa.Array, what: str) -> pa.Array:
    whole = cast(values, pa.int64())
    if whole is None:
        misfit = values[first_misfit(values, pa.int64())].as_py()
        raise UserError(
            f"{what} holds {misfit}, which is no 64-bit whole number; ids are whole numbers up to 2**63-1, or strings"
            " (a letter before each makes them that)"
        )
    if pa.types.is_floating(values.type) and pc.max(whole).as_py() > 2**53:
        raise UserError(f"{what} holds {pc.max(values)} as a float, which may be rounded; write large ids as integers")
    return whole


def _has(values: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def pack(ids: np.ndarray) -> np.ndarray:
    """Ids as an array that NumPy stores without pickle: int64 as is, strings as the bytes (uint8) of a JSON list."""
    if ids.dtype.kind in "iu":
        return ids.astype(np.int64)
    return np.frombuffer(json.dumps([str(i) for i in ids]).encode(), np.uint8)


def unpack(stored: np.ndarray) -> np.ndarray:
    """The inverse of `pack`. Raises ValueError where it is not what `pack` makes."""
    if stored.dtype != np.uint8:
        return stored.astype(np.int64)
    ids = json.loads(stored.tobytes().decode())
    if not (isinstance(ids, list) and all(isinstance(i, str) for i in ids)):
        raise ValueError("the ids are not stored as a list of strings")
    return np.array(ids, dtype=object)
