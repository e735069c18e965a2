"""Lots: seeded pseudo-random numbers of (user, item) pairs, which depend on the original ids alone."""

from __future__ import annotations

import hashlib

import numpy as np

from bidistill.data.interactions import Interactions


def lots(data: Interactions, rows: np.ndarray, seed: int) -> np.ndarray:
    """The lots of these rows, uint64 [len(rows)], a function of (seed, user id, item id).

    So the order of the rows, their other rows and the numbering of users and items change nothing, nor does it matter
    whether an id is the number 7 or the text "7". seed: 0 or larger, of any size.
    """
    of_user, of_item = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    users, items = _mixed(_keys(data.user_ids) ^ of_user), _mixed(_keys(data.item_ids) ^ of_item)
    return _mixed(users[data.users[rows]] ^ items[data.items[rows]])


def _keys(ids: np.ndarray) -> np.ndarray:
    """A key of each id, uint64: whole numbers are their own."""
    if ids.dtype.kind in "iu":
        return ids.astype(np.uint64)
    return np.fromiter((_key(str(each)) for each in ids), np.uint64, len(ids))


def _key(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 20 and (text == "0" or text[0] != "0"):
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): each bit of the result depends on all bits."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers
