"""Trying a type on a column, and finding the value that does not fit."""

from __future__ import annotations

import bisect

import pyarrow as pa


def cast(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray | None:
    """The values as another type, or None if one does not fit. Dates may lose what lies below a microsecond."""
    try:
        return values.cast(kind, safe=not pa.types.is_temporal(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return None


def first_misfit(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> int:
    """The place of the first value that cannot be cast, by bisection: a prefix fails once it holds such a value."""
    return bisect.bisect_left(range(len(values)), True, key=lambda end: cast(values[: end + 1], kind) is None)


def plain_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column, with views of strings, which few functions take, as strings."""
    is_view = getattr(pa.types, "is_string_view", lambda kind: False)(column.type)  # since pyarrow 16
    return column.cast(pa.large_string()) if is_view else column
