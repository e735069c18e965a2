"""Files: written whole or not at all, kept through a power cut, and read without trust."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bidistill.errors import UserError
from bidistill.files.locks import lock, surely_lock

UNSYNCED = (
    errno.EINVAL,
    errno.EBADF,
    errno.ENOTSUP,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
)  # folders, on some systems
REMEDIES = {
    errno.ENOSPC: "make room or choose another place for it",
    errno.EDQUOT: "make room or choose another place for it",
    errno.EMFILE: "let the process open more files (ulimit -n), and try again",
    errno.ENFILE: "let the system open more files, and try again",
    errno.EIO: "check the disk, and try again",
}


@contextmanager
def replacing(path: str | os.PathLike[str], *, parents: bool = True, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it replaces `path` when the block ends well, else it is removed.

    When the block has ended, the new file is on the disk, so that a power cut leaves the old or the new one. Temporary files
    of this name that a killed process has left are removed. The file's mode follows the umask.

    Args:
        parents: make missing folders; else they are an error.
        durable: wait until the disk has it; False for what can be written again.

    Raises:
        UserError: the folder or file cannot be written, at once where that can be seen before.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            if present(path) and not path.is_file():  # a folder, or a device, which would be replaced by a file
                raise UserError(f"cannot write {path}: it is there and no regular file; choose another place for it")
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(path)
            temporary = _temporary(path, stack)
        except FileExistsError as error:
            raise UserError(f"cannot write {path}: {path.parent} is no folder; choose another place for it") from error
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync_folder(path.parent)
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block ends well, else it is removed.

    Temporary folders of this name that a killed process has left are removed. The folder's mode follows the umask.

    Raises:
        UserError: it cannot be made, or a file or a folder that is not empty has this name.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}.unfinished.*"):
                with suppress(OSError), _open_folder(left) as file:
                    if surely_lock(file):
                        shutil.rmtree(left)
            temporary = path.with_name(f".{path.name}.unfinished.{uuid.uuid4().hex[:12]}")
            temporary.mkdir()
            lock(stack.enter_context(_open_folder(temporary)))
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            yield temporary
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """A number by which a folder can be locked. Raises OSError for what is no folder, or a link to one."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    try:
        yield number
    finally:
        os.close(number)


def _temporary(path: Path, stack: ExitStack) -> Path:
    """A new file beside `path`, locked until the stack ends, which tells others that it is being written."""
    while True:
        temporary = path.with_name(f".{path.name}.unfinished.{uuid.uuid4().hex[:12]}")
        file = stack.enter_context(os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb"))
        if lock(file) and present(temporary):  # else another process took it for dead before it was locked
            return temporary


def _remove_dead(path: Path) -> None:
    """Remove the temporary files of this name whose writer has died."""
    start = f".{path.name}.unfinished."
    with suppress(OSError), os.scandir(path.parent) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(start)]
        for each in left:
            with suppress(OSError):
                if each.is_dir():
                    continue
                with os.fdopen(os.open(each, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
                    if surely_lock(file):
                        each.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until the disk has the file."""
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Wait until the disk has the names in the folder, on systems where that can be asked for."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in UNSYNCED:
            return
        raise
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(folder)


def present(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder. Raises UserError where that cannot be found out."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The open file. An OSError of the system, also inside the block, becomes a UserError that says what the system says."""
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{os.fspath(path)}: there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{os.fspath(path)}: this is a folder; check the path") from error
    except OSError as error:
        if error.errno is None:  # a library's own words
            raise
        raise unreadable(path, error) from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole file. Raises UserError as `reading`."""
    with reading(path) as file:
        return file.read()


def require_room(path: str | os.PathLike[str], size: int) -> None:
    """Raise UserError where the disk of the folder of `path`, which is there, has no room for `size` bytes more."""
    free = shutil.disk_usage(Path(path).parent).free
    if size > free:
        raise UserError(
            f"cannot write {path}: it needs about {size / 1e6:,.1f} MB more and the disk has {free / 1e6:,.1f} MB free;"
            " make room or choose another place for it"
        )


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """What to raise where the system did not let a file be written."""
    reason = os.strerror(error.errno) if error.errno else error  # libraries wrap these words in their own
    remedy = REMEDIES.get(error.errno or 0, "choose another place for it")
    return UserError(f"cannot write {os.fspath(path)}: {reason}; {remedy}")


def unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """What to raise where the system did not let a file be read, which says nothing of what is in it."""
    reason = os.strerror(error.errno) if error.errno else error
    remedy = REMEDIES.get(error.errno or 0, "check the path and who may read it")
    return UserError(f"cannot read {os.fspath(path)}: {reason}; {remedy}")


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
    with reading(path) as file:
        try:
            zipfile.ZipFile(file).close()
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                yield archive
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a NumPy archive, or damaged; write it again with numpy.savez") from error
        except Exception as error:  # a damaged archive fails in a dozen ways: zlib, header syntax, sizes, ...
            if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno):
                raise  # the system's word, not the file's fault
            raise UserError(f"{path}: not a readable .npz file ({error}); write it again with numpy.savez") from error


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hex. Raises UserError where it cannot be read."""
    digest = hashlib.sha256()
    with reading(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
