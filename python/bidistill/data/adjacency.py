"""Adjacency lists: a line for each user, which begins with the user and goes on with the user's items."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa

from bidistill.data.streams import Bytes
from bidistill.data.text_columns import whole_numbers, with_nulls
from bidistill.errors import UserError

PAIRS = 1 << 18  # of which strings are in memory at a time
OLDEST, NEWEST = 5 * 10**8, 5 * 10**12  # times since 1970 in seconds or milliseconds that a column of times may hold
HIGHEST_RATING = 10


def looks_timed(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the last of three or four columns holds times since 1970 in each row, and no other one does."""
    if not rows or len(rows[0]) not in (3, 4) or any(len(row) != len(rows[0]) for row in rows):
        return False
    return all(_is_time(row[-1]) for row in rows) and not all(_is_time(row[1]) for row in rows)


def _is_time(cell: str) -> bool:
    return re.fullmatch("[0-9]+", cell) is not None and OLDEST <= int(cell) < NEWEST


def recognised(path: Path, rows: Sequence[Sequence[str]], sep: str) -> bool:
    """Whether rows without a header are an adjacency list rather than a table.

    rows: the first ones, split at `sep`, without empty cells at the end. An adjacency list holds whole numbers, each user on
    one line, and lines of any length. Raises UserError where it may be either.
    """
    if not rows or not all(re.fullmatch("[0-9]+", cell) for cell in chain.from_iterable(rows)):
        return False
    lengths = {len(row) for row in rows}
    distinct = len({row[0] for row in rows}) == len(rows)
    if lengths in ({1}, {2}) or not distinct:
        return False  # pairs are the same in both; a table repeats users
    if len(lengths) > 1:
        if sep == " ":
            return True
        raise UserError(
            f"{path}: its lines have from {min(lengths):,} to {max(lengths):,} numbers; if each is a user and the user's"
            " items, say so with the option format=adjacency"
        )
    if looks_timed(rows):
        return False
    rated = lengths == {3} and all(int(row[2]) <= HIGHEST_RATING for row in rows)
    if rated and sep != " ":
        return False
    if not rated and sep == " ":
        return True
    raise UserError(
        f"{path}: each line has {len(rows[0]):,} numbers and another user, so it may be a table of user, item and more, or"
        " a user and the user's items; say which with the option format=table or format=adjacency"
    )


def load(path: Path, sep: str, guessed: bool) -> tuple[list[pa.ChunkedArray], int]:
    """The columns of users and items of an adjacency list, and how many users have no items.

    Blanks that stand together separate once.
    Raises UserError for a missing id and, if the format was `guessed`, for a user on two lines.
    """
    chunks: list[list[pa.Array]] = [[], []]
    lonely = 0
    seen: set[str] = set()
    users: list[str] = []
    items: list[str] = []

    def flush() -> None:
        for chunk, cells in zip(chunks, (users, items), strict=True):
            chunk.append(pa.array(cells, pa.string()))
            cells.clear()

    for line, cells in rows(path, sep):
        if "" in cells:
            raise UserError(f"{path}: line {line:,} has an empty id; remove the separator, or give the right sep")
        if guessed and cells[0] in seen:
            raise UserError(
                f"{path}: user {cells[0]} has a second line, {line:,}, so this may be no adjacency list: say what it is"
                " with the option format=table or format=adjacency"
            )
        seen.add(cells[0])
        lonely += len(cells) == 1
        users += cells[:1] * (len(cells) - 1)
        items += cells[1:]
        if len(items) >= PAIRS:
            flush()
    flush()
    columns = [pa.chunked_array(chunk) for chunk in chunks]
    return [whole_numbers(column) or with_nulls(column) for column in columns], lonely


def rows(path: Path, sep: str) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, cells) of each line that is not empty."""
    with Bytes(path) as stream, io.TextIOWrapper(io.BufferedReader(stream, 1 << 20), "utf-8") as text:
        try:
            for number, line in enumerate(text, 1):
                if cells := cut(line, sep):
                    yield number, cells
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); check that it is whole") from error


def cut(line: str, sep: str) -> list[str]:
    """The cells of a line, without empty ones at the end; blanks that stand together separate once."""
    if sep == " ":
        return line.split()
    cells = [cell.strip() for cell in line.split(sep)]
    while cells and not cells[-1]:
        cells.pop()
    return cells
