"""values: whether the ids and the seen rows of a call may be used as addresses, in one launch instead of the dozen that torch's
operators take. A program looks at BLOCK of the ids, and at one row of seen items. Floor: 8 bytes a number.
"""

import triton
import triton.language as tl
from torch import Tensor

from bdkernels.backends import native
from bdkernels.backends.triton.score import FUSED
from bdkernels.types.seen import Seen

BLOCK = 128  # numbers of a turn


@triton.jit
def deny(flag, wrong):
    """The flag becomes 0 if any is wrong."""
    tl.atomic_min(flag, tl.zeros((), tl.int64), mask=tl.max(wrong.to(tl.int32)) > 0)


@triton.jit(do_not_specialize=["n_ids", "n_rows", "n_seen", "limit"])
def look_at_values(
    ids, indptr, indices, fine, n_ids, n_rows, n_seen, limit, IDS: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr
):
    """fine [2], ones: the first becomes 0 where an id is not in [0, limit), the second where rows of seen items are wrong."""
    row = tl.program_id(0).to(tl.int64)
    if IDS:
        at = row * BLOCK + tl.arange(0, BLOCK)
        id = tl.load(ids + at, mask=at < n_ids, other=0)
        deny(fine, (at < n_ids) & ((id < 0) | (id >= limit)))
    if SEEN:
        wrong = tl.zeros([BLOCK], tl.int1)
        if row == 0:
            wrong = wrong | (tl.load(indptr) != 0) | (tl.load(indptr + n_rows) != n_seen)
        if row < n_rows:
            begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
            inside = (begin >= 0) & (begin <= end) & (end <= n_seen)  # else nothing of the row is read
            wrong = wrong | (inside == 0)
            for first in range(begin, tl.where(inside, end, begin), BLOCK):
                at = first + tl.arange(0, BLOCK)
                id = tl.load(indices + at, mask=at < end, other=0)
                before = tl.load(indices + at - 1, mask=(at < end) & (at > begin), other=-1)
                wrong = wrong | ((at < end) & ((id <= before) | (id >= limit)))
        deny(fine + 1, wrong)


def values(ids: Tensor | None, seen: Seen | None, limit: int) -> Tensor:
    """See `Steps.values`."""
    listed, (indptr, indices) = None if ids is None else ids.contiguous(), native.lists(seen)
    given = indptr if listed is None else listed
    assert given is not None
    fine = given.new_ones(2)
    n_ids = 0 if listed is None else listed.numel()
    n_rows, n_seen = (0, 0) if indptr is None or indices is None else (len(indptr) - 1, len(indices))
    look_at_values[(max(1, triton.cdiv(n_ids, BLOCK), n_rows),)](
        listed, indptr, indices, fine, n_ids, n_rows, n_seen, limit,
        IDS=listed is not None, SEEN=indptr is not None, BLOCK=BLOCK, **FUSED,
    )  # fmt: skip
    return fine
