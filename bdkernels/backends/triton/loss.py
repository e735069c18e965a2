"""loss: the gradient of one learner's step, and the distillation loss alone, in Triton; `update` makes a fused step of it.

`fused_gradient` is one kernel, a program for each row of the batch: it gathers the user's and the listed items' rows once, and
from registers come the scores, both losses, their slopes, the gradient of the user's row and those of the item rows. A row costs
6 (1 + M + k) d operations and reads 4 (2 + M + k) d bytes; the item gradients write 4 (1 + M + k) d more. Nothing depends on
the number of items. The floor is those bytes over the memory's bandwidth; arithmetic is far below what a GPU does meanwhile.
Losses of shares (softmax, listwise) need a sum over all of a row's scores before its first slope: a pass over the item rows comes
before, and the second pass has them from a cache.

float32 but the sums of the losses; sums over d are not in the order of the reference: results agree within rounding, and one
device repeats its own bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.triton.score import FUSED
from bdkernels.ranges import LISTWISE
from bdkernels.types.step import StepInputs

PER_THREAD = 32  # numbers of gathered rows that a thread holds at most, where a configuration can keep to that
STEP_CONFIGS = [
    triton.Config({"COLUMNS": columns}, num_warps=warps, maxnreg=255)
    for columns, warps in ((8, 1), (16, 4), (8, 4), (8, 8))
]
BLOCK = 1024  # scores of a program of the distillation loss
LIST = 256  # scores of a row that a program of the listwise loss has at a time, at most
ROWS = 512  # rows whose losses are gathered together


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) from an exponential that cannot overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def softplus(x):
    """log(1 + exp(x)); log1p(e) as log(w) e / (w - 1) with w = 1 + e, which keeps the digits of a small e (Kahan)."""
    e = tl.exp(-tl.abs(x))
    w = 1.0 + e
    small = w == 1.0
    log = tl.where(small, e, tl.log(w) * (e / tl.where(small, 1.0, w - 1.0)))
    return tl.maximum(x, 0.0) + tl.where(x == x, log, x)


@triton.jit
def grown(top, total, x, counts, tau):
    """The largest number, and the sum of exp((x - largest) / tau), with those of x that count besides. NaN is in the sum."""
    new = tl.maximum(top, tl.max(tl.where(counts, x, float("-inf")), 0))
    against = tl.where(new == float("-inf"), 0.0, new)  # which is no number to subtract from itself
    weights = tl.where(counts, tl.exp((x - against) / tau), 0.0)
    return new, total * tl.exp((top - against) / tau) + tl.sum(weights, 0)


@triton.jit
def list_terms(learner, guide, live, learner_top, learner_sum, guide_top, guide_sum, tau_learner, tau_guide):
    """As `distill_terms` of shares in a list, whose largest numbers and sums `grown` gives. A share of 0 weighs nothing."""
    x = (learner - learner_top) / tau_learner
    y = (guide - guide_top) / tau_guide
    share = tl.exp(y) / guide_sum
    loss = share * ((y - tl.log(guide_sum)) - (x - tl.log(learner_sum)))
    slope = tl.exp(x) / learner_sum - share
    return tl.where(live & (share != 0.0), loss, 0.0), tl.where(live, slope, 0.0)


@triton.jit
def distill_terms(learner, guide, live, tau_learner, tau_guide):
    """Loss of each live score, and what its slope is but for a factor."""
    x = learner / tau_learner
    target = sigmoid(guide / tau_guide)
    loss = tl.where(live, softplus(x) - x * target, 0.0)
    return loss, tl.where(live, sigmoid(x) - target, 0.0)


def step_configs(configs: list[triton.Config], _: object, D: int, **unused: object) -> list[triton.Config]:
    """Those that keep their rows in registers; for very long rows the one that comes nearest."""

    def per_thread(config: triton.Config) -> float:
        return float(config.kwargs["COLUMNS"] * D / (32 * config.num_warps))

    return [c for c in configs if 2 <= per_thread(c) <= PER_THREAD] or [min(configs, key=per_thread)]


@triton.jit
def scored(
    first, items_table, item_bias, negatives, distilled, mask, row, positive, u,
    item_stride, d, n_negatives, n_distilled,
    BIAS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Negatives and distilled items first .. first + COLUMNS - 1 of a row: what they are, their rows, and their scores."""
    k = tl.arange(0, D)
    column = first + tl.arange(0, COLUMNS)
    is_negative = column < n_negatives
    is_distilled = (column >= n_negatives) & (column < n_negatives + n_distilled)
    live = is_distilled
    if MASK:
        at = mask + row * n_distilled + column - n_negatives
        live = live & (tl.load(at, mask=is_distilled, other=0) != 0)
    ids = tl.load(negatives + row * n_negatives + column, mask=is_negative, other=0)
    ids += tl.load(distilled + row * n_distilled + column - n_negatives, mask=live, other=0)
    ids = tl.where(is_negative | live, ids, positive)  # which stands in for what is masked
    rows = tl.load(items_table + ids[:, None] * item_stride + k[None, :], mask=(k < d)[None, :], other=0.0)
    scores = tl.sum(rows * u[None, :], 1)
    if BIAS:
        scores += tl.load(item_bias + ids)
    return column, is_negative, live, rows, scores


@triton.autotune(
    STEP_CONFIGS, key=["d", "n_negatives", "n_distilled"], prune_configs_by={"early_config_prune": step_configs}
)
@triton.jit
def step_rows(
    users_table, items_table, item_bias, users, positives, negatives, distilled, guide, mask, live_count,
    cf_out, distill_out, user_grad, user_rows, item_grad, slopes,
    user_stride, item_stride, d, n_negatives, n_distilled, n_rows, distill_weight, tau_learner, tau_guide,
    BPR: tl.constexpr, SOFTMAX: tl.constexpr, LISTWISE: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr,
    ITEM_GRAD: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row: cf_out, distill_out [B], user_grad [B, d], slopes [B, 1 + M + k], and item_grad [B, 1 + M + k, d] if asked, else
    user_rows [B, d].
    """
    row = tl.program_id(0).to(tl.int64)
    width = 1 + n_negatives + n_distilled
    k = tl.arange(0, D)
    in_d = k < d
    u = tl.load(users_table + tl.load(users + row) * user_stride + k, mask=in_d, other=0.0)
    positive = tl.load(positives + row)
    v = tl.load(items_table + positive * item_stride + k, mask=in_d, other=0.0)
    score = tl.sum(u * v, 0)
    if BIAS:
        score += tl.load(item_bias + positive)
    slope = 0.0
    cf = 0.0
    if not (BPR or SOFTMAX):
        slope = -sigmoid(-score) / n_rows
        cf = softplus(-score)
    if LISTWISE:
        scale = distill_weight / (tau_learner * n_rows)
    else:
        scale = distill_weight / (tau_learner * tl.maximum(tl.load(live_count), 1).to(tl.float32))
    if SOFTMAX or LISTWISE:
        negative_top = tl.full((), float("-inf"), tl.float32)
        learner_top = tl.full((), float("-inf"), tl.float32)
        guide_top = tl.full((), float("-inf"), tl.float32)
        negative_sum = tl.full((), 0.0, tl.float32)
        learner_sum = tl.full((), 0.0, tl.float32)
        guide_sum = tl.full((), 0.0, tl.float32)
        for first in range(0, n_negatives + n_distilled, COLUMNS):
            column, is_negative, live, rows, scores = scored(
                first, items_table, item_bias, negatives, distilled, mask, row, positive, u,
                item_stride, d, n_negatives, n_distilled, BIAS, MASK, D, COLUMNS,
            )  # fmt: skip
            if SOFTMAX:
                negative_top, negative_sum = grown(negative_top, negative_sum, scores, is_negative, 1.0)
            if LISTWISE:
                given = tl.load(guide + row * n_distilled + column - n_negatives, mask=live, other=0.0)
                learner_top, learner_sum = grown(learner_top, learner_sum, scores, live, tau_learner)
                guide_top, guide_sum = grown(guide_top, guide_sum, given, live, tau_guide)
        if SOFTMAX:
            z = negative_top - score + tl.log(negative_sum)
            slope = -sigmoid(z) / n_rows
            cf = softplus(z)
    distill = 0.0
    gradient = tl.zeros([D], tl.float32)
    for first in range(0, n_negatives + n_distilled, COLUMNS):
        column, is_negative, live, rows, scores = scored(
            first, items_table, item_bias, negatives, distilled, mask, row, positive, u,
            item_stride, d, n_negatives, n_distilled, BIAS, MASK, D, COLUMNS,
        )  # fmt: skip
        if SOFTMAX:
            push = tl.where(is_negative, -slope * (tl.exp(scores - negative_top) / negative_sum), 0.0)
        else:
            x = scores
            if BPR:
                x = scores - score
            push = tl.where(is_negative, sigmoid(x) / n_rows, 0.0)
            cf += tl.sum(tl.where(is_negative, softplus(x), 0.0), 0)
            if BPR:
                slope -= tl.sum(push, 0)
        given = tl.load(guide + row * n_distilled + column - n_negatives, mask=live, other=0.0)
        if LISTWISE:
            losses, pull = list_terms(
                scores, given, live, learner_top, learner_sum, guide_top, guide_sum, tau_learner, tau_guide
            )
        else:
            losses, pull = distill_terms(scores, given, live, tau_learner, tau_guide)
        distill += tl.sum(losses, 0)
        push += scale * pull
        listed = column < width - 1
        at = row * width + 1 + column
        tl.store(slopes + at, push, mask=listed)
        gradient += tl.sum(tl.where(listed[:, None], push[:, None] * rows, 0.0), 0)
        if ITEM_GRAD:
            wanted = listed[:, None] & in_d[None, :]
            tl.store(item_grad + at[:, None] * d + k[None, :], push[:, None] * u[None, :], mask=wanted)
    tl.store(slopes + row * width, slope)
    if ITEM_GRAD:
        tl.store(item_grad + row * width * d + k, slope * u, mask=in_d)
    else:
        tl.store(user_rows + row * d + k, u, mask=in_d)
    tl.store(user_grad + row * d + k, gradient + slope * v, mask=in_d)
    tl.store(cf_out + row, cf)
    tl.store(distill_out + row, distill)


@triton.jit
def sum_losses(
    cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, LISTWISE: tl.constexpr, ROWS: tl.constexpr
):
    """Losses of the batch from those of its rows."""
    cf = tl.zeros([ROWS], tl.float64)
    distill = tl.zeros([ROWS], tl.float64)
    for first in range(0, n_rows, ROWS):
        row = first + tl.arange(0, ROWS)
        cf += tl.load(cf_rows + row, mask=row < n_rows, other=0.0).to(tl.float64)
        distill += tl.load(distill_rows + row, mask=row < n_rows, other=0.0).to(tl.float64)
    tl.store(cf_loss, (tl.sum(cf, 0) / tl.maximum(n_rows, 1)).to(tl.float32))
    count = n_rows
    if not LISTWISE:
        count = tl.load(live_count)
    tl.store(distill_loss, (tl.sum(distill, 0) / tl.maximum(count, 1)).to(tl.float32))


@triton.jit
def sum_rows(
    cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, LISTWISE: tl.constexpr, ROWS: tl.constexpr
):
    """`sum_losses` alone."""
    sum_losses(cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, LISTWISE, ROWS)


@triton.jit
def distill_block(
    learner, guide, mask, scale, loss_out, grad_out, n, tau_learner, tau_guide,
    MASK: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of a block's losses, or the slopes of its scores times scale [1]."""
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    live = at < n
    if MASK:
        live = live & (tl.load(mask + at, mask=live, other=0) != 0)
    x = tl.load(learner + at, mask=live, other=0.0).to(tl.float32)
    given = tl.load(guide + at, mask=live, other=0.0).to(tl.float32)
    losses, slopes = distill_terms(x, given, live, tau_learner, tau_guide)
    if BACKWARD:
        slopes = tl.where(live, slopes * tl.load(scale), 0.0)
        tl.store(grad_out + at, slopes.to(grad_out.dtype.element_ty), mask=at < n)
    else:
        tl.store(loss_out + block, tl.sum(losses, 0))


@triton.jit
def distill_lists(
    learner, guide, mask, scale, loss_out, grad_out, length, tau_learner, tau_guide,
    MASK: tl.constexpr, BACKWARD: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """The listwise loss of a row, or the slopes of its scores times scale [1]."""
    row = tl.program_id(0).to(tl.int64)
    learner_top = tl.full((), float("-inf"), tl.float32)
    guide_top = tl.full((), float("-inf"), tl.float32)
    learner_sum = tl.full((), 0.0, tl.float32)
    guide_sum = tl.full((), 0.0, tl.float32)
    for first in range(0, length, LIST):
        x, given, live = listed(learner, guide, mask, row, first, length, MASK, LIST)
        learner_top, learner_sum = grown(learner_top, learner_sum, x, live, tau_learner)
        guide_top, guide_sum = grown(guide_top, guide_sum, given, live, tau_guide)
    loss = tl.full((), 0.0, tl.float32)
    for first in range(0, length, LIST):
        x, given, live = listed(learner, guide, mask, row, first, length, MASK, LIST)
        losses, slopes = list_terms(
            x, given, live, learner_top, learner_sum, guide_top, guide_sum, tau_learner, tau_guide
        )
        loss += tl.sum(losses, 0)
        if BACKWARD:
            at = first + tl.arange(0, LIST)
            slopes = tl.where(live, slopes * tl.load(scale), 0.0)
            tl.store(grad_out + row * length + at, slopes.to(grad_out.dtype.element_ty), mask=at < length)
    if not BACKWARD:
        tl.store(loss_out + row, loss)


@triton.jit
def listed(learner, guide, mask, row, first, length, MASK: tl.constexpr, LIST: tl.constexpr):
    """Scores first .. first + LIST - 1 of a row, and which of them count."""
    column = first + tl.arange(0, LIST)
    at = row * length + column
    live = column < length
    if MASK:
        live = live & (tl.load(mask + at, mask=live, other=0) != 0)
    x = tl.load(learner + at, mask=live, other=0.0).to(tl.float32)
    given = tl.load(guide + at, mask=live, other=0.0).to(tl.float32)
    return x, given, live


def distill_loss(
    learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None, kind: str
) -> Tensor:
    """As in the reference: a sum for each block of scores, or for each row of a listwise loss, then the sum of those."""
    programs = _programs(learner, kind)
    sums = learner.new_zeros(programs, dtype=torch.float32)
    if programs:
        _distill(learner, guide, mask, kind, None, sums, None, tau_learner, tau_guide)
    return sums.sum() / _count(learner, mask, kind)


def distill_loss_backward(
    grad: Tensor, learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None, kind: str
) -> Tensor:
    """As in the reference."""
    out = torch.empty_like(learner, memory_format=torch.contiguous_format)
    if learner.numel():
        scale = (grad / _count(learner, mask, kind) / tau_learner).float()
        _distill(learner, guide, mask, kind, scale, None, out, tau_learner, tau_guide)
    return out


def _distill(
    learner: Tensor,
    guide: Tensor,
    mask: Tensor | None,
    kind: str,
    scale: Tensor | None,
    sums: Tensor | None,
    out: Tensor | None,
    tau_learner: float,
    tau_guide: float,
) -> None:
    both, of, grid = (learner.contiguous(), guide.contiguous()), (scale, sums, out), (_programs(learner, kind),)
    flagged = {"MASK": mask is not None, "BACKWARD": out is not None, **FUSED}
    if kind in LISTWISE:
        k = learner.shape[-1]
        most = min(LIST, triton.next_power_of_2(k))
        distill_lists[grid](*both, flags(mask), *of, k, tau_learner, tau_guide, LIST=most, num_warps=1, **flagged)
    else:
        n = learner.numel()
        distill_block[grid](*both, flags(mask), *of, n, tau_learner, tau_guide, BLOCK=BLOCK, **flagged)


def _programs(scores: Tensor, kind: str) -> int:
    """A program a row of lists, or a block of scores."""
    if kind in LISTWISE:
        return scores.shape[:-1].numel() if scores.numel() else 0
    return triton.cdiv(scores.numel(), BLOCK)


def _count(scores: Tensor, mask: Tensor | None, kind: str) -> Tensor:
    """[] int64 on the device: of what the loss is the mean, scores that count or rows; at least 1."""
    if mask is not None and kind not in LISTWISE:
        return mask.sum().clamp(min=1)
    found = scores.shape[:-1] if kind in LISTWISE else scores.shape
    return torch.full((), max(1, found.numel()), dtype=torch.int64, device=scores.device)


def flags(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def fused_gradient(s: StepInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As in the reference. Ids out of range are asserted on devices that assert."""
    if checks.asserts_ids(s):
        s = checks.own_step(s)
    (n_rows, m), d, new = s.negatives.shape, s.user_table.shape[1], s.user_table.new_empty
    width, live = 1 + m + s.distill_ids.shape[1], _count(s.distill_ids, s.distill_mask, s.distill_kind)
    user_grad, item_grad, cf_loss, loss = new(n_rows, d), new(n_rows, width, d), new(()), new(())
    *losses, slopes = step(s, live, user_grad, None, item_grad)
    listwise = s.distill_kind in LISTWISE
    sum_rows[(1,)](*losses, live, cf_loss, loss, n_rows, LISTWISE=listwise, ROWS=ROWS, **FUSED)
    return cf_loss, loss, user_grad, item_grad, slopes


def step(
    s: StepInputs, live: Tensor, user_grad: Tensor, user_rows: Tensor | None, item_grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both losses of each row, and the slopes; and what it writes to the other arguments."""
    (n_rows, n_negatives), n_distilled, d = s.negatives.shape, s.distill_ids.shape[1], s.user_table.shape[1]
    new = s.user_table.new_empty
    cf_rows, distill_rows, slopes = new(n_rows), new(n_rows), new(n_rows, 1 + n_negatives + n_distilled)
    if n_rows:
        tables = [t if t.stride(1) == 1 else t.contiguous() for t in (s.user_table, s.item_table)]
        bias, (*batch, mask), numbers = s.item_bias, s.batch, (s.distill_weight, s.tau_learner, s.tau_guide)
        step_rows[(n_rows,)](
            *tables, None if bias is None else bias.contiguous(), *(t.contiguous() for t in batch), flags(mask), live,
            cf_rows, distill_rows, user_grad, user_rows, item_grad, slopes,
            tables[0].stride(0), tables[1].stride(0), d, n_negatives, n_distilled, n_rows, *numbers,
            BPR=s.cf == "bpr", SOFTMAX=s.cf == "softmax", LISTWISE=s.distill_kind in LISTWISE, BIAS=bias is not None,
            MASK=mask is not None, ITEM_GRAD=item_grad is not None, D=triton.next_power_of_2(max(1, d)), **FUSED,
        )  # fmt: skip
    return cf_rows, distill_rows, slopes
