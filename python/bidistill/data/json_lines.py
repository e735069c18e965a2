"""JSON lines: an object on each line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pajson

from bidistill.data.columns import listing
from bidistill.data.source import Loaded, Source
from bidistill.data.streams import Bytes, head
from bidistill.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".json")
BLOCK = 1 << 24  # the longest line, in bytes


def open_json_lines(path: Path) -> Source:
    """Look at the first lines: their keys are the columns, and the values tell the types.

    Raises UserError for a line that is no JSON object.
    """
    lines, whole = head(path)
    kinds: dict[str, set[type]] = {}
    for number, line in enumerate(lines if whole or len(lines) == 1 else lines[:-1], 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number:,} is no JSON ({error}); write one object on each line") from error
        if not isinstance(found, dict):
            raise UserError(f"{path}: line {number:,} is no JSON object; write one object on each line")
        for key, value in found.items():
            kinds.setdefault(key, set()).add(type(value))
    if not kinds:
        raise UserError(f"{path}: the file is empty; give one with (user, item) rows")
    names = list(kinds)

    def load(places: Sequence[int]) -> Loaded:
        chosen = [names[place] for place in places]
        schema = pa.schema([(name, _type(path, name, kinds[name])) for name in chosen])
        parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            with Bytes(path) as stream:
                table = pajson.read_json(stream, pajson.ReadOptions(block_size=BLOCK), parse)
            table.validate(full=True)  # the parser takes any bytes
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            foreign = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
            reason = "not UTF-8 text" if foreign else str(error)[:200]
            raise UserError(
                f"{path}: has lines that do not fit the first ones ({reason}); mend them, each value of a column being of"
                f" one type; the columns read are {listing(chosen)}"
            ) from error
        if table.num_rows != stream.lines:
            raise UserError(
                f"{path}: has {table.num_rows:,} JSON objects on {stream.lines:,} lines; write one object on each line"
            )
        return Loaded([table.column(name) for name in chosen], table.num_rows)

    return Source(str(path), names, True, False, load, "JSON lines")


def _type(path: Path, name: str, kinds: set[type]) -> pa.DataType:
    kinds = kinds - {type(None)}
    if kinds <= {str}:
        return pa.string()
    if kinds == {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    found = " and ".join(sorted(kind.__name__ for kind in kinds))
    raise UserError(f"{path}: column {name!r} holds values of type {found}; make it all integers or all strings")
