"""Whose random numbers a row of `sample` draws: a row's key is an int64 that every backend hands to Philox as it is.

The lower half of a key is the user's id, word c2 of Philox's counter. The upper half is mixed into word c1, whose lowest bits
name the stream (`reference.PROPOSE` and its like): bit 7 tells apart the two directions where they share nothing, and the 24 bits
above it are the row's occurrence. Bits that are 0 change no draw, so a plain user id is a key.
"""

import torch
from torch import Tensor

from bdkernels import checks

USERS = 2**32  # ids of users are below
OCCURRENCES = 2**24  # occurrences are below: what is left of a 32-bit word
_OCCURRENCE, _APART = 40, 39  # first bit of the occurrence, and the one of the second of two separate directions


def of_rows(user_ids: Tensor, occurrence: Tensor | None) -> Tensor:
    """[B] int64 keys of rows, from their ids and occurrences [B] int64; a ValueError where one is out of range."""
    user_ids = checks.own_ids("user_ids", user_ids, USERS)
    if occurrence is None:
        return user_ids
    return user_ids | checks.own_ids("occurrence", occurrence, OCCURRENCES, "numbers") << _OCCURRENCE


def apart(keys: Tensor) -> Tensor:
    """[B] int64: keys of the same rows whose random numbers have nothing in common with those of `keys`."""
    return keys | 1 << _APART


def occurrence(user_ids: Tensor) -> Tensor:
    """For each row, how many rows before it have the same user: what `sample(occurrence=...)` takes.

    Number the rows of the whole batch before the batch is split over calls or processes: then a split changes no draw.

    Args:
        user_ids: [B] int64, in any order.

    Returns:
        [B] int64, 0 for the first row of each user.

    Raises:
        ValueError: user_ids is not one-dimensional or not int64.
    """
    checks.instance("user_ids", user_ids, Tensor)
    checks.tensor("user_ids", user_ids, ("B",), (torch.int64,), user_ids.device)
    order = user_ids.argsort(stable=True)
    ordered = user_ids[order]
    index = torch.arange(user_ids.shape[0], device=user_ids.device)
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(index).scatter_(0, order, index - first)
