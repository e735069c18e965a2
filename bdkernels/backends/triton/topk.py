"""topk: the k best unseen items of each user, in Triton, without [B, N].

A program holds a block of users against a run of item tiles, and keeps the K best keys of each user in registers (K is k rounded
up to a power of two): a key is the score's bits in their order, then the id, so all are different and the order is total. A tile
is merged (a bitonic sort in registers) only where a score passes some user's K-th; only what passes is looked up among the seen.
The runs' bests, [B, runs x K] keys, are merged by torch.topk, and a last launch makes scores and ids of them. 2 B N d operations,
the items read once for each block of users; sorting adds about K ln(N / K) keys a user and run. The floor is the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import native, reference
from bdkernels.backends.triton.rank import DEPTH, order_bits, product
from bdkernels.backends.triton.sample import most_halvings
from bdkernels.backends.triton.score import BLOCK, FUSED, by_rows
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen

USERS_OF = {64: 8, 128: 16, 256: 8, 512: 2}  # users of a program by K: what registers hold; above, the reference serves
RUNS = 64  # at most
TILES = 16  # of a run, at least
WORST = tl.constexpr(-(2**63))


@triton.jit
def is_seen(indices, begin, end, id, wanted, halvings):
    """Whether id is among indices[begin:end]; all of one shape, looked up where wanted."""
    low, high = begin, end
    for _ in range(0, halvings):
        inside = wanted & (low < high)
        middle = (low + high) // 2
        less = tl.load(indices + middle, mask=inside, other=0) < id
        low = tl.where(inside & less, middle + 1, low)
        high = tl.where(inside & (less == 0), middle, high)
    return wanted & (low < end) & (tl.load(indices + low, mask=wanted & (low < end), other=-1) == id)


@triton.jit(do_not_specialize=["halvings"])
def best_of_run(
    users, items, item_bias, indptr, indices, out, nan_at,
    n_users, n_items, d, user_stride, item_stride, n_runs, tiles, halvings,
    PRECISION: tl.constexpr, BIAS: tl.constexpr, SEEN: tl.constexpr, WORST: tl.constexpr,
    D: tl.constexpr, USERS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out [B, n_runs, K] int64: the best keys of each run, best first."""
    user = tl.program_id(0).to(tl.int64) * USERS + tl.arange(0, USERS)
    run = tl.program_id(1).to(tl.int64)
    in_users = user < n_users
    best = tl.zeros([USERS, K], tl.int64) + WORST
    begin = tl.zeros_like(user)
    end = tl.zeros_like(user)
    if SEEN:
        begin = tl.load(indptr + user, mask=in_users, other=0)
        end = tl.load(indptr + user + 1, mask=in_users, other=0)
    last = tl.minimum((run + 1) * tiles * K, n_items)
    for tile in range(run * tiles * K, last, K):
        item = tile + tl.arange(0, K).to(tl.int64)
        in_items = item < n_items
        inside = in_users[:, None] & in_items[None, :]
        score = product(
            users, items, item_bias, user, item, d, user_stride, item_stride, in_users, in_items,
            PRECISION, BIAS, D, USERS, K,
        )  # fmt: skip
        bad = inside & (score != score)
        if tl.max(bad.to(tl.int32)) > 0:
            tl.atomic_max(nan_at, tl.max(tl.where(bad, user[:, None] * n_items + item[None, :], -1)))
        key = (order_bits(score).to(tl.int64) << 32) + (0xFFFFFFFF - item)[None, :]
        passes = inside & (key > tl.min(best, 1)[:, None])
        if tl.max(passes.to(tl.int32)) > 0:
            if SEEN:
                ids = tl.zeros([USERS, K], tl.int64) + item[None, :]
                first, stop = (
                    tl.zeros([USERS, K], tl.int64) + begin[:, None],
                    tl.zeros([USERS, K], tl.int64) + end[:, None],
                )
                passes = passes & (is_seen(indices, first, stop, ids, passes, halvings) == 0)
            key = tl.where(passes, key, WORST)
            best = tl.topk(tl.reshape(tl.join(best, key), [USERS, 2 * K]), K)
    at = (user[:, None] * n_runs + run) * K + tl.arange(0, K)[None, :]
    tl.store(out + at, best, mask=in_users[:, None])


@triton.jit
def list_keys(keys, scores, ids, n, k, n_keys, WORST: tl.constexpr, BLOCK: tl.constexpr):
    """scores, ids [B, k] of keys [B, n_keys]; -inf and -1 for WORST and past the last."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < n
    column = at % k
    key = tl.load(keys + at // k * n_keys + column, mask=wanted & (column < n_keys), other=WORST)
    bits = (key >> 32).to(tl.int32)
    score = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
    tl.store(scores + at, tl.where(key == WORST, float("-inf"), score), mask=wanted)
    tl.store(ids + at, tl.where(key == WORST, -1, 0xFFFFFFFF - (key & 0xFFFFFFFF)), mask=wanted)


def topk(f: Factors, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    """As in the reference, which serves where k is above 512, or there is nothing to rank."""
    n_users, n_items = f.user_factors.shape[0], f.n_items
    if k > max(USERS_OF) or not (n_users and n_items):
        return reference.topk(f, k, seen)
    (users, items, bias), (indptr, indices) = by_rows(f), native.lists(seen)
    width = max(min(USERS_OF), triton.next_power_of_2(min(k, n_items)))
    tiles = max(TILES, triton.cdiv(triton.cdiv(n_items, width), RUNS))
    n_runs, block = triton.cdiv(n_items, width * tiles), USERS_OF[width]
    best, nan_at = users.new_empty(n_users, n_runs, width, dtype=torch.int64), users.new_full((), -1, dtype=torch.int64)
    best_of_run[(triton.cdiv(n_users, block), n_runs)](
        users, items, bias, indptr, indices, best, nan_at,
        n_users, n_items, users.shape[1], users.stride(0), items.stride(0), n_runs, tiles, most_halvings(indices),
        PRECISION="ieee", BIAS=bias is not None, SEEN=indices is not None, WORST=WORST, D=DEPTH, USERS=block, K=width,
        num_stages=2, num_warps=8, maxnreg=255 if width <= 128 else None, **FUSED,
    )  # fmt: skip
    checks.no_nan_at(nan_at, n_items)
    n_keys = min(k, n_runs * width)
    keys = best.flatten(1).topk(n_keys, dim=1).values
    scores, ids = users.new_empty(n_users, k, dtype=torch.float32), keys.new_empty(n_users, k)
    list_keys[(triton.cdiv(n_users * k, BLOCK),)](
        keys, scores, ids, n_users * k, k, n_keys, WORST=WORST, BLOCK=BLOCK, **FUSED
    )  # fmt: skip
    return scores, ids
