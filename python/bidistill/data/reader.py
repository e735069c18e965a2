"""Reading interactions from files and data frames."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bidistill.data.casting import cast, first_misfit, plain_strings
from bidistill.data.columns import Column, find
from bidistill.data.ids import number
from bidistill.data.interactions import Interactions, drop_duplicates
from bidistill.data.reading import Reading
from bidistill.data.source import Source
from bidistill.data.sources import open_source
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
    quote: str = "auto",
    format: str = "auto",
) -> Interactions:
    """Read interactions, number users and items, drop ratings below a threshold and repeated pairs.

    source: path of a .csv, .tsv, .txt, .inter (RecBole), .dat, .data, .jsonl, .ndjson, .json (an object on each line),
        .parquet, .pq or .npz file (text also .gz, .bz2, .zst), a pandas, polars or pyarrow table, or an [n, 2] array of
        (user, item). A .npz holds arrays named like columns, or one [n, 2] array.
    user, item, rating, time: columns by name, or by number from 0. None: recognised by usual names (`user_id`,
        `userId`, `uid`, `user_id:token`, ...); without a header the first column is the user and the second the item, and the
        last of three or four columns the time if it looks like seconds or milliseconds since 1970.
        time="": do not read times.
    header: whether a text file's first line names the columns; None: found out.
    min_rating: keep rows whose rating is at least this; the rating column is read only then.
    sep: what separates the columns of a text file, also several characters such as "::"; None: by extension, else found
        out.
    quote: the character that encloses fields of a text file, "none" where quotation marks are text, or "auto": a double
        quotation mark, but "none" in .tsv, .txt, .inter, .dat and .data, unless it encloses each name of the header.
    format: of a text file: "table", "adjacency" (each line is a user and the user's items), or "auto": found out.

    Ids: whole numbers 0..2^63-1 (numbered ascending) or strings as they are written (in sorted order), so numbering does
    not depend on row order; "007" and "1E5" are strings. Larger whole numbers are an error, unless the column holds other
    strings too. Repeated (user, item): the row with the largest time is kept, else the first. Dates become microseconds
    since 1970. `Interactions.reading` tells what was found out, and how many rows the source has.
    Raises UserError for anything that cannot be read, naming file, column and remedy; it counts data rows from 1.
    """
    roles = {"user": user, "item": item, "rating": rating, "time": time}
    needed = {"user", "item"} if min_rating is None else {"user", "item", "rating"}
    if time == NO_TIME:
        del roles["time"]
    opened = open_source(source, sep, header, tuple(roles.values()), quote, format)
    found = {}
    for role, column in roles.items():
        place = find(opened.where, opened.names, opened.header, role, column, role in needed)
        if role == "time" and place is None:
            place = opened.time
        if place is not None and (role in needed or role == "time"):
            found[role] = place
    if found["user"] == found["item"]:
        raise UserError(f"{opened.where}: user and item are the same column {_name(opened, found['user'])}; name two")
    loaded = opened.load(list(found.values()))
    columns = dict(zip(found, loaded.columns, strict=True))
    if len(columns["user"]) == 0:
        raise UserError(f"{opened.where}: no data rows; give a file with (user, item) rows")
    what = {role: f"{opened.where}: column {_name(opened, place)}" for role, place in found.items()}
    with ThreadPoolExecutor(2) as pool:  # most of it is in Arrow, which leaves Python's lock
        (users, user_ids), (items, item_ids) = pool.map(
            lambda role: number(columns.pop(role), what[role], role, text=opened.text, suspects=loaded.suspects),
            ("user", "item"),
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
    names = {role: _name(opened, place) for role, place in found.items()}
    ignored = tuple(_name(opened, place) for place in range(len(opened.names)) if place not in found.values())
    notes = (*opened.notes, *loaded.notes, *_guesses(opened, roles, found, user_ids, item_ids))
    reading = Reading(opened.where, opened.format, opened.details, names, ignored, loaded.rows, notes)
    return Interactions(users, items, times, user_ids, item_ids, passed - len(users), total - passed, reading)


def _guesses(
    opened: Source, roles: dict[str, Column], found: dict[str, int], user_ids: np.ndarray, item_ids: np.ndarray
) -> list[str]:
    """What else was found out rather than given."""
    guessed = [role for role in found if roles[role] is None]
    how = "name" if opened.header else "place"
    notes = [f"{' and '.join(guessed)} taken by {how}"] if guessed else []
    for role, ids in (("user", user_ids), ("item", item_ids)):
        if opened.text and ids.dtype == object and any(each != each.strip() for each in ids):
            notes.append(f"ids of the {role} begin or end with blanks, which were kept")
    return notes


def _name(opened: Source, place: int) -> str:
    return repr(opened.names[place]) if opened.header else f"number {place}"


def _renumber(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Close the gaps that ids without any row leave."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    return (np.cumsum(used) - 1)[codes], ids[used]


def _numbers(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A numeric column as float64 [n]; UserError for the first row that holds no number."""
    column = _bare(column, what)
    numbers = cast(column, pa.float64())
    if numbers is None:
        row = first_misfit(column, pa.float64())
        value = column[row].as_py()
        raise UserError(
            f"{what} holds {value!r} in data row {row + 1:,}, which is no number; mend it or choose another column"
        )
    _refuse_missing(numbers, what, "number")
    values: np.ndarray = numbers.to_numpy()
    return values


def _times(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A column of numbers or dates as int64 or float64 [n], dates in microseconds since 1970."""
    column = _bare(column, what)
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
        if kind == pa.float64() and not pa.types.is_floating(column.type) and (row := _rounded(column, times)) >= 0:
            raise UserError(
                f"{what} holds {column[row].as_py()!r} in data row {row + 1:,}, which is no 64-bit whole number; choose"
                " another column, or time='' for none"
            )
        values: np.ndarray = (times.cast(pa.int64()) if pa.types.is_temporal(kind) else times).to_numpy()
        return values
    row = max(first_misfit(column, kind) for kind in kinds)
    raise UserError(
        f"{what} holds {column[row].as_py()!r} in data row {row + 1:,}, which is neither number nor ISO date; choose"
        " another column, or time='' for none"
    )


def _rounded(column: pa.ChunkedArray, times: pa.ChunkedArray) -> int:
    """The first row in which a whole number has become a float that may be another number, or -1."""
    large = pc.greater_equal(pc.abs(times), 2.0**53)
    if not pc.any(large).as_py():
        return -1
    whole = pc.match_substring_regex(column.cast(pa.string()), "^[+-]?[0-9]+$")
    return int(pc.index(pc.and_(large, whole), True).as_py())


def _bare(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """The column without categories, views of strings and blanks around strings; UserError for an extension type."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column.type, pa.BaseExtensionType):
        raise UserError(f"{what} is of type {column.type}, which is neither number nor date; choose another column")
    column = plain_strings(column)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return pc.utf8_trim_whitespace(column) if is_text else column


def _refuse_missing(column: pa.ChunkedArray, what: str, noun: str) -> None:
    missing = pc.is_null(column, nan_is_null=True)
    if pc.any(missing).as_py():
        row = pc.index(missing, True).as_py() + 1
        raise UserError(f"{what} has no {noun} in data row {row:,}; fill it or remove the row")
