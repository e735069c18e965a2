"""rank: counts of the items before each threshold, in Triton: scoring, comparing and counting in one kernel.

A program holds a block of users against a run of item tiles. A tile's scores stay in registers: a thread has one user's, all of
them, and one of the user's thresholds at a time, so it compares and counts alone, an instruction each for a score. Sums of a tile
go to [B, C] by integer atomics, whose order changes nothing. B N d multiply-adds, B N C comparisons and as many additions; the
items are read once for each block of users, B / USERS times 4 N d bytes, and nothing of size B x N is ever written. With few
thresholds the floor is the product; the time grows with C, and for many thresholds the CUDA backend, which searches, does less.
A search here was compiled, not built: a tree of 256 sorted thresholds, read through L1, takes about 80 instructions a score and
spills nothing, instead of 512; but Triton has no additions in shared memory, so each score would also be an atomic one in L2.

What the users have seen is counted with the rest, and taken off by a second kernel, whose chain gives the same bits.

Asked for nothing else (precision.py), it gives the bits of the reference: Triton makes of tl.dot one chain of fused
multiply-adds over the factors, in order, as a test reads in the code for each GPU (test_triton_compiled.py).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import native, precision
from bdkernels.backends.triton.score import FUSED, by_rows, chain
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen

DEPTH = 16  # factors multiplied at a time: their operands lie in registers, and more of them would spill
TILES = 16  # item tiles of a program, at least
MOST_RUNS = 65535  # of such programs: a grid has no more rows
SEEN_BLOCK = 32  # seen items of a program's turn


def tile_config(users: int, items: int, warps: int, registers: int) -> triton.Config:
    """A thread for each user and threshold of a turn."""
    sizes = {"USERS": users, "ITEMS": items, "THRESHOLDS": 32 * warps // users}
    return triton.Config(sizes, num_warps=warps, num_stages=2, maxnreg=registers)


# A thread holds 64 scores of a user, or a step's operands and 8 or 16 sums of the exact product. Left to itself, ptxas takes more
# registers than that needs: 168 let three programs of 4 warps onto a multiprocessor, and would spill with 16 sums.
EXACT = [tile_config(*of) for of in ((16, 64, 4, 168), (32, 64, 4, 255), (64, 64, 8, 255))]
ON_TENSOR_CORES = [tile_config(*of) for of in ((16, 64, 4, 168), (32, 64, 4, 168), (64, 64, 8, 255), (128, 64, 8, 255))]
FEWEST_ITEMS = 64  # of a tile
USER_CLASSES, FEW_THRESHOLDS = (16, 64, 256), 32  # sizes that tiles are chosen for: see size_class


def size_class(n_users: int, n_thresholds: int) -> int:
    """Calls of one class share the tile that its first call has found best: there are eight, by how many programs of a tile
    the users fill, and by whether the product or the counting takes longer. All rounds of `sample` have many thresholds."""
    return 2 * sum(n_users > size for size in USER_CLASSES) + (n_thresholds > FEW_THRESHOLDS)


class Trials:
    """Of the autotuner: each run counts anew, and counts every user, whatever `live` says, which is put back after it."""

    live: Tensor | None = None

    def before(self, arguments: dict[str, Any], reset_only: bool = False) -> None:
        arguments["out"].zero_()
        arguments["nan_at"].fill_(-1)
        if arguments["live"] is not None and not reset_only:
            self.live = arguments["live"].clone()
            arguments["live"].fill_(arguments["n_users"])

    def after(self, arguments: dict[str, Any], exception: Exception | None) -> None:
        if self.live is not None:
            arguments["live"].copy_(self.live)
            self.live = None


TRIALS = Trials()


def configs_of(configs: object, _: object, PRECISION: str, **unused: object) -> list[triton.Config]:
    """Those for the precision."""
    return EXACT if PRECISION == "ieee" else ON_TENSOR_CORES


@triton.jit
def order_bits(score):
    """int32 in the order of the scores; -0.0 is equal to 0.0. Not for NaN."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def next_above(score):
    """The lowest float above each; above infinity NaN, which no score reaches. Not for NaN."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits - 1, bits + 1).to(tl.float32, bitcast=True)


@triton.jit
def product(
    users, items, item_bias, user, item, d, user_stride, item_stride, in_users, in_items,
    PRECISION: tl.constexpr, BIAS: tl.constexpr, D: tl.constexpr, USERS: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """[USERS, ITEMS] scores, D factors at a time."""
    score = tl.zeros([USERS, ITEMS], tl.float32)
    if BIAS:
        score += tl.load(item_bias + item, mask=in_items, other=0.0).to(tl.float32)[None, :]
    for first in range(0, d, D):
        k = first + tl.arange(0, D)
        x = tl.load(
            users + user[:, None] * user_stride + k[None, :], mask=in_users[:, None] & (k < d)[None, :], other=0.0
        )
        y = tl.load(
            items + item[None, :] * item_stride + k[:, None], mask=in_items[None, :] & (k < d)[:, None], other=0.0
        )
        if PRECISION == "bf16":
            score = tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16), score)
        elif PRECISION == "fp16":
            score = tl.dot(x.to(tl.float16), y.to(tl.float16), score)
        else:
            score = tl.dot(x.to(tl.float32), y.to(tl.float32), score, input_precision=PRECISION)
    return score


@triton.autotune(
    EXACT + ON_TENSOR_CORES,
    key=["d", "PRECISION", "size_class"],
    pre_hook=TRIALS.before,
    post_hook=TRIALS.after,
    prune_configs_by={"early_config_prune": configs_of},
)
@triton.jit(do_not_specialize=["size_class"])
def count_tiles(
    users, items, item_bias, scores, thresholds, ties, rows, live, out, nan_at,
    n_users, n_items, d, n_thresholds, user_stride, item_stride, item_offset, tiles, size_class,
    PRECISION: tl.constexpr, BIAS: tl.constexpr, SCORED: tl.constexpr, ROWS: tl.constexpr, LIVE: tl.constexpr,
    D: tl.constexpr, USERS: tl.constexpr, ITEMS: tl.constexpr, THRESHOLDS: tl.constexpr,
):  # fmt: skip
    """Adds to out [B, C] int32 how many items of a run come before each threshold; items are scored, or SCORED [B, N] already.

    ROWS: the users are rows [B] of the tables.
    """
    first_user = tl.program_id(0).to(tl.int64) * USERS
    user = first_user + tl.arange(0, USERS)
    if LIVE:
        n_users = tl.minimum(n_users, tl.load(live))
    in_users = user < n_users
    row = user
    if ROWS:
        row = tl.load(rows + user, mask=in_users, other=0)
    first = tl.program_id(1).to(tl.int64) * (tiles * ITEMS)
    stop = tl.minimum(first + tiles * ITEMS, n_items)
    if LIVE:  # no tile for users of whom none is
        stop = tl.where(first_user < n_users, stop, first)
    for tile in range(first, stop, ITEMS):
        column = tl.arange(0, ITEMS)
        item = tile + column.to(tl.int64)
        in_items = item < n_items
        inside = in_users[:, None] & in_items[None, :]
        if SCORED:
            score = tl.load(scores + user[:, None] * n_items + item[None, :], mask=inside, other=0.0)
        else:
            score = product(
                users, items, item_bias, row, item, d, user_stride, item_stride, in_users, in_items,
                PRECISION, BIAS, D, USERS, ITEMS,
            )  # fmt: skip
        bad = inside & (score != score)
        if tl.max(bad.to(tl.int32)) > 0:
            at = tl.where(bad, user[:, None] * n_items + item[None, :], -1)
            tl.atomic_max(nan_at, tl.max(at))
        # [ITEMS, USERS, 1]: of this shape Triton gives a thread all items of a user. NaN comes before nothing.
        score = tl.trans(tl.where(in_items[None, :], score, float("nan")))[:, :, None]
        for block in range(0, n_thresholds, THRESHOLDS):
            c = block + tl.arange(0, THRESHOLDS)
            at = user[:, None] * n_thresholds + c[None, :]
            wanted = in_users[:, None] & (c < n_thresholds)[None, :]
            threshold = tl.load(thresholds + at, mask=wanted, other=0.0)
            tie = tl.load(ties + at, mask=wanted, other=0) - item_offset - tile
            # An equal score comes before if its id is lower: all of the tile's are, or none, or those of a few columns.
            lowest = tl.where(tie < ITEMS, next_above(threshold), threshold)
            # Counted as floats, exact far beyond a tile: of integers the compiler makes bits, packed in local memory.
            many = tl.sum((score >= lowest[None, :, :]).to(tl.float32), 0)
            tie = tl.where(tie < ITEMS, tie, 0).to(tl.int32)  # above -2^31, as no id is above 2^31
            if tl.max(tie) > 0:
                equal = (score == threshold[None, :, :]) & (column[:, None, None] < tie[None, :, :])
                many += tl.sum(equal.to(tl.float32), 0)
            tl.atomic_add(out + at, many.to(tl.int32), mask=wanted & (many > 0), sem="relaxed")


@triton.jit
def take_off_seen(
    user, row, users, items, item_bias, scores, thresholds, ties, out, indptr, indices,
    n_items, d, n_thresholds, user_stride, item_stride, item_offset,
    BIAS: tl.constexpr, SCORED: tl.constexpr, BLOCK: tl.constexpr, THRESHOLDS: tl.constexpr,
):  # fmt: skip
    """Takes the seen items of one user off the counts again: those of this row of `indptr`, whose factors are in this row too."""
    begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        id = tl.load(indices + at, mask=at < end, other=-1)
        item = id - item_offset
        wanted = (at < end) & (item >= 0) & (item < n_items)
        item = tl.where(wanted, item, 0)
        if SCORED:
            score = tl.load(scores + user * n_items + item, mask=wanted, other=0.0)
        else:
            owner = tl.zeros([BLOCK], tl.int64) + row
            score = chain(users, items, item_bias, owner, item, d, user_stride, item_stride, wanted, BIAS)
        key = tl.where(wanted, order_bits(score), -2147483648)
        for block in range(0, n_thresholds, THRESHOLDS):
            c = block + tl.arange(0, THRESHOLDS)
            own = user * n_thresholds + c
            threshold = order_bits(tl.load(thresholds + own, mask=c < n_thresholds, other=0.0))
            tie = tl.load(ties + own, mask=c < n_thresholds, other=0)
            before = key[:, None] > threshold[None, :] - (id[:, None] < tie[None, :]).to(tl.int32)
            tl.atomic_add(out + own, -tl.sum(before.to(tl.int32), 0), mask=c < n_thresholds, sem="relaxed")


@triton.jit
def count_seen(
    users, items, item_bias, scores, thresholds, ties, live, out, indptr, indices,
    n_items, d, n_thresholds, user_stride, item_stride, item_offset,
    BIAS: tl.constexpr, SCORED: tl.constexpr, LIVE: tl.constexpr, BLOCK: tl.constexpr, THRESHOLDS: tl.constexpr,
):  # fmt: skip
    """`take_off_seen` for each user, or the first `live`."""
    user = tl.program_id(0).to(tl.int64)
    stop = user + 1
    if LIVE:
        stop = tl.load(live)
    if user < stop:
        take_off_seen(
            user, user, users, items, item_bias, scores, thresholds, ties, out, indptr, indices,
            n_items, d, n_thresholds, user_stride, item_stride, item_offset, BIAS, SCORED, BLOCK, THRESHOLDS,
        )  # fmt: skip


def count_above(
    f: Factors, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int, live: Tensor | None = None
) -> Tensor:
    """As in the reference; with `live`, int64 [], the counts of that many rows, the first; the other entries are undefined."""
    counts, nan_at = _count_unseen(f.n_items, by_rows(f), None, thresholds, tie_ids, seen, item_offset, live)
    checks.no_nan_at(nan_at, f.n_items, item_offset)
    return precision.within_bounds(counts)


def count_above_block(
    scores: Tensor, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int
) -> Tensor:
    """As in the reference."""
    n_items = scores.shape[1]
    counts, nan_at = _count_unseen(n_items, None, scores.contiguous(), thresholds, tie_ids, seen, item_offset, None)
    checks.no_nan_in_block(nan_at, n_items)
    return precision.within_bounds(counts)


def _count_unseen(
    n_items: int,
    f: Factors | None,
    scores: Tensor | None,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen: Seen | None,
    item_offset: int,
    live: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Counts [B, C] int64, and the place of a NaN or -1, [] int64."""
    thresholds, tie_ids = thresholds.contiguous(), tie_ids.contiguous()
    out, nan_at = thresholds.new_zeros(thresholds.shape, dtype=torch.int32), tie_ids.new_full((), -1)
    count(out, nan_at, n_items, f, scores, thresholds, tie_ids, item_offset, live)
    indptr, indices = native.lists(seen)
    if indices is not None and len(indices) and len(out) and n_items:
        n_thresholds = thresholds.shape[1]
        tables = *(f or (None, None, None)), scores, thresholds, tie_ids
        count_seen[(len(out),)](
            *tables, live, out, indptr, indices, n_items, *sizes_of(f, n_thresholds), item_offset,
            BIAS=tables[2] is not None, SCORED=scores is not None, LIVE=live is not None,
            BLOCK=SEEN_BLOCK, THRESHOLDS=thresholds_of_turn(n_thresholds), **FUSED,
        )  # fmt: skip
    return out.long(), nan_at


def count(
    out: Tensor,
    nan_at: Tensor,
    n_items: int,
    f: Factors | None,
    scores: Tensor | None,
    thresholds: Tensor,
    tie_ids: Tensor,
    item_offset: int = 0,
    live: Tensor | None = None,
    rows: Tensor | None = None,
) -> None:
    """Add the counts, of seen items too, to `out` [B, C] int32, and put the place of a NaN into `nan_at` [] int64. All tensors
    are contiguous but those of `f`, whose rows are in one piece.

    The users are the rows of `f`, or the ones listed in `rows` [B].
    """
    n_users, n_thresholds = tie_ids.shape
    tables = *(f or (None, None, None)), scores, thresholds, tie_ids
    tiles = max(TILES, triton.cdiv(n_items, MOST_RUNS * FEWEST_ITEMS))

    def grid(config: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(n_users, config["USERS"]), triton.cdiv(n_items, tiles * config["ITEMS"])

    if n_users and n_items:
        count_tiles[grid](
            *tables, rows, live, out, nan_at,
            n_users, n_items, *sizes_of(f, n_thresholds), item_offset, tiles, size_class(n_users, n_thresholds),
            PRECISION=precision.asked(), BIAS=tables[2] is not None, SCORED=scores is not None,
            ROWS=rows is not None, LIVE=live is not None, D=DEPTH, **FUSED,
        )  # fmt: skip


def sizes_of(f: Factors | None, n_thresholds: int) -> tuple[int, int, int, int]:
    """d, thresholds of a user, and the distances of the rows of both tables."""
    if f is None:
        return 0, n_thresholds, 0, 0
    return f.user_factors.shape[1], n_thresholds, f.user_factors.stride(0), f.item_factors.stride(0)


def thresholds_of_turn(n: int) -> int:
    """Of n thresholds, how many `take_off_seen` compares at a time."""
    return min(64, triton.next_power_of_2(max(1, n)))
