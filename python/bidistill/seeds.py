"""Seeds for the parts of a run."""

import hashlib
from typing import Any


def seed_of(*key: Any) -> int:
    """A seed that depends on every part of the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
