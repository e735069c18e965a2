"""Tensors in a .safetensors file with a seal: written block by block, and checked whole before any is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bidistill.errors import UserError
from bidistill.files.access import reading, replacing, require_room
from bidistill.files.seal import BLANK, blanked, digest

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
BLOCK = 1 << 20
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str], *, parents: bool = True) -> str:
    """Write the tensors and, in the file's metadata, what it is about. Returns the seal."""
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    return save_blocks(path, shapes, about, tensors.values(), parents=parents)


def save_blocks(
    path: Path, shapes: Shapes, about: Mapping[str, str], blocks: Iterable[Tensor], *, parents: bool = True
) -> str:
    """Write tensors of these names, dtypes and shapes, whose bytes come as blocks in this order. Returns the seal."""
    header: dict[str, Any] = {"__metadata__": {"sha256": BLANK, **about}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + dtype.itemsize * int(torch.Size(shape).numel())
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    with replacing(path, parents=parents) as temporary, temporary.open("wb") as file:
        require_room(path, len(head) + end)
        file.write(head)
        seal = digest(head, _written(file, blocks))
        file.seek(head.index(BLANK.encode()))
        file.write(seal.encode())
    return seal


def _written(file: BinaryIO, blocks: Iterable[Tensor]) -> Iterator[bytes]:
    for block in blocks:
        flat = block.detach().cpu().contiguous().reshape(-1)
        for piece in flat.view(torch.uint8).split(BLOCK) if flat.numel() else ():
            data = piece.numpy().tobytes()
            file.write(data)
            yield data


def seal_of(path: str | os.PathLike[str]) -> tuple[str, dict[str, str]]:
    """The seal of a file that was written here and is whole, and its metadata. Memory stays at a block.

    Raises:
        UserError: a missing, damaged or foreign file, in words that say which.
    """
    with reading(path) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if size < 8 or length > min(size - 8, 1 << 27):
            raise UserError(f"{os.fspath(path)} is damaged: it is no .safetensors file")
        text = file.read(length)
        try:
            about = json.loads(text)["__metadata__"]
            seal = about["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{os.fspath(path)} has no checksum: it is damaged, foreign or of an earlier version"
            ) from error
        whole = length.to_bytes(8, "little") + text
        if not isinstance(seal, str) or digest(blanked(whole, seal), iter(lambda: file.read(BLOCK), b"")) != seal:
            raise UserError(f"{os.fspath(path)} is damaged (its checksum is not the one that it names)")
    return seal, about


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The file of safetensors' own reader, whose tensors are read when they are asked for; check its seal before."""
    with reading(path):  # the system's errors in its own words
        pass
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}") from error


SHARDS = ("shard-*.safetensors", ".metadata")  # what torch.distributed.checkpoint calls the files of a folder of shards


def remove(path: Path) -> None:
    """Remove tensors of a checkpoint: a file, or a folder of shards with the files that this program writes there."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for pattern in SHARDS:
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)
    with suppress(OSError):  # something of others is in it
        path.rmdir()


def below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names start with the prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
