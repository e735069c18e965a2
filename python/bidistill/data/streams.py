"""The bytes of a text file, decompressed, with their lines counted while others read them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bidistill.errors import UserError

BOM = b"\xef\xbb\xbf"
STAND_IN = b"\x1f"  # the unit separator of ASCII, in the place of a separator of several characters


class Bytes(io.RawIOBase):
    """A readable file without its byte order mark, in which `STAND_IN` replaces a separator of several characters.

    lines: lines that are not empty, and marks: quotation marks `quote`; both of what was read so far.
    Lines end with LF, CR LF or CR. Raises UserError where the file cannot be opened or already holds `STAND_IN`.
    """

    def __init__(self, path: Path, sep: str = "", quote: str | None = None) -> None:
        super().__init__()
        self.path = path
        self.lines = 0
        self.marks = 0
        self._sep = sep.encode() if len(sep) > 1 else b""
        self._quote = quote.encode() if quote else None
        self._kept = b""  # bytes that may be the beginning of a separator
        self._in_line = False
        self._started = self._ended = False
        try:
            self._stream = pa.input_stream(path, compression="detect")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); check its rights and that it is whole") from error

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, fewer where that suits; none at the end only."""
        block = b""
        while not block and not self._ended:
            block = self._next(size)
        self._count(block)
        return block

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _next(self, size: int) -> bytes:
        block: bytes = self._stream.read(size if size and size > 0 else None)
        self._ended = not block or size < 0
        if not self._started:
            self._started = True
            block = block.removeprefix(BOM)
        if not self._sep:
            return block
        if STAND_IN in block:
            raise UserError(f"{self.path}: holds the control character 0x1F; remove it, or convert the file to CSV")
        *whole, rest = (self._kept + block).split(self._sep)
        self._kept = b"" if self._ended else _beginning(rest, self._sep)
        return STAND_IN.join([*whole, rest[: len(rest) - len(self._kept)]])

    def _count(self, block: bytes) -> None:
        if not block:
            return
        codes = np.frombuffer(block, np.uint8)
        inside = (codes != 10) & (codes != 13)
        self.lines += int(np.count_nonzero(inside[1:] & ~inside[:-1])) + bool(inside[0] and not self._in_line)
        self._in_line = bool(inside[-1])
        if self._quote is not None:
            self.marks += block.count(self._quote)


def _beginning(rest: bytes, sep: bytes) -> bytes:
    """The longest end of `rest` with which a separator begins."""
    ends = (sep[:length] for length in range(len(sep) - 1, 0, -1))
    return next((end for end in ends if rest.endswith(end)), b"")


def head(path: Path, size: int = 1 << 20) -> tuple[list[str], bool]:
    """The lines with which a file begins, as text, and whether they are all of it; else the last one may be cut.

    Raises UserError where it cannot be read, or is no UTF-8 text.
    """
    start = b""
    try:
        with Bytes(path) as stream:
            while len(start) < size and (block := stream.read(size - len(start))):
                start += block
            whole = len(start) < size or not stream.read(1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); check its rights and that it is whole") from error
    if b"\0" in start:
        raise UserError(f"{path}: not UTF-8 text (it holds NUL bytes); save it as UTF-8, or give the true extension")
    return re.split("\r\n|\n|\r", start.decode("utf-8", errors="replace")), whole
