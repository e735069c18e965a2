"""Trying a type on a column, and finding the value that does not fit."""

from __future__ import annotations

import bisect

import pyarrow as pa


def cast(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray | None:
    """The values as another type, or None if one does not fit. Dates may lose what lies below a microsecond."""
    try:
        return values.cast(kind, safe=not pa.types.is_temporal(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def first_misfit(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> int:
    """The place of the first value that cannot be cast, by bisection: a prefix fails once it holds such a value."""
    return bisect.bisect_left(range(len(values)), True, key=lambda end: cast(values[: end + 1], kind) is None)
