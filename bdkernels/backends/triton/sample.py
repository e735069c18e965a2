"""sample: proposals and their acceptance in Triton; the rounds around them are those of `sampling.sampler`, on the device.

A proposal is Philox4x32-10 (32-bit products and exclusive ors, no memory) and a binary search in the user's seen row; an
acceptance is Philox again, a logarithm and a log-weight in float64. 8 bytes a proposal out, 16 in: the floor is the launch.

Proposals have the bits of the reference. Accepting compares float64 logarithms, whose last bits are the math library's own: once
in about 10^15 proposals a backend may decide otherwise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels.backends import reference
from bdkernels.types.seen import Seen
from bdkernels.weights import KINDS, WeightCode

BLOCK = 128  # proposals of a program
ROUNDED = {"enable_fp_fusion": False}  # every operation rounds, as in the reference
TANH, EXP, LINEAR, UNIFORM, RANK_ONLY = (
    tl.constexpr(KINDS.index(k)) for k in ("tanh", "exp", "linear", "uniform", "rank_only")
)


@triton.jit
def philox(seed, index, stream, row_key, step):
    """Four words of 32 bits (Salmon, Moraes, Dror, Shaw, SC 2011), uint32 tensors; see csrc/core/philox.h."""
    c0, c2 = index, row_key.to(tl.uint32)
    c1, c3 = (row_key >> 32).to(tl.uint32) | stream, tl.zeros_like(c0) + step
    k0, k1 = tl.zeros_like(c0) + seed.to(tl.uint32), tl.zeros_like(c0) + (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def random_words(seed, step, row_keys, at, wanted, start, size, STREAM: tl.constexpr):
    """The words of pair number at, [B, size] in rows: of its row's key, and of index start + column."""
    row_key = tl.load(row_keys + at // size, mask=wanted, other=0)
    index = (start + at % size).to(tl.uint32)
    return philox(seed.to(tl.int64), index, STREAM, row_key, step.to(tl.uint32))


@triton.jit(do_not_specialize=["seed", "step", "start"])
def propose_block(
    row_keys, indptr, indices, out, seed, step, start, n, size, n_items,
    STREAM: tl.constexpr, SEEN: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [B, size]: proposals start, start + 1, ... of each user: uniform unseen items, -1 where there are none."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < n
    hi, lo, _, _ = random_words(seed, step, row_keys, at, wanted, start, size, STREAM)
    row = at // size
    begin = tl.zeros_like(at)
    count = tl.zeros_like(at)
    if SEEN:
        begin = tl.load(indptr + row, mask=wanted, other=0)
        count = tl.load(indptr + row + 1, mask=wanted, other=0) - begin
    unseen = n_items - count
    m = unseen.to(tl.uint64)
    nth = ((hi.to(tl.uint64) * m + (lo.to(tl.uint64) * m >> 32)) >> 32).to(tl.int64)
    passed = tl.zeros_like(at)  # seen items with at most nth unseen ones before them
    if SEEN:
        for _ in range(0, BITS):
            inside = wanted & (passed < count)
            middle = (passed + count) // 2
            id = tl.load(indices + begin + middle, mask=inside, other=0)
            before = id - middle <= nth
            passed = tl.where(inside & before, middle + 1, passed)
            count = tl.where(inside & (before == 0), middle, count)
    tl.store(out + at, tl.where(nth < unseen, nth + passed, -1), mask=wanted)


@triton.jit
def log_tanh(x):
    """log(tanh(x)), float64, x >= 0; expm1(y) as (u - 1) y / log(u) with u = exp(y) keeps the digits of a small y (Kahan)."""
    y = -2.0 * tl.minimum(x, 20.0)  # beyond, tanh rounds to 1
    u = tl.exp(y)
    one = u == 1.0
    less = tl.where(one, y, (u - 1.0) * y / tl.where(one, 1.0, tl.log(u)))
    return tl.log(-less / (less + 2.0))


@triton.jit
def log_weight(gap, rank_guide, parameter, KIND: tl.constexpr):
    """The formulas of `reference.log_weight`."""
    if KIND == TANH:
        return log_tanh(parameter * tl.maximum(gap, 0.0))
    elif KIND == EXP:
        return parameter * gap
    elif KIND == LINEAR:
        return tl.log(tl.maximum(gap, 0.0))
    elif KIND == RANK_ONLY:
        return -(rank_guide - 1).to(tl.float64) / parameter
    else:
        return tl.zeros_like(gap)


@triton.jit(do_not_specialize=["seed", "step", "start"])
def accept_block(
    row_keys, rank_guide, rank_learner, candidates, parameter, out, seed, step, start, n, size,
    STREAM: tl.constexpr, KIND: tl.constexpr, FLIPPED: tl.constexpr, TO_TEACHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [B, size] uint8: 1 where the proposal is a draw; parameter float64 [1]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < n
    a, b, c, d = random_words(seed, step, row_keys, at, wanted, start, size, STREAM)
    hi, lo = a, b
    if TO_TEACHER:
        hi, lo = c, d
    u = (((hi.to(tl.uint64) << 20) | (lo >> 12).to(tl.uint64)).to(tl.float64) + 0.5) * 2.220446049250313e-16
    guide = tl.load(rank_guide + at, mask=wanted, other=1)
    delta = guide - tl.load(rank_learner + at, mask=wanted, other=1)
    if FLIPPED:
        delta = -delta
    count = tl.load(candidates + at // size, mask=wanted, other=1)
    many = count.to(tl.float64)
    p = tl.load(parameter)
    weight = log_weight(delta.to(tl.float64) / many, guide, p, KIND)
    most = log_weight((count - 1).to(tl.float64) / many, tl.zeros_like(guide) + 1, p, KIND)
    # A NaN, where there is no weight anywhere, compares false.
    tl.store(out + at, (tl.log(u) < weight - most).to(tl.uint8), mask=wanted)


def propose(seed: int, step: int, row_keys: Tensor, start: int, stop: int, n_items: int, seen: Seen | None) -> Tensor:
    """As in the reference."""
    size = stop - start
    out = row_keys.new_empty(row_keys.shape[0], size)
    indptr, indices = (None, None) if seen is None else (seen.indptr.contiguous(), seen.indices.contiguous())
    if n := out.numel():
        propose_block[(triton.cdiv(n, BLOCK),)](
            row_keys.contiguous(), indptr, indices, out, seed, step, start, n, size, n_items,
            STREAM=reference.PROPOSE, SEEN=indices is not None, BLOCK=BLOCK,
            BITS=0 if indices is None else indices.numel().bit_length(), **ROUNDED,
        )  # fmt: skip
    return out


def accept(
    seed: int,
    step: int,
    row_keys: Tensor,
    start: int,
    rank_guide: Tensor,
    rank_learner: Tensor,
    n: Tensor,
    weight: WeightCode,
    to_teacher: bool,
) -> Tensor:
    """As in the reference."""
    kind, parameter, flipped = weight
    out = torch.empty_like(rank_guide, dtype=torch.bool, memory_format=torch.contiguous_format)
    if count := out.numel():
        ranks = rank_guide.contiguous(), rank_learner.contiguous()
        sharpness = torch.full((1,), parameter, dtype=torch.float64, device=out.device)  # an argument would be float32
        accept_block[(triton.cdiv(count, BLOCK),)](
            row_keys.contiguous(), *ranks, n.contiguous(), sharpness, out.view(torch.uint8), seed, step, start,
            count, out.shape[1],
            STREAM=reference.ACCEPT, KIND=KINDS.index(kind), FLIPPED=flipped, TO_TEACHER=to_teacher, BLOCK=BLOCK,
            **ROUNDED,
        )  # fmt: skip
    return out
