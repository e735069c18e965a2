"""Seals: a file holds the sha256 of itself, taken with zeros in the digest's place, so that any change of any byte is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

BLANK = "0" * 64


def digest(head: bytes, blocks: Iterable[bytes] = ()) -> str:
    """The sha256, in hex, of a head whose seal is BLANK and of what follows."""
    total = hashlib.sha256(head)
    for block in blocks:
        total.update(block)
    return total.hexdigest()


def blanked(head: bytes, seal: str) -> bytes:
    """The head with BLANK in the place of its seal, which is the first place where the seal stands."""
    return head.replace(seal.encode(), BLANK.encode(), 1) if len(seal) == len(BLANK) else head
