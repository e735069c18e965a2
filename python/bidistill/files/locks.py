"""Locks on files that end with the process that holds them, however it ends."""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO

try:
    _fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows: nothing is locked there
    _fcntl = None


def lock(file: BinaryIO | int) -> bool:
    """Lock an open file, or the number of one, without waiting. Returns False where another one holds it.

    Where the system or the file system has no such locks, nothing is locked, and the answer is True.
    """
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def surely_lock(file: BinaryIO | int) -> bool:
    """`lock`, with another answer: True only where it is certain that nobody else holds it."""
    if _fcntl is None:
        return False
    try:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except OSError:
        return False
    return True
