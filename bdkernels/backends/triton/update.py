"""update: one learner's step with its optimizer, in Triton.

No item gradient is written: a touch of an item adds slope * user row, which `update_rows` gathers again from a copy of the user
rows as they were, 8 B d bytes beside those of `loss`. `step_keys` lists the rows that the batch touches, items and behind them
users, as int32 where their numbers fit; sorted, equal keys are a run, in the order of the batch. A program sums a piece of PIECE
touches of a run, counted from its first one, and changes the row where that is all; `finish_rows` does the rows of several
pieces. So sums have one order, whatever else is in the batch: they are the same in every run. The update reads and writes each
touched row and its state once: that is its floor. Launches: keys, the sort, step, update, finish.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.triton.loss import BLOCK, ROWS, flags, step, sum_losses
from bdkernels.backends.triton.score import FUSED
from bdkernels.ranges import LISTWISE
from bdkernels.types.rule import RULES, Rule, rate
from bdkernels.types.step import StepInputs

TOUCHES = 8  # touches of one row whose parts are gathered together
PIECE = 64  # touches of one row that a program sums
NARROW = 2**31 - 1  # items and users of which keys have 32 bits; tests change it, results do not
ADAGRAD, ADAM = (tl.constexpr(RULES.index(kind)) for kind in ("adagrad", "adam"))


@triton.jit
def step_keys(
    users, positives, negatives, distilled, mask, keys, counts, n_rows, n_negatives, n_distilled, n_users, n_items,
    MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The row that each entry of the batch touches: item c of row r at r * width + c, and behind all of them the users, past the
    items. Of counts [2], ones before, the first becomes the number of distilled items that count, the other 0 if an id is out
    of range.
    """
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    width = 1 + n_negatives + n_distilled
    listed = n_rows * width
    row = at // width
    column = at % width - 1
    is_item = at < listed
    is_user = (at >= listed) & (at < listed + n_rows)
    is_negative = is_item & (column >= 0) & (column < n_negatives)
    live = is_item & (column >= n_negatives)
    if MASK:
        live = live & (tl.load(mask + row * n_distilled + column - n_negatives, mask=live, other=0) != 0)
    ids = tl.load(positives + row, mask=is_item & (is_negative == 0) & (live == 0), other=0)
    ids += tl.load(negatives + row * n_negatives + column, mask=is_negative, other=0)
    ids += tl.load(distilled + row * n_distilled + column - n_negatives, mask=live, other=0)
    ids += tl.load(users + at - listed, mask=is_user, other=0)
    outside = (is_item | is_user) & ((ids < 0) | (ids >= tl.where(is_user, n_users, n_items)))
    keyed = ids + tl.where(is_user, n_items, 0)
    tl.store(keys + at, keyed.to(keys.dtype.element_ty), mask=is_item | is_user)
    found = tl.sum(live.to(tl.int64), 0) - (block == 0).to(tl.int64)
    tl.atomic_add(counts, found, mask=found != 0)
    tl.atomic_min(counts + 1, tl.zeros((), tl.int64), mask=tl.sum(outside.to(tl.int32), 0) > 0)


@triton.jit
def first_touch(keys, at, below):
    """The first place of the run of equal keys that `at` is in; it lies behind `below`."""
    key = tl.load(keys + at)
    while at - below > 1:
        middle = below + (at - below) // 2
        same = tl.load(keys + middle) == key
        at = tl.where(same, middle, at)
        below = tl.where(same, below, middle)
    return at


@triton.jit
def sum_piece(
    keys, places, sources, slopes, key, at, n_touches, n_listed, n_rows, width, d,
    D: tl.constexpr, TOUCHES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Gradient [D] of a row, and of its bias, from the touches of a run from `at` on, PIECE at most.

    A touch of an item adds slope * user row, the first rows of `sources`; one of a user the gradient of that row, the others.
    """
    k = tl.arange(0, D)
    gradient = tl.zeros([D], tl.float32)
    bias = tl.zeros((), tl.float32)
    stop = at + PIECE
    found = tl.full((), TOUCHES, tl.int32)
    while (found == TOUCHES) & (at < stop):
        touch = at + tl.arange(0, TOUCHES)
        same = tl.load(keys + touch, mask=touch < n_touches, other=-1) == key
        place = tl.load(places + touch, mask=same, other=0)
        is_item = place < n_listed
        weight = tl.load(slopes + place, mask=same & is_item, other=1.0)
        row = tl.where(is_item, place // width, n_rows + place - n_listed)
        wanted = same[:, None] & (k < d)[None, :]
        parts = tl.load(sources + row[:, None] * d + k[None, :], mask=wanted, other=0.0)
        gradient += tl.sum(tl.where(wanted, weight[:, None] * parts, 0.0), 0)
        bias += tl.sum(tl.where(same, weight, 0.0), 0)
        at += TOUCHES
        found = tl.sum(same.to(tl.int32), 0)
    return gradient, bias


@triton.jit
def apply_rule(
    table, first_state, second_state, row, state, gradient, wanted, lr, weight_decay, new1, new2, eps, RULE: tl.constexpr
):  # fmt: skip
    """The rule on numbers of a table at `row` and of its state at `state`, tensors or scalars."""
    old = tl.load(table + row, mask=wanted, other=0.0)
    gradient += weight_decay * old
    if RULE == ADAGRAD:
        total = tl.load(first_state + state, mask=wanted, other=0.0) + gradient * gradient
        tl.store(first_state + state, total, mask=wanted)
        gradient = gradient / (tl.sqrt(total) + eps)
    if RULE == ADAM:
        mean = tl.load(first_state + state, mask=wanted, other=0.0)
        mean += new1 * (gradient - mean)
        square = tl.load(second_state + state, mask=wanted, other=0.0)
        square += new2 * (gradient * gradient - square)
        tl.store(first_state + state, mean, mask=wanted)
        tl.store(second_state + state, square, mask=wanted)
        gradient = mean / (tl.sqrt(square) + eps)
    tl.store(table + row, old - lr * gradient, mask=wanted)


@triton.jit
def change_row(
    users, user_first, user_second, items, item_first, item_second, item_bias, bias_first, bias_second,
    gradient, bias, key, n_items, d, user_stride, item_stride, device_lr, lr, weight_decay, new1, new2, eps,
    RULE: tl.constexpr, BIAS: tl.constexpr, RATE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The rule on the row of this key, and on the item's bias."""
    k = tl.arange(0, D)
    id = key.to(tl.int64)
    if RATE:
        lr = tl.load(device_lr)
    if id < n_items:
        row, state = id * item_stride + k, id * d + k
        apply_rule(items, item_first, item_second, row, state, gradient, k < d, lr, weight_decay, new1, new2, eps, RULE)
        if BIAS:
            always = id >= 0
            apply_rule(
                item_bias, bias_first, bias_second, id, id, bias, always, lr, weight_decay, new1, new2, eps, RULE
            )
    else:
        id -= n_items
        row, state = id * user_stride + k, id * d + k
        apply_rule(users, user_first, user_second, row, state, gradient, k < d, lr, weight_decay, new1, new2, eps, RULE)


@triton.jit
def update_rows(
    users, user_first, user_second, items, item_first, item_second, item_bias, bias_first, bias_second,
    keys, places, sources, slopes, partials, cf_rows, distill_rows, live_count, cf_loss, distill_loss, device_lr,
    n_touches, n_listed, n_rows, width, n_items, d, user_stride, item_stride, lr, weight_decay, new1, new2, eps,
    RULE: tl.constexpr, BIAS: tl.constexpr, RATE: tl.constexpr, LISTWISE: tl.constexpr,
    D: tl.constexpr, TOUCHES: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The first program sums the losses. In the others the rule on a row, by the program at the first of its touches where they
    are one piece; the sums of the second and later pieces of a row go to partials [n_touches // PIECE + 1, d + 1].
    """
    at = tl.program_id(0).to(tl.int64) - 1
    if at < 0:
        sum_losses(cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, LISTWISE, ROWS)
    else:
        key = tl.load(keys + at)
        first = (at == 0) | (tl.load(keys + tl.maximum(at - 1, 0)) != key)
        goes_on = tl.load(keys + at + PIECE, mask=at + PIECE < n_touches, other=-1) == key
        is_whole = first & (goes_on == 0)
        is_part = (at >= PIECE) & (tl.load(keys + tl.maximum(at - PIECE, 0)) == key)
        if is_part:
            is_part = (at - first_touch(keys, at - PIECE, tl.full((), -1, tl.int64))) % PIECE == 0
        if is_whole | is_part:
            gradient, bias = sum_piece(
                keys, places, sources, slopes, key, at, n_touches, n_listed, n_rows, width, d, D, TOUCHES, PIECE
            )  # fmt: skip
            if is_whole:
                change_row(
                    users, user_first, user_second, items, item_first, item_second, item_bias, bias_first, bias_second,
                    gradient, bias, key, n_items, d, user_stride, item_stride, device_lr, lr, weight_decay, new1, new2, eps,
                    RULE, BIAS, RATE, D,
                )  # fmt: skip
            else:
                k = tl.arange(0, D)
                partial = partials + at // PIECE * (d + 1)
                tl.store(partial + k, gradient, mask=k < d)
                tl.store(partial + d, bias)


@triton.jit
def finish_rows(
    users, user_first, user_second, items, item_first, item_second, item_bias, bias_first, bias_second,
    keys, places, sources, slopes, partials, device_lr,
    n_touches, n_listed, n_rows, width, n_items, d, user_stride, item_stride, lr, weight_decay, new1, new2, eps,
    RULE: tl.constexpr, BIAS: tl.constexpr, RATE: tl.constexpr,
    D: tl.constexpr, TOUCHES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The rule on a row of several pieces. Its run has places that are multiples of PIECE; the program of the first owns it."""
    at = tl.program_id(0).to(tl.int64) * PIECE
    key = tl.load(keys + at)
    if (at == 0) | (tl.load(keys + tl.maximum(at - PIECE, 0)) != key):
        at = first_touch(keys, at, tl.maximum(at - PIECE, -1))
        if tl.load(keys + at + PIECE, mask=at + PIECE < n_touches, other=-1) == key:
            gradient, bias = sum_piece(
                keys, places, sources, slopes, key, at, n_touches, n_listed, n_rows, width, d, D, TOUCHES, PIECE
            )  # fmt: skip
            k = tl.arange(0, D)
            at += PIECE
            found = tl.full((), TOUCHES, tl.int32)
            while found == TOUCHES:
                begin = at + tl.arange(0, TOUCHES) * PIECE
                same = tl.load(keys + begin, mask=begin < n_touches, other=-1) == key
                partial = partials + begin // PIECE * (d + 1)
                wanted = same[:, None] & (k < d)[None, :]
                gradient += tl.sum(tl.load(partial[:, None] + k[None, :], mask=wanted, other=0.0), 0)
                bias += tl.sum(tl.load(partial + d, mask=same, other=0.0), 0)
                at += TOUCHES * PIECE
                found = tl.sum(same.to(tl.int32), 0)
            change_row(
                users, user_first, user_second, items, item_first, item_second, item_bias, bias_first, bias_second,
                gradient, bias, key, n_items, d, user_stride, item_stride, device_lr, lr, weight_decay, new1, new2, eps,
                RULE, BIAS, RATE, D,
            )  # fmt: skip


def fused_step(
    s: StepInputs, state: list[Tensor], rule: Rule, lr: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As in the reference. `lr`: float32 [] on the device, in the place of the rule's; `count`: `steps_done` of `UpdateInputs`.
    Ids out of range are asserted on devices that assert.
    """
    if count is not None:
        lr = rate(rule, rule.lr if lr is None else lr, count).to(s.user_table.dtype)
    n_rows, (n_users, d), n_items, new = (
        s.users.shape[0],
        s.user_table.shape,
        s.item_table.shape[0],
        s.user_table.new_empty,
    )
    width, per_table = 1 + s.negatives.shape[1] + s.distill_ids.shape[1], RULES.index(rule.kind)
    counts = s.users.new_ones(2)
    keys = keys_of(s, counts)
    checks.queued_ids(counts[1], n_users, n_items)
    touches = keys.sort(stable=True)  # stable: sums have one order
    sources, cf_loss, loss, n = new(2, n_rows, d), new(()), new(()), keys.shape[0]
    *losses, slopes = step(s, counts, sources[1], sources[0], None)
    tables: list[Tensor | None] = []
    for at, table in enumerate(s.tables):
        tables += table, *[*state[at * per_table : (at + 1) * per_table], None, None][:2]
    partials = new(n // PIECE + 1, d + 1)
    sizes = n, n_rows * width, n_rows, width, n_items, d, s.user_table.stride(0), s.item_table.stride(0)
    numbers = rule.lr, rule.weight_decay, 1 - rule.beta1, 1 - rule.beta2, rule.eps
    given = {
        "RULE": per_table, "BIAS": s.item_bias is not None, "RATE": lr is not None, "D": triton.next_power_of_2(max(1, d)),
        "TOUCHES": TOUCHES, "PIECE": PIECE, "num_warps": 1 if d <= 64 else 4, **FUSED,
    }  # fmt: skip
    read = *touches, sources, slopes, partials
    update_rows[(1 + n,)](
        *tables, *read, *losses, counts, cf_loss, loss, lr, *sizes, *numbers,
        LISTWISE=s.distill_kind in LISTWISE, ROWS=ROWS, **given,
    )  # fmt: skip
    if n:
        finish_rows[(triton.cdiv(n, PIECE),)](*tables, *read, lr, *sizes, *numbers, **given)
    return cf_loss, loss


def keys_of(s: StepInputs, counts: Tensor) -> Tensor:
    """What `step_keys` gives."""
    (n_rows, m), k, sizes = s.negatives.shape, s.distill_ids.shape[1], (s.user_table.shape[0], s.item_table.shape[0])
    keys = s.users.new_empty(n_rows * (2 + m + k), dtype=torch.int32 if sum(sizes) <= NARROW else torch.int64)
    users, positives, negatives, distilled, _, mask = s.batch
    if n_rows:
        step_keys[(triton.cdiv(len(keys), BLOCK),)](
            *(t.contiguous() for t in (users, positives, negatives, distilled)), flags(mask), keys, counts,
            n_rows, m, k, *sizes, MASK=mask is not None, BLOCK=BLOCK, **FUSED,
        )  # fmt: skip
    return keys
