"""sample: proposals and their acceptance in Triton, stage by stage; round.py makes a whole round of the same functions.

A proposal is Philox4x32-10 (32-bit products and exclusive ors, no memory) and a binary search in the user's seen row; an
acceptance is Philox again, a logarithm and a log-weight in float64. 8 bytes a proposal out, 16 in: the floor is the launch.

Proposals have the bits of the reference. Accepting compares float64 logarithms, whose last bits are the math library's own: once
in about 10^15 proposals a backend may decide otherwise.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels.backends import native, reference
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
def random_words(seed, step, row_key, index, STREAM: tl.constexpr):
    """The words of proposals number index of the rows with these keys."""
    return philox(seed.to(tl.int64), index.to(tl.uint32), STREAM, row_key, step.to(tl.uint32))


@triton.jit
def unseen_item(hi, lo, indptr, indices, row, wanted, n_items, halvings, SEEN: tl.constexpr):
    """The item that words hi and lo propose to each row, uniformly of those it has not seen; -1 if it has seen all."""
    begin = tl.zeros_like(row)
    count = tl.zeros_like(row)
    if SEEN:
        begin = tl.load(indptr + row, mask=wanted, other=0)
        count = tl.load(indptr + row + 1, mask=wanted, other=0) - begin
    unseen = n_items - count
    m = unseen.to(tl.uint64)
    nth = ((hi.to(tl.uint64) * m + (lo.to(tl.uint64) * m >> 32)) >> 32).to(tl.int64)
    passed = tl.zeros_like(row)  # seen items with at most nth unseen ones before them
    if SEEN:
        for _ in range(0, halvings):
            inside = wanted & (passed < count)
            middle = (passed + count) // 2
            id = tl.load(indices + begin + middle, mask=inside, other=0)
            before = id - middle <= nth
            passed = tl.where(inside & before, middle + 1, passed)
            count = tl.where(inside & (before == 0), middle, count)
    return tl.where(nth < unseen, nth + passed, -1)


@triton.jit(do_not_specialize=["seed", "step", "start", "halvings"])
def propose_block(
    row_keys, indptr, indices, out, seed, step, start, n, size, n_items, halvings,
    STREAM: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [B, size]: proposals start, start + 1, ... of each user: uniform unseen items, -1 where there are none."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < n
    row = at // size
    row_key = tl.load(row_keys + row, mask=wanted, other=0)
    hi, lo, _, _ = random_words(seed, step, row_key, start + at % size, STREAM)
    tl.store(out + at, unseen_item(hi, lo, indptr, indices, row, wanted, n_items, halvings, SEEN), mask=wanted)


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


@triton.jit
def is_accepted(hi, lo, guide, learner, count, parameter, KIND: tl.constexpr, FLIPPED: tl.constexpr):
    """Whether proposals of these ranks, by rows with `count` candidates, are draws; `parameter` has the bits of a float64."""
    u = (((hi.to(tl.uint64) << 20) | (lo >> 12).to(tl.uint64)).to(tl.float64) + 0.5) * 2.220446049250313e-16
    delta = guide - learner
    if FLIPPED:
        delta = -delta
    many = count.to(tl.float64)
    p = parameter.to(tl.int64).to(tl.float64, bitcast=True)
    weight = log_weight(delta.to(tl.float64) / many, guide, p, KIND)
    most = log_weight((count - 1).to(tl.float64) / many, tl.zeros_like(guide) + 1, p, KIND)
    return tl.log(u) < weight - most  # false for NaN, where there is no weight anywhere


@triton.jit(do_not_specialize=["parameter", "seed", "step", "start"])
def accept_block(
    row_keys, rank_guide, rank_learner, candidates, parameter, out, seed, step, start, n, size,
    STREAM: tl.constexpr, KIND: tl.constexpr, FLIPPED: tl.constexpr, TO_TEACHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [B, size] uint8: 1 where the proposal is a draw."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < n
    row_key = tl.load(row_keys + at // size, mask=wanted, other=0)
    a, b, c, d = random_words(seed, step, row_key, start + at % size, STREAM)
    hi, lo = a, b
    if TO_TEACHER:
        hi, lo = c, d
    guide = tl.load(rank_guide + at, mask=wanted, other=1)
    learner = tl.load(rank_learner + at, mask=wanted, other=1)
    count = tl.load(candidates + at // size, mask=wanted, other=1)
    tl.store(out + at, is_accepted(hi, lo, guide, learner, count, parameter, KIND, FLIPPED).to(tl.uint8), mask=wanted)


def bits_of(parameter: float) -> int:
    """The bits of a float64: an argument that is a float would be rounded to float32."""
    return int(struct.unpack("<q", struct.pack("<d", parameter))[0])


def most_halvings(indices: Tensor | None) -> int:
    """Steps of a binary search in a row of seen items, at most. Kernels take it as a number: of a constant each would be compiled
    anew when the lists have doubled."""
    return 0 if indices is None else indices.numel().bit_length()


def propose(seed: int, step: int, row_keys: Tensor, start: int, stop: int, n_items: int, seen: Seen | None) -> Tensor:
    """As in the reference."""
    size = stop - start
    out = row_keys.new_empty(row_keys.shape[0], size)
    indptr, indices = native.lists(seen)
    if n := out.numel():
        propose_block[(triton.cdiv(n, BLOCK),)](
            row_keys.contiguous(), indptr, indices, out, seed, step, start, n, size, n_items, most_halvings(indices),
            STREAM=reference.PROPOSE, SEEN=indices is not None, BLOCK=BLOCK, **ROUNDED,
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
    kind, parameter, flipped = native.weight(weight)
    out = torch.empty_like(rank_guide, dtype=torch.bool, memory_format=torch.contiguous_format)
    if count := out.numel():
        ranks = rank_guide.contiguous(), rank_learner.contiguous()
        accept_block[(triton.cdiv(count, BLOCK),)](
            row_keys.contiguous(), *ranks, n.contiguous(), bits_of(parameter), out.view(torch.uint8), seed, step, start,
            count, out.shape[1],
            STREAM=reference.ACCEPT, KIND=kind, FLIPPED=flipped, TO_TEACHER=to_teacher, BLOCK=BLOCK,
            **ROUNDED,
        )  # fmt: skip
    return out
