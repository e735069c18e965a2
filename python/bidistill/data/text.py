"""CSV, TSV and RecBole text files, read by pyarrow as columns of strings."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from bidistill.data.casting import cast
from bidistill.data.columns import KNOWN, Column, number_of, plain
from bidistill.data.ids import NUMBER
from bidistill.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".txt": "\t"}
EMPTY = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")


@dataclass(frozen=True)
class TextFile:
    """What the first line of a text file tells: the separator, the column names and whether they are a header."""

    path: Path
    sep: str
    names: list[str]
    header: bool
    skip: int  # lines before the data

    def load(self, places: Sequence[int]) -> list[pa.ChunkedArray]:
        """The columns at these places: int64 where all cells are plain whole numbers, else trimmed strings.

        What means "no value" is null.

        Raises UserError for ragged rows and for text that is not UTF-8.
        """
        try:
            table = self._parse(places, careful=False)
        except (pa.ArrowException, OSError):
            try:  # slower: allows line breaks inside quotes, and one thread can tell the row's number
                table = self._parse(places, careful=True)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{self.path}: {_reason(str(error))}") from error
        return [_whole(column) or _trimmed(column) for column in table.columns]

    def _parse(self, places: Sequence[int], careful: bool) -> pa.Table:
        names = [str(place) for place in range(len(self.names))]
        chosen = [str(place) for place in places]
        with pa.input_stream(self.path, compression="detect") as stream:
            return pacsv.read_csv(
                stream,
                pacsv.ReadOptions(column_names=names, skip_rows=self.skip, use_threads=not careful),
                pacsv.ParseOptions(delimiter=self.sep, newlines_in_values=careful),
                pacsv.ConvertOptions(include_columns=chosen, column_types=dict.fromkeys(chosen, pa.string())),
            )


def open_text(path: Path, sep: str | None, header: bool | None, given: Sequence[Column]) -> TextFile:
    """Look at the first line. `given`: the columns the caller asked for, which tell whether a header is expected.

    header None: it is one if the caller gave column names, or if it holds a known name, or if no cell is a number.
    """
    lines = _first_lines(path)
    skip = next((n for n, line in enumerate(lines) if line), None)
    if skip is None:
        raise UserError(f"{path}: the file is empty; give one with (user, item) rows")
    sep = _separator(path, sep, lines[skip])
    cells = [cell.strip() for cell in next(csv.reader([lines[skip]], delimiter=sep))]
    if header is None:
        header = _looks_like_header(path, cells, given)
    names = cells if header else [str(place) for place in range(len(cells))]
    return TextFile(path, sep, names, header, skip + header)


def _first_lines(path: Path) -> list[str]:
    try:
        with pa.input_stream(path, compression="detect") as stream:
            start = stream.read(1 << 20)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); check its rights and that it is whole") from error
    if b"\0" in start:
        raise UserError(f"{path}: not UTF-8 text (it holds NUL bytes); save it as UTF-8, or give the true extension")
    return re.split("\r\n|\n|\r", start.decode("utf-8-sig", errors="replace"))


def _separator(path: Path, sep: str | None, line: str) -> str:
    if sep is not None:
        sep = {"\\t": "\t", "tab": "\t"}.get(sep, sep)
        if len(sep) != 1:
            raise UserError(f"{path}: sep must be one character (or 'tab'), got {sep!r}; convert the file")
        return sep
    usual = next((SEPARATORS[suffix.lower()] for suffix in path.suffixes[::-1] if suffix.lower() in SEPARATORS), ",")
    return next((candidate for candidate in (usual, "\t", ",", ";", "|", " ") if candidate in line), usual)


def _looks_like_header(path: Path, cells: list[str], given: Sequence[Column]) -> bool:
    known = {name for role in ("user", "item") for name in KNOWN[role]}
    if any(plain(cell) in known for cell in cells):
        return True
    if any(column is not None and number_of(column) is None for column in given):
        return True
    if any(re.match(NUMBER, cell) for cell in cells):
        return False
    if any(column is not None for column in given):
        raise UserError(
            f"{path}: is the first line ({', '.join(cells)[:80]}) a header? Say so with header=true or false"
        )
    return True


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
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


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(column, value_set=pa.array(EMPTY)), pa.scalar(None, pa.string()), column)


def _reason(message: str) -> str:
    if "UTF8" in message:
        return "not UTF-8 text; save it as UTF-8"
    return f"rows that do not fit the first line ({message[:200]}); mend them, or give the right sep"
