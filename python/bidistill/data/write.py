"""Writing interactions to a file that `read` reads back, block by block."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from bidistill.data.interactions import Interactions
from bidistill.errors import UserError
from bidistill.files.access import replacing, require_room

SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*SEPARATORS, ".parquet", ".npz")
ROWS = 1 << 20  # a block of rows that are in memory

Block = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]
Columns = dict[str, np.ndarray]


class Written(NamedTuple):
    """What a file holds: its rows, and the users and items that have a row."""

    rows: int
    users: int
    items: int


def write_interactions(path: str | Path, interactions: Interactions) -> Written:
    """Write the rows with their original ids: columns user_id, item_id and, if there are times, timestamp.

    path: ends in .csv, .tsv, .parquet or .npz. Written whole or not at all. Users and items without a row are not in it.
    Raises UserError for another ending or where it cannot be written.
    """
    users, items, times = interactions.users, interactions.items, interactions.times
    places = (slice(start, start + ROWS) for start in range(0, len(interactions), ROWS))
    blocks = ((users[rows], items[rows], None if times is None else times[rows]) for rows in places)
    return write_blocks(path, blocks, len(interactions), interactions.user_ids, interactions.item_ids)


def write_blocks(
    path: str | Path, blocks: Iterable[Block], rows: int, user_ids: np.ndarray, item_ids: np.ndarray
) -> Written:
    """Write what `write_interactions` writes of rows that come a few at a time, in memory that holds one block.

    blocks: at least one of (users, items, times or None), numbers into user_ids and item_ids. rows: of all of them. An
    .npz needs room for twice its size while it is written.
    Raises UserError for another ending, for a disk that is too small (once the first block tells the size of a row),
    or where the file cannot be written. Nothing is left of a file that is not whole.
    """
    kind = Path(path).suffix.lower()
    refuse_format(path)
    used = np.zeros(len(user_ids), bool), np.zeros(len(item_ids), bool)
    blocks = _marked(blocks, *used)
    if kind == ".npz":  # it holds strings of one length, which only all ids together tell
        user_ids, item_ids = (ids.astype(str) if ids.dtype == object else ids for ids in (user_ids, item_ids))
    with replacing(path) as temporary:
        columns = (_named(block, user_ids, item_ids) for block in blocks)
        if kind == ".npz":
            _write_npz(temporary, lambda size: _watched(path, columns, rows, size))
            return Written(rows, *(int(mark.sum()) for mark in used))
        with pa.OSFile(str(temporary), "wb") as file:
            tables = (pa.table(block) for block in _watched(path, columns, rows, file.tell))
            first = next(tables)
            if kind == ".parquet":
                writer = pq.ParquetWriter(file, first.schema)
            else:
                writer = pacsv.CSVWriter(
                    file, first.schema, write_options=pacsv.WriteOptions(delimiter=SEPARATORS[kind])
                )
            with writer:
                for table in chain([first], tables):
                    writer.write_table(table)
    return Written(rows, *(int(mark.sum()) for mark in used))


def refuse_format(path: str | Path) -> None:
    """Raise UserError unless the path ends like a format that can be written."""
    kind = Path(path).suffix.lower()
    if kind not in FORMATS:
        raise UserError(f"{path}: cannot write the format {kind!r}; use .csv, .tsv, .parquet or .npz")


def _marked(blocks: Iterable[Block], users: np.ndarray, items: np.ndarray) -> Iterator[Block]:
    """The blocks; their users and items are marked in these flags."""
    for block in blocks:
        users[block[0]] = items[block[1]] = True
        yield block


def _named(block: Block, user_ids: np.ndarray, item_ids: np.ndarray) -> Columns:
    users, items, times = block
    columns = {"user_id": user_ids[users], "item_id": item_ids[items]}
    return columns if times is None else columns | {"timestamp": times}


def _watched(path: str | Path, blocks: Iterable[Columns], rows: int, size: Callable[[], int]) -> Iterator[Columns]:
    """The blocks; when the first is written, its `size` in bytes tells whether the disk has room for the others."""
    written = 0
    for block in blocks:
        yield block
        if not written:
            written = len(block["user_id"])
            require_room(path, size() * (rows - written) // written)


def _write_npz(path: Path, watched: Callable[[Callable[[], int]], Iterator[Columns]]) -> None:
    """An archive holds one array after the other, so each column waits in a nameless file until all rows are there."""
    with ExitStack() as stack:
        waiting: dict[str, tuple[BinaryIO, np.dtype]] = {}
        length = 0
        for block in watched(lambda: 2 * sum(file.tell() for file, _ in waiting.values())):
            for name, values in block.items():
                if name not in waiting:
                    waiting[name] = stack.enter_context(tempfile.TemporaryFile(dir=path.parent)), values.dtype
                waiting[name][0].write(np.ascontiguousarray(values).data)
            length += len(block["user_id"])
        with zipfile.ZipFile(path, "w") as archive:
            for name, (file, dtype) in waiting.items():
                file.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(file, member, 1 << 20)
