"""Quotation marks of a text file: whether they enclose fields, and the line where they do not fit."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from bidistill.data.ids import NUMBER
from bidistill.data.streams import Bytes
from bidistill.errors import UserError


class QuotingError(Exception):
    """A quotation mark that does not fit, or a row with the wrong number of fields. The message names the line."""


def rows_in_quotes(
    path: Path, sep: str, quote: str, skip: int, fields: int | None, sure: bool = True
) -> tuple[int, int]:
    """Count the rows of a file, and the fields of each row.

    Fields may be enclosed in `quote`, and then hold separators and line breaks.

    skip: lines before the data. fields: number of fields of every row; None: that of the first row. sure: that marks enclose
    fields, so that a field may hold lines that look like rows.
    Raises QuotingError for a mark that is never closed, for text after a closing mark, for rows that have another number
    of fields, and unless `sure` for lines in marks that look like rows; UserError for text that is not UTF-8.
    """
    rows, line = 0, 0
    with Bytes(path) as stream, io.TextIOWrapper(io.BufferedReader(stream, 1 << 20), "utf-8", newline="") as text:
        try:
            for _ in range(skip):
                text.readline()
            reader = csv.reader(text, delimiter=sep, quotechar=quote, strict=True)
            for row in reader:
                fields = fields or len(row) or None
                if row and len(row) != fields:
                    raise QuotingError(f"line {skip + line + 1:,} has {len(row):,} fields, not {fields:,}")
                if not sure and reader.line_num - line > 1 and _holds_a_row(row, sep):
                    raise QuotingError(
                        f"line {skip + line + 1:,} has a quotation mark after which a line that looks like a row is part"
                        " of the field"
                    )
                rows += bool(row)
                line = reader.line_num
        except csv.Error as error:
            reason = str(error)
            if "expected after" in reason:
                reason = "has text after a closing quotation mark"
            elif "unexpected end" in reason or "field limit" in reason:
                reason = "has a quotation mark that is not closed"
            raise QuotingError(f"line {skip + line + 1:,} {reason}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); check that it is whole") from error
    return rows, fields or 0


def _holds_a_row(row: list[str], sep: str) -> bool:
    """Whether a line within a field looks like a row: as many fields, and numbers where the row has numbers."""
    for place, field in enumerate(row):
        lines = [line.split(sep) for line in re.split("\r\n|\n|\r", field)[1:]]
        if lines:
            lines[-1] += row[place + 1 :]
        for line in lines:
            others = [n for n in range(len(row)) if n != place]
            if len(line) == len(row) and all(_is_number(line[n]) == _is_number(row[n]) for n in others):
                return True
    return False


def _is_number(cell: str) -> bool:
    return re.fullmatch(NUMBER, cell.strip()) is not None


def first_fields(lines: list[str], sep: str, quote: str | None) -> tuple[list[str], int]:
    """The fields of the first row, and how many lines it takes. Raises QuotingError where its marks do not fit."""
    if quote is None:
        return lines[0].split(sep), 1
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=sep, quotechar=quote, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        raise QuotingError(f"the first line has a quotation mark that does not fit ({error})") from error
