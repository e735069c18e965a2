"""Columns of cells, as they stand in a text file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from bidistill.data.casting import cast

EMPTY = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>", "\\N")  # cells that mean "no value"


def whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The cells as int64 if each reads as its number is written: 0 or larger, no blank, sign or leading zero. Else None.

    2**53 and larger are left to those who know whether the column may be a float.
    """
    numbers = cast(column, pa.int64())
    if not numbers:
        return None
    lowest, highest = pc.min_max(numbers).as_py().values()
    if lowest < 0 or highest >= 2**53:
        return None
    powers = (10**power for power in range(1, len(str(highest))))
    digits = len(numbers) + sum(pc.sum(pc.greater_equal(numbers, power)).as_py() for power in powers)
    return numbers if digits == pc.sum(pc.binary_length(column)).as_py() else None  # no cell can have fewer


def with_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells as they are, but null where they mean "no value"."""
    empty = pc.is_in(pc.utf8_trim_whitespace(column), value_set=pa.array(EMPTY))
    return pc.if_else(empty, pa.scalar(None, pa.string()), column)
