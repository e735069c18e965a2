"""Files: written whole or not at all, and NumPy archives read without trust."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bidistill.errors import UserError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it replaces `path` when the block ends well, else it is removed.

    Missing parent folders are made. Raises UserError where the folder or file cannot be written, at once where that
    can be seen before.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a folder, or a device, which would be replaced by a file
            raise UserError(f"cannot write {path}: it is there and no regular file; choose another place for it")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.unfinished.", suffix=path.suffix)
        os.close(handle)
    except FileExistsError as error:
        raise UserError(f"cannot write {path}: {path.parent} is no folder; choose another place for it") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; a data file should follow the user's umask
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_room(path: str | os.PathLike[str], size: int) -> None:
    """Raise UserError where the disk of the folder of `path`, which is there, has no room for `size` bytes more."""
    free = shutil.disk_usage(Path(path).parent).free
    if size > free:
        raise UserError(
            f"cannot write {path}: it needs about {size / 1e6:,.1f} MB more and the disk has {free / 1e6:,.1f} MB free;"
            " make room or choose another place for it"
        )


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = os.strerror(error.errno) if error.errno else error  # libraries wrap these words in their own
    return UserError(f"cannot write {path}: {reason}; choose another place for it")


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, in memory. Raises UserError for a missing, foreign or damaged file."""
    with _opened_npz(path) as archive:
        return {name: archive[name] for name in archive.files}


def npz_names(path: str | Path) -> list[str]:
    """The names of its arrays, which are not read. Raises UserError for a missing or foreign file."""
    with _opened_npz(path) as archive:
        return list(archive.files)


@contextmanager
def _opened_npz(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise UserError(
            f"{path}: {'this is a folder' if Path(path).is_dir() else 'there is no such file'}; check the path"
        )
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a NumPy archive, or damaged; write it again with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except Exception as error:  # a damaged archive fails in a dozen ways: zip, zlib, header syntax, sizes, ...
        raise UserError(f"{path}: not a readable .npz file ({error}); write it again with numpy.savez") from error
