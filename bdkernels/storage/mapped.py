"""Tables on disk, mapped into memory and read in place: `open_memmap`, and what the operators need to know of such a table.

A mapped page counts as this process's memory from the moment it is read until the system needs the room. `streamed` therefore
reads a table in slices and gives each one's pages back (MADV_DONTNEED; they stay in the system's page cache, which is reclaimed
first), so that no more than a slice is resident, however large the table.
"""

import ctypes
import json
import math
import mmap
import os
import stat
import weakref
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from bdkernels.checks import _is

NPY_DTYPES = {"<f4": torch.float32, "<f2": torch.float16}
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SAFETENSORS_HEADER = 100_000_000  # bytes of a header at most, by the format's definition
AHEAD = 1 << 20  # bytes; Linux reads hardly more for one MADV_WILLNEED
BLOCK = 2 << 20  # bytes; Linux maps up to so many around one that is read, where they are in the page cache
BLOCKS = 8  # that may be resident while scattered rows are read; tests change it, results do not
DENSE = 32  # rows wanted of a block that are cheaper to read from disk with all of it than one by one


class Mapping:
    """A file mapped read-only, with one tensor in it. Lives as long as the tensor's storage."""

    def __init__(self, path: str, pages: mmap.mmap, start: int) -> None:
        self.path, self.start = path, start  # start: the file's offset of the storage's first byte
        self._pages = weakref.ref(pages)  # owned by the storage
        self.size = len(pages)

    def check(self) -> None:
        """Raise ValueError if the file has another size than when it was opened: reading past its end would kill the process."""
        pages = self._pages()
        now = self.size if pages is None else pages.size()
        _is(now == self.size, self.path, f"a file of {self.size} bytes, as it was opened", f"{now} bytes")

    def in_order(self, yes: bool) -> None:
        """Tell the system how the table will be read: from front to back, or rows here and there."""
        self._advise("MADV_SEQUENTIAL" if yes else "MADV_RANDOM", 0, self.size)

    def read_ahead(self, first: int, last: int) -> None:
        """Let the system begin to read these bytes of the file."""
        for at in range(first, last, AHEAD):
            self._advise("MADV_WILLNEED", at, min(at + AHEAD, last))

    def release(self, first: int, last: int) -> None:
        """Give back the pages of these bytes of the file; whoever reads them again gets them again."""
        self._advise("MADV_DONTNEED", first, last)

    def extent(self, part: Tensor) -> tuple[int, int]:
        """The first byte of a view, and the one after its last, in the file."""
        first = self.start + int(part.storage_offset()) * part.element_size()
        length = 1 + sum((int(n) - 1) * int(stride) for n, stride in zip(part.shape, part.stride(), strict=True))
        return first, first + (length * part.element_size() if part.numel() else 0)

    def _advise(self, advice: str, first: int, last: int) -> None:
        pages = self._pages()
        if pages is not None and hasattr(mmap, advice) and last > first:
            first -= first % mmap.PAGESIZE
            pages.madvise(getattr(mmap, advice), first, last - first)


_live: dict[int, Mapping] = {}  # by the identity of the tensor's storage


def mapping_of(t: Tensor) -> Mapping | None:
    """What a tensor, or the one that it is a view of, was mapped from; None for one in memory."""
    return _live.get(t.untyped_storage()._cdata) if _live else None


def any_mapped(*models: Iterable[Tensor | None]) -> bool:
    """Whether a tensor of theirs is mapped. Raises ValueError if the file of one has changed its size."""
    if not _live:
        return False
    found = [mapping for f in models for t in f if t is not None and (mapping := mapping_of(t)) is not None]
    for mapping in found:
        mapping.check()
    return bool(found)


def trainable(user_table: Tensor, item_table: Tensor, item_bias: Tensor | None) -> None:
    """Raise ValueError for a mapped table, since it is read-only."""
    if not _live:
        return
    for name, t in (("user_table", user_table), ("item_table", item_table), ("item_bias", item_bias)):
        if t is not None and (mapping := mapping_of(t)) is not None:
            _is(False, name, "a table in memory, to be trained", f"one mapped read-only from {mapping.path}")


def take(table: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` ([n] int64, in range) of a table, in memory; a mapped one is read in the order of its rows, and given back."""
    mapping = mapping_of(table) if _live else None
    if mapping is None or not len(ids):
        return table.index_select(0, ids)
    mapping.check()
    mapping.in_order(False)
    rising, places = ids.sort()
    first, end = mapping.extent(table[:1])
    starts = first + rising * (table.stride(0) * table.element_size())  # [n], of the rows in the file
    blocks, counts = torch.unique_consecutive(starts // BLOCK, return_counts=True)
    for block, of_block in zip(blocks.tolist(), starts.split(counts.tolist()), strict=True):
        if len(of_block) >= DENSE:
            mapping.read_ahead(block * BLOCK, min((block + 1) * BLOCK, mapping.size))
        else:
            for start in of_block.tolist():
                mapping.read_ahead(start, start + end - first)
    out = table.new_empty(len(ids), *table.shape[1:])
    sizes = [int(some.sum()) for some in counts.split(BLOCKS)]
    for some, at, to in zip(*(t.split(sizes) for t in (rising, starts, places)), strict=True):
        out[to] = table[some]
        mapping.release(int(at[0]), int(at[-1]) + end - first)
    return out


def open_memmap(path: str | os.PathLike[str], name: str | None = None) -> Tensor:
    """A table in a file, usable in every operator as if it were in memory, though it may be larger than that.

    `score`, `rank`, `count_above`, `topk` and `sample` give the same bits as from memory. They read the table in slices of
    `streamed.SLICE_BYTES`, front to back, and give the pages back, so that resident memory stays at a slice above what the call
    needs anyway. One call of rank, count_above or topk reads the table once, whatever the number of users: ask for many at
    once. What `sample` reads is said there. Views of the table (a shard of its rows, some of its columns) are as good. Other
    torch functions can read it too, without giving pages back.

    The table is read-only: whatever would write to it in torch raises RuntimeError, as do `numpy()` and `data_ptr()`, which hand
    out memory to be written to. Training steps refuse it. Replacing the file by another one of its name is fine, the old one is
    read on; a file cut short or extended in place is an error at the next call.

    Args:
        path: a .npy file, 1-D or 2-D in C order, float32 or float16; or a .safetensors file, whose tensor is 1-D or 2-D, float32,
            float16 or bfloat16. Little-endian. The content decides, not the name.
        name: which tensor of a .safetensors file; may be left out where there is just one.

    Returns:
        the tensor, on the CPU. The mapping ends with the last tensor that uses it.

    Raises:
        ValueError: it names the path, what was expected and what was found: no such file, another format, dtype or number of
            dimensions, a size other than the header says, no such tensor, data not aligned to their dtype.
    """
    path = os.fspath(path)
    try:
        # Asked before it is opened: to open a pipe waits for the other end.
        _is(stat.S_ISREG(os.stat(path).st_mode), path, "a file", "a folder or device")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            is_npy = file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
            file.seek(0)
            layout = _npy_layout(file, path, size, name) if is_npy else _safetensors_layout(file, path, size, name)
            if math.prod(layout.shape) == 0:
                return torch.empty(layout.shape, dtype=layout.dtype)
            pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got {error.strerror or error}") from error
    return _tensor(path, pages, layout)


class _Layout(NamedTuple):
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes


def _tensor(path: str, pages: mmap.mmap, layout: _Layout) -> Tensor:
    # torch warns of buffers that are not writable. This one says that it is; that no one writes to it is seen to below.
    address = np.frombuffer(pages, np.uint8).ctypes.data
    buffer = (ctypes.c_char * len(pages)).from_address(address)
    buffer.pages = pages  # type: ignore[attr-defined]
    count = math.prod(layout.shape)
    t = torch.frombuffer(buffer, dtype=layout.dtype, count=count, offset=layout.start).view(layout.shape)
    torch._C._set_throw_on_mutable_data_ptr(t)
    key = t.untyped_storage()._cdata
    _live[key] = Mapping(path, pages, layout.start)
    weakref.finalize(buffer, _live.pop, key).atexit = False  # the storage holds the buffer
    return t


def _npy_layout(file: IO[bytes], path: str, size: int, name: str | None) -> _Layout:
    _is(name is None, "name", f"None for the .npy file {path}", repr(name))
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # a damaged header fails in several ways: its literal is parsed
        why = next(iter(str(error).splitlines()), "a damaged header")
        raise ValueError(f"{path}: expected a .npy file of version 1 or 2, got {why}") from error
    _is(dtype.str in NPY_DTYPES, path, "float32 or float16, little-endian", dtype)
    _is(not fortran or max(shape, default=0) == math.prod(shape), path, "C order", "Fortran order")
    return _layout(path, NPY_DTYPES[dtype.str], shape, (file.tell(), size))


def _safetensors_layout(file: IO[bytes], path: str, size: int, name: str | None) -> _Layout:
    length = int.from_bytes(file.read(8), "little")
    known = size >= 8 and length <= min(size - 8, SAFETENSORS_HEADER)
    _is(known, path, "a .npy or .safetensors file", f"neither, or one cut short, of {size} bytes")
    try:
        header = json.loads(file.read(length))
        entries = {key: _Entry.of(value) for key, value in header.items() if key != "__metadata__"}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a .npy or .safetensors file, got a header that is neither's") from error
    if name is None and len(entries) == 1:
        (name,) = entries
    names = ", ".join(sorted(entries)) or "none"
    if name not in entries:
        raise ValueError(f"name: expected one of the tensors of {path} ({names}), got {name!r}")
    end, entry = 8 + length + max(e.last for e in entries.values()), entries[name]
    _is(size == end, path, f"a file of {end} bytes, as its header says", f"{size} bytes")
    where = f"{path}, {name}"
    _is(entry.dtype in SAFETENSORS_DTYPES, where, "one of " + ", ".join(SAFETENSORS_DTYPES), entry.dtype)
    extent = 8 + length + entry.first, 8 + length + entry.last
    return _layout(where, SAFETENSORS_DTYPES[entry.dtype], entry.shape, extent)


class _Entry(NamedTuple):
    """A tensor in the header of a .safetensors file; its extent is counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def of(cls, value: dict[str, Any]) -> "_Entry":
        """Raises ValueError, KeyError or TypeError where the value is no such thing."""
        entry = cls(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
        numbers = *entry.shape, entry.first, entry.last - entry.first
        if not isinstance(entry.dtype, str) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"no entry of a header: {value}")
        return entry


def _layout(where: str, dtype: torch.dtype, shape: tuple[int, ...], extent: tuple[int, int]) -> _Layout:
    """Checked; `extent` is the tensor's first byte and the one after the last."""
    _is(len(shape) in (1, 2) and min(shape) >= 0, where, "1 or 2 dimensions", list(shape))
    first, last = extent
    wanted = math.prod(shape) * dtype.itemsize
    _is(last - first == wanted, where, f"{wanted} bytes for shape {list(shape)}", last - first)
    _is(first % dtype.itemsize == 0, where, f"data at a multiple of {dtype.itemsize} bytes", f"at byte {first}")
    return _Layout(dtype, shape, first)
