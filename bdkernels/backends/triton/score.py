"""score: listed items, or all of a block, in Triton.

A score is the same chain of fused multiply-adds over d in fp32, from the bias on, as everywhere: one lane a score, k by k, so it
has the bits of the reference. 2 d operations a score; a listed item's row is read for it alone, 4 d bytes, which is the floor.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels.types.factors import Factors

BLOCK = 128  # scores of a program
FUSED = {"enable_fp_fusion": True}  # multiply-adds round once, whatever Triton's default becomes


@triton.jit
def chain(users, items, item_bias, user, item, d, user_stride, item_stride, wanted, BIAS: tl.constexpr):
    """Scores of pairs (user, item), tensors of int64 of one shape; 0 where not wanted."""
    score = tl.zeros(wanted.shape, tl.float32)
    if BIAS:
        score = tl.load(item_bias + item, mask=wanted, other=0.0).to(tl.float32)
    for k in range(0, d):
        u = tl.load(users + user * user_stride + k, mask=wanted, other=0.0).to(tl.float32)
        v = tl.load(items + item * item_stride + k, mask=wanted, other=0.0).to(tl.float32)
        score = tl.fma(u, v, score)
    return score


@triton.jit
def score_pairs(
    users, items, item_bias, ids, out, n, per_user, d, user_stride, item_stride,
    BIAS: tl.constexpr, LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [n]: the scores of `per_user` items a user: those of ids [n], or items 0, 1, ... where none are listed."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < n
    item = at % per_user
    if LISTED:
        item = tl.load(ids + at, mask=wanted, other=0)
    score = chain(users, items, item_bias, at // per_user, item, d, user_stride, item_stride, wanted, BIAS)
    tl.store(out + at, score, mask=wanted)


def score(f: Factors, ids: Tensor) -> Tensor:
    """As in the reference."""
    return _score(f, ids.contiguous(), ids.shape[1])


def score_block(f: Factors) -> Tensor:
    """As in the reference."""
    return _score(f, None, f.n_items)


def _score(f: Factors, ids: Tensor | None, per_user: int) -> Tensor:
    users, items, bias = by_rows(f)
    out = torch.empty(users.shape[0], per_user, dtype=torch.float32, device=users.device)
    if n := out.numel():
        score_pairs[(triton.cdiv(n, BLOCK),)](
            users, items, bias, ids, out, n, per_user, users.shape[1], users.stride(0), items.stride(0),
            BIAS=bias is not None, LISTED=ids is not None, BLOCK=BLOCK, **FUSED,
        )  # fmt: skip
    return out


def by_rows(f: Factors) -> Factors:
    """The same factors, each row in one piece."""
    users, items = (t if t.stride(1) == 1 else t.contiguous() for t in (f.user_factors, f.item_factors))
    return Factors(users, items, None if f.item_bias is None else f.item_bias.contiguous())
