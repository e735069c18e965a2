"""Text files of columns: separator, quotation marks, header, and the columns that are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from bidistill.data import adjacency
from bidistill.data.columns import KNOWN, Column, number_of, plain
from bidistill.data.ids import NUMBER, Suspect
from bidistill.data.quoting import QuotingError, first_fields, rows_in_quotes
from bidistill.data.source import Loaded, Source
from bidistill.data.streams import STAND_IN, Bytes, head
from bidistill.data.text_columns import whole_numbers, with_nulls
from bidistill.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".txt": "\t", ".dat": "::", ".data": "\t"}
QUOTES_ARE_TEXT = (".tsv", ".inter", ".txt", ".dat", ".data")
FORMATS = ("auto", "table", "adjacency")
AUTO, NONE = "auto", "none"
MARK = '"'
SET_QUOTE = "set the option quote: none if the marks are part of the text, or the mark if it encloses fields"
LINE_BREAK = ("[\r\n]", "a line break, so a quotation mark may be left open; close it, or set the option quote")
ESCAPE = (r'\\([\\"]|$)', "a backslash that may stand for an escape; set the option quote, and it is taken as it is")
ENCLOSED = ('^"', "a quotation mark at its start, which may enclose the field: set the option quote to '\"' or none")


@dataclass(frozen=True)
class TextFile:
    """What the beginning of a text file tells: the separator, the column names and whether they are a header."""

    path: Path
    sep: str
    quote: str | None  # what encloses fields
    sure: bool  # the caller said so
    names: list[str]
    header: bool
    skip: int  # lines before the data,
    skipped: int  # of which so many are not empty
    marks: int  # quotation marks in them

    def load(self, places: Sequence[int]) -> Loaded:
        """The columns at these places: int64 where all cells are plain whole numbers, else strings as they stand.

        What means "no value" is null.

        Raises UserError for ragged rows, for quotation marks that do not fit, and for text that is not UTF-8.
        """
        table, lines, marks = self._table(places)
        suspects, notes = [] if self.sure else [ESCAPE, LINE_BREAK], []
        if marks and self.quote is not None:
            try:
                rows, _ = rows_in_quotes(self.path, self.sep, self.quote, self.skip, len(self.names), self.sure)
            except QuotingError as error:
                raise UserError(f"{self.path}: {error}; mend it, or {SET_QUOTE}") from error
            table = self._parse(places, careful=True)[0]
            notes = [f"{rows:,} rows stand on {lines:,} lines"] if rows != lines else []
            lines = rows
        elif marks and not self.sure and len(self.sep) == 1:
            suspects += self._in_quotes(lines)
        if table is None:  # one thread can tell the row's number
            table = self._parse(places, careful=True)[0]
        if table.num_rows != lines:
            raise UserError(
                f"{self.path}: has {lines:,} rows, of which {table.num_rows:,} could be read; write it again as CSV"
            )
        return Loaded([whole_numbers(column) or with_nulls(column) for column in table.columns], lines, suspects, notes)

    def _table(self, places: Sequence[int]) -> tuple[pa.Table | None, int, int]:
        """The columns unless a row does not fit, the lines of the data and the quotation marks in them."""
        try:
            return self._parse(places, careful=False)
        except UserError:
            try:
                with self._opened() as stream:
                    while stream.read(1 << 20):
                        pass
            except OSError as error:
                raise UserError(f"{self.path}: cannot be read ({error}); check that it is whole") from error
            return None, stream.lines - self.skipped, stream.marks - self.marks

    def _in_quotes(self, lines: int) -> list[Suspect]:
        """Marks are taken as text: what ids may be instead. Raises UserError where the rows may be others too."""
        try:
            rows, fields = rows_in_quotes(
                self.path, self.sep, MARK, self.skip, len(self.names) if self.header else None
            )
        except QuotingError:
            return []  # they cannot enclose fields
        if rows != lines or fields != len(self.names):
            raise UserError(
                f"{self.path}: has {lines:,} rows of {len(self.names):,} fields, or {rows:,} of {fields:,} if quotation"
                " marks enclose fields; say which with the option quote, '\"' or none"
            )
        return [ENCLOSED]

    def _opened(self) -> Bytes:
        return Bytes(self.path, self.sep, self.quote or MARK)

    def _parse(self, places: Sequence[int], careful: bool) -> tuple[pa.Table, int, int]:
        """careful: slower, allows line breaks in quotation marks, and can tell the row that does not fit."""
        names = [str(place) for place in range(len(self.names))]
        chosen = [str(place) for place in places]
        parse = pacsv.ParseOptions(
            delimiter=self.sep if len(self.sep) == 1 else STAND_IN.decode(),
            quote_char=self.quote or False,
            newlines_in_values=careful and self.quote is not None,
        )
        try:
            with self._opened() as stream:
                table = pacsv.read_csv(
                    stream,
                    pacsv.ReadOptions(column_names=names, skip_rows=self.skip, use_threads=not careful),
                    parse,
                    pacsv.ConvertOptions(include_columns=chosen, column_types=dict.fromkeys(chosen, pa.string())),
                )
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: {_reason(str(error))}") from error
        return table, stream.lines - self.skipped, stream.marks - self.marks


def open_text(
    path: Path, kind: str, sep: str | None, header: bool | None, given: Sequence[Column], quote: str, format: str
) -> Source:
    """Look at the beginning. `given`: the columns the caller asked for, which tell whether a header is expected.

    header None: it is one if the caller gave column names, or if it holds a known name, or if no cell is a number.
    """
    lines, whole = head(path)
    skip = next((n for n, line in enumerate(lines) if line), None)
    if skip is None:
        raise UserError(f"{path}: the file is empty; give one with (user, item) rows")
    sep_given, sep = sep, _separator(path, sep, kind, lines[skip:])
    listed = _adjacency(path, sep, header, given, format, lines[skip:] if whole else lines[skip:-1])
    if listed is not None:
        return listed
    mark = _quote(path, sep, quote, kind, lines[skip])
    try:
        cells, taken = first_fields(lines[skip:], sep, mark)
    except QuotingError as error:
        raise UserError(f"{path}: {error}; mend it, or {SET_QUOTE}") from error
    cells = [cell.strip() for cell in cells]
    header_given = header
    if header is None:
        header = _looks_like_header(path, cells, given)
    names = cells if header else [str(place) for place in range(len(cells))]
    before = lines[: skip + (taken if header else 0)]
    marks = sum(line.count(mark or MARK) for line in before)
    file = TextFile(path, sep, mark, quote != AUTO, names, header, len(before), sum(map(bool, before)), marks)
    notes = [] if header_given is not None else [f"the first line was taken as {'a header' if header else 'data'}"]
    if sep_given is None and sep != SEPARATORS.get(kind):
        notes.append("the separator was found in the first line")
    rows = [] if header else [adjacency.cut(line, sep) for line in (lines[:1000] if whole else lines[:999]) if line]
    details = {"separator": sep, "quote": mark or NONE, "header": header}
    timed = adjacency.looks_timed(rows)
    return Source(str(path), names, header, True, file.load, "text", details, notes, len(names) - 1 if timed else None)


def _adjacency(
    path: Path, sep: str, header: bool | None, given: Sequence[Column], format: str, lines: Sequence[str]
) -> Source | None:
    """The file as an adjacency list, if it is asked for or recognised."""
    if format == "table":
        return None
    guessed = format == AUTO
    if guessed:
        if header or any(column not in (None, "") for column in given):
            return None
        if not adjacency.recognised(path, [cells for line in lines if (cells := adjacency.cut(line, sep))], sep):
            return None
    elif header or any(column not in (None, "") for column in given):
        raise UserError(f"{path}: an adjacency list has no header and no columns to name; leave those options out")

    def load(places: Sequence[int]) -> Loaded:
        columns, lonely = adjacency.load(path, sep, guessed)
        notes = [f"{lonely:,} users without items were left out"] if lonely else []
        return Loaded([columns[place] for place in places], len(columns[0]), notes=notes)

    notes = ["each line was taken as a user and the user's items"] if guessed else []
    return Source(str(path), ["0", "1"], False, True, load, "adjacency list", {"separator": sep}, notes)


def _separator(path: Path, sep: str | None, kind: str, lines: Sequence[str]) -> str:
    if sep is not None:
        sep = {"\\t": "\t", "tab": "\t"}.get(sep, sep)
        if not sep or any(mark in sep for mark in "\r\n"):
            raise UserError(f"{path}: sep must be one character or more on one line (or 'tab'), got {sep!r}")
        if len(sep) == 1 and not sep.isascii():
            raise UserError(f"{path}: sep must be an ASCII character, got {sep!r}; convert the file")
        return sep
    usual = SEPARATORS.get(kind, ",")
    candidates = (usual, "\t", ",", ";", "|", " ")
    found = (candidate for line in lines[:1] for candidate in candidates if candidate in line.rstrip(" "))
    if (first := next(found, None)) is not None:
        return first
    # The first line has one cell, as the line of a user without items has.
    return " " if any(" " in line.strip() for line in lines[1:1000] if re.fullmatch("[0-9 ]+", line)) else usual


def _quote(path: Path, sep: str, quote: str, kind: str, line: str) -> str | None:
    """What encloses fields, or None."""
    if quote == NONE:
        return None
    if quote != AUTO:
        if len(quote) != 1 or not quote.isascii() or quote in "\r\n" or quote == sep:
            raise UserError(f"{path}: quote must be one ASCII character, none or auto, got {quote!r}")
        if len(sep) > 1:
            raise UserError(
                f"{path}: quote={quote!r} needs a separator of one character, not {sep!r}; set quote to none"
            )
        return quote
    if len(sep) > 1:
        return None
    cells = [cell.strip() for cell in line.split(sep)]
    enclosed = all(len(cell) > 1 and cell[0] == MARK == cell[-1] for cell in cells)
    return MARK if enclosed or kind not in QUOTES_ARE_TEXT else None


def _looks_like_header(path: Path, cells: list[str], given: Sequence[Column]) -> bool:
    known = {name for role in ("user", "item") for name in KNOWN[role]}
    if any(plain(cell) in known for cell in cells):
        return True
    if any(column and number_of(column) is None for column in given):
        return True
    if cells[0][:1] in ("#", "%"):
        raise UserError(
            f"{path}: is the first line ({', '.join(cells)[:80]}) a comment? Remove comments, or say header=false if it"
            " is data"
        )
    if any(re.match(NUMBER, cell) for cell in cells):
        return False
    if any(column is not None for column in given):
        raise UserError(
            f"{path}: is the first line ({', '.join(cells)[:80]}) a header? Say so with header=true or false"
        )
    return True


def _reason(message: str) -> str:
    if "UTF8" in message:
        return "not UTF-8 text; save it as UTF-8"
    return (
        f"rows that do not fit the first line ({message[:200]}); mend them, or give the right sep or quote, or"
        " format=adjacency if each line is a user and the user's items"
    )
