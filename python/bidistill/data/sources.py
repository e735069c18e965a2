"""Where interactions come from: a text, Parquet or NumPy file, a data frame, an array of pairs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bidistill.data.columns import Column
from bidistill.data.json_lines import ENDINGS, open_json_lines
from bidistill.data.source import Loaded, Source
from bidistill.data.text import FORMATS, SEPARATORS, open_text
from bidistill.errors import UserError
from bidistill.files.access import load_npz

PARQUET = (".parquet", ".pq")
COMPRESSED = (".gz", ".bz2", ".zst")


def open_source(
    source: Any, sep: str | None, header: bool | None, given: Sequence[Column], quote: str, format: str
) -> Source:
    """Find out what `source` is and which columns it has. Raises UserError for what cannot be opened."""
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if isinstance(source, (str, Path)):
        return _file(Path(source), sep, header, given, quote, format)
    if isinstance(source, np.ndarray):
        return _pairs("array", source, "array")
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    elif hasattr(source, "to_arrow"):
        source = source.to_arrow()
    if isinstance(source, pa.Table):
        table = source

        def load(places: Sequence[int]) -> Loaded:
            return Loaded([table.column(place) for place in places], table.num_rows)

        return Source("table", table.column_names, True, False, load, "table")
    if not hasattr(source, "columns"):
        raise UserError(
            f"cannot read interactions from {type(source).__name__}; give a path, a data frame or an [n, 2] array"
        )
    frame, names = source, list(source.columns)
    columns = (lambda p: frame.iloc[:, p]) if hasattr(frame, "iloc") else (lambda p: frame[names[p]])
    return _lazy("data frame", [str(name) for name in names], columns, len(frame), "data frame")


def _file(path: Path, sep: str | None, header: bool | None, given: Sequence[Column], quote: str, format: str) -> Source:
    try:
        if path.is_dir():
            raise UserError(f"{path}: this is a folder; give a file in it")
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check the path and its rights") from error
    if size == 0:
        raise UserError(f"{path}: the file is empty; give one with (user, item) rows")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSED else (suffixes or [""])[-1]
    if kind in SEPARATORS or sep is not None or format == "adjacency":
        return open_text(path, kind, sep, header, given, quote, format)
    if kind in ENDINGS:
        return open_json_lines(path)
    if kind in PARQUET:
        return _parquet(path)
    if kind == ".npz":
        return _npz(path)
    known = ", ".join([*SEPARATORS, *ENDINGS, *PARQUET, ".npz"])
    raise UserError(f"{path}: unknown extension {kind!r}; known are {known}; for other text files give sep")


def _parquet(path: Path) -> Source:
    def load(places: Sequence[int]) -> Loaded:
        try:
            table = pq.read_table(path, columns=[names[place] for place in places], partitioning=None)
            return Loaded([table.column(names[place]) for place in places], pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: a column name that occurs twice
            raise UserError(f"{path}: damaged Parquet file ({_first_line(error)}); write it again") from error

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_first_line(error)}); write it again") from error
    return Source(str(path), names, True, False, load, "Parquet")


def _npz(path: Path) -> Source:
    arrays = load_npz(path)
    if len(arrays) == 1 and next(iter(arrays.values())).ndim == 2:
        return _pairs(str(path), next(iter(arrays.values())), "NumPy archive")
    if {"train", "test"} <= arrays.keys():
        raise UserError(f"{path}: holds a data set already split (train, test); read it with given_split")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UserError(
            f"{path}: needs flat arrays of one length named like columns, or one [n, 2] array; found {found}"
        )
    values = list(arrays.values())
    return _lazy(str(path), list(arrays), lambda place: values[place], len(values[0]), "NumPy archive")


def _pairs(where: str, pairs: np.ndarray, format: str) -> Source:
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise UserError(f"{where}: an array of (user, item) pairs must have shape [n, 2], got {list(pairs.shape)}")
    return _lazy(where, ["user", "item"], lambda place: pairs[:, place], len(pairs), format)


def _lazy(where: str, names: list[str], column: Callable[[int], Any], rows: int, format: str) -> Source:
    """A source whose columns are array-likes that pyarrow converts."""

    def load(places: Sequence[int]) -> Loaded:
        return Loaded([_converted(f"{where}: column {names[place]!r}", column(place)) for place in places], rows)

    return Source(where, names, True, False, load, format)


def _converted(what: str, values: Any) -> pa.ChunkedArray:
    if (
        len(values)
        and isinstance(next(iter(values)), uuid.UUID)
        and all(isinstance(each, uuid.UUID) for each in values)
    ):
        values = [str(value) for value in values]  # pyarrow before 21 does not take them
    try:
        converted = pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} mixes types ({_first_line(error)}); make it all integers or all strings") from error
    return converted if isinstance(converted, pa.ChunkedArray) else pa.chunked_array([converted])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
