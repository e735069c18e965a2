"""Reading interactions from files and data frames."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bidistill.data.casting import cast, first_misfit
from bidistill.data.columns import Column, find
from bidistill.data.ids import number
from bidistill.data.interactions import Interactions, drop_duplicates
from bidistill.data.sources import Source, open_source
from bidistill.errors import UserError

NO_TIME = ""


def read(
    source: Any,
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    time: Column = None,
    header: bool | None = None,
    min_rating: float | None = None,
    sep: str | None = None,
) -> Interactions:
    """Read interactions, number users and items, drop ratings below a threshold and repeated pairs.

    source: path of a .csv, .tsv, .txt, .inter (RecBole), .parquet, .pq or .npz file (text also .gz, .bz2, .zst), a
        pandas, polars or pyarrow table, or an [n, 2] array of (user, item). A .npz holds arrays named like columns, or
        one [n, 2] array.
    user, item, rating, time: columns by name, or by number from 0. None: recognised by usual names (`user_id`,
        `userId`, `uid`, `user_id:token`, ...); without a header the first column is the user and the second the item.
        time="": do not read times.
    header: whether a text file's first line names the columns; None: found out.
    min_rating: keep rows whose rating is at least this; the rating column is read only then.
    sep: what separates the columns of a text file; None: by extension, else found out.

    Ids: whole numbers 0..2^63-1 (numbered ascending) or strings (in sorted order), so numbering does not depend on row
    order; "007" is a string. Larger whole numbers are an error, unless the column holds other strings too. Repeated
    (user, item): the row with the largest time is kept, else the first. Dates become microseconds since 1970.
    Raises UserError for anything that cannot be read, naming file, column and remedy; it counts data rows from 1.
    """
    roles = {"user": user, "item": item, "rating": rating, "time": time}
    needed = {"user", "item"} if min_rating is None else {"user", "item", "rating"}
    if time == NO_TIME:
        del roles["time"]
    opened = open_source(source, sep, header, tuple(roles.values()))
    found = {}
    for role, column in roles.items():
        place = find(opened.where, opened.names, opened.header, role, column, role in needed)
        if place is not None and (role in needed or role == "time"):
            found[role] = place
    if found["user"] == found["item"]:
        raise UserError(f"{opened.where}: user and item are the same column {_name(opened, found['user'])}; name two")
    columns = dict(zip(found, opened.load(list(found.values())), strict=True))
    if len(columns["user"]) == 0:
        raise UserError(f"{opened.where}: no data rows; give a file with (user, item) rows")
    what = {role: f"{opened.where}: column {_name(opened, place)}" for role, place in found.items()}
    with ThreadPoolExecutor(2) as pool:  # most of it is in Arrow, which leaves Python's lock
        (users, user_ids), (items, item_ids) = pool.map(
            lambda role: number(columns.pop(role), what[role], opened.text), ("user", "item")
        )
    times = _times(columns["time"], what["time"]) if "time" in columns else None
    total = len(users)
    if min_rating is not None:
        ratings = _numbers(columns["rating"], what["rating"])
        kept = ratings >= min_rating
        if not kept.any():
            raise UserError(
                f"{what['rating']} has no value of at least min_rating={min_rating}; the largest is {ratings.max()}"
            )
        users, items, times = users[kept], items[kept], None if times is None else times[kept]
        users, user_ids = _renumber(users, user_ids)
        items, item_ids = _renumber(items, item_ids)
    passed = len(users)
    users, items, times = drop_duplicates(users, items, times, len(item_ids))
    return Interactions(users, items, times, user_ids, item_ids, passed - len(users), total - passed)


def _name(opened: Source, place: int) -> str:
    return repr(opened.names[place]) if opened.header else f"number {place}"


def _renumber(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Close the gaps that ids without any row leave."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    return (np.cumsum(used) - 1)[codes], ids[used]


def _numbers(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A numeric column as float64 [n]; UserError for the first row that holds no number."""
    numbers = cast(column, pa.float64())
    if numbers is None:
        row = first_misfit(column, pa.float64())
        value = column[row].as_py()
        raise UserError(
            f"{what} holds {value!r} in data row {row + 1:,}, which is no number; mend it or choose another column"
        )
    _refuse_missing(numbers, what, "number")
    return numbers.to_numpy()


def _times(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A column of numbers or dates as int64 or float64 [n], dates in microseconds since 1970."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kinds: list[pa.DataType] = [pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")]
    if pa.types.is_temporal(column.type):
        kinds = kinds[2:]
    elif not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        kinds = kinds[1:2] if pa.types.is_floating(column.type) else kinds[:2]
    for kind in kinds:
        times = cast(column, kind)
        if times is None:
            continue
        _refuse_missing(times, what, "time")
        return (times.cast(pa.int64()) if pa.types.is_temporal(kind) else times).to_numpy()
    row = max(first_misfit(column, kind) for kind in kinds)
    raise UserError(
        f"{what} holds {column[row].as_py()!r} in data row {row + 1:,}, which is neither number nor ISO date; choose"
        " another column, or time='' for none"
    )


def _refuse_missing(column: pa.ChunkedArray, what: str, noun: str) -> None:
    missing = pc.is_null(column, nan_is_null=True)
    if pc.any(missing).as_py():
        row = pc.index(missing, True).as_py() + 1
        raise UserError(f"{what} has no {noun} in data row {row:,}; fill it or remove the row")
