"""Original ids of users and items: numbering them, and storing them beside the numbers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bidistill.data.casting import cast, first_misfit, plain_strings
from bidistill.errors import UserError

# No leading zeros, exponents or plus signs: "007", "7" and "7E0" are different ids; only "7.0" and "7" are the same number.
WHOLE = r"^(0|-?[1-9][0-9]*)(\.0+)?$"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
FLOAT = rf"^[+-]?inf$|{NUMBER}"
FRACTION = r"\.[0-9]|[eE]\+"
DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?( ?Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
BYTE_ORDER_MARK = "\ufeff"
EXACT = {16: 2**11, 32: 2**24, 64: 2**53}  # from here on not every whole number is a float of so many bits

# A pattern, and what an id that matches it may be instead of what it reads as.
Suspect = tuple[str, str]


def number(
    column: pa.ChunkedArray, what: str, role: str = "", *, text: bool = False, suspects: Sequence[Suspect] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct ids of a column from 0: integers ascending, strings in sorted order.

    column: at least one row of integers, integral floats, strings or UUIDs, without nulls.
    what: names the column in errors ("data.csv: column 'user'"), and role the option that names another.
    text: strings come from a text file, so ids that are all whole numbers become integers; suspects: see Suspect.
    Returns (numbers int64 [n], ids [distinct], int64 or str objects).
    Raises UserError for a missing, negative or fractional id, for dates, for floats so large that whole numbers may have
    been rounded, and for a type that can be no id.
    """
    other = f"name another column with the option {role}" if role else "give another column"
    column = _stored(column, what, other)
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
    merged = _typed(encoded.dictionary, what, other, text, suspects).dictionary_encode()  # "1" and "1.0" are one id
    values = merged.dictionary
    order = pc.sort_indices(values).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ids = values.take(pa.array(order)).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type) and len(ids) and ids[0] < 0:
        raise UserError(f"{what} holds the negative id {ids[0]}; ids must be 0 or larger (or strings)")
    return place[merged.indices.to_numpy()][encoded.indices.to_numpy()], ids


def _stored(column: pa.ChunkedArray, what: str, other: str) -> pa.ChunkedArray:
    """The column without categories, extension types and views."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column.type, pa.BaseExtensionType):
        if column.type.extension_name != "arrow.uuid":
            raise UserError(f"{what} is of type {column.type}, which can be no id; {other}")
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return plain_strings(column)


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


def _typed(values: pa.Array, what: str, other: str, text: bool, suspects: Sequence[Suspect]) -> pa.Array:
    """Distinct ids as int64 where they are whole numbers, else as strings."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _of_strings(values, what, other, text, suspects)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _whole(values, what, other)
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return pa.array([str(uuid.UUID(bytes=value)) for value in values.to_pylist()], pa.string())
    raise UserError(f"{what} is of type {kind}, which can be no id; ids are integers, strings or UUIDs: {other}")


def _of_strings(values: pa.Array, what: str, other: str, text: bool, suspects: Sequence[Suspect]) -> pa.Array:
    bare = pc.utf8_trim_whitespace(values)
    if text and _all(bare, WHOLE):
        return _whole(pc.replace_substring_regex(bare, r"\.0+$", ""), what, other)
    if text and _all(bare, FLOAT) and (found := _first(bare, FRACTION)) is not None:
        found = _first(bare, r"\.[0-9]*[1-9]") or found
        raise UserError(f"{what} holds {found}, a number with a fraction or exponent, which can be no id; {other}")
    if _all(bare, DATE):
        raise UserError(f"{what} holds {bare[0].as_py()}, a date, which can be no id; {other}")
    if text:
        for pattern, meaning in ((BYTE_ORDER_MARK, "a byte order mark, as files joined together have"), *suspects):
            if (found := _first(values, pattern)) is not None:
                raise UserError(f"{what} holds the id {found!r} with {meaning}")
    return values.cast(pa.string())


def _whole(values: pa.Array, what: str, other: str) -> pa.Array:
    whole = cast(values, pa.int64())
    if whole is None:
        misfit = values[first_misfit(values, pa.int64())].as_py()
        raise UserError(
            f"{what} holds {misfit}, which is no 64-bit whole number; ids are whole numbers up to 2**63-1, or strings"
            f" (a letter before each makes them that); or {other}"
        )
    if pa.types.is_floating(values.type):
        limit = EXACT[values.type.bit_width]
        lowest, highest = pc.min_max(whole).as_py().values()
        if max(-lowest, highest) >= limit:
            raise UserError(
                f"{what} holds {highest} as a float of {values.type.bit_width} bits, which may be rounded;"
                f" write large ids as integers or strings, here those from {limit} on"
            )
    return whole


def _all(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _first(values: pa.Array, pattern: str) -> str | None:
    """The first value that matches."""
    place = pc.index(pc.match_substring_regex(values, pattern), True).as_py()
    return None if place < 0 else values[place].as_py()


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
