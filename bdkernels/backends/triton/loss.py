"""loss: the gradient of one learner's step, and the distillation loss alone, in Triton; `update` makes a fused step of it.

`fused_gradient` is one kernel, a program for each row of the batch: it gathers the user's and the listed items' rows once, and
from registers come the scores, both losses, their slopes, the gradient of the user's row and those of the item rows. A row costs
6 (1 + M + k) d operations and reads 4 (2 + M + k) d bytes; the item gradients write 4 (1 + M + k) d more. Nothing depends on
the number of items. The floor is those bytes over the memory's bandwidth; arithmetic is far below what a GPU does meanwhile.

float32 but the sums of the losses; sums over d are not in the order of the reference: results agree within rounding, and one
device repeats its own bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.backend import only_losses
from bdkernels.backends.triton.score import FUSED
from bdkernels.types.step import StepInputs

LOSSES = ("bce", "bpr")
PER_THREAD = 32  # numbers of gathered rows that a thread holds at most, where a configuration can keep to that
STEP_CONFIGS = [
    triton.Config({"COLUMNS": columns}, num_warps=warps, maxnreg=255)
    for columns, warps in ((8, 1), (16, 4), (8, 4), (8, 8))
]
BLOCK = 1024  # scores of a program of the distillation loss
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


@triton.autotune(
    STEP_CONFIGS, key=["d", "n_negatives", "n_distilled"], prune_configs_by={"early_config_prune": step_configs}
)
@triton.jit
def step_rows(
    users_table, items_table, item_bias, users, positives, negatives, distilled, guide, mask, live_count,
    cf_out, distill_out, user_grad, user_rows, item_grad, slopes,
    user_stride, item_stride, d, n_negatives, n_distilled, n_rows, distill_weight, tau_learner, tau_guide,
    BPR: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, ITEM_GRAD: tl.constexpr, D: tl.constexpr,
    COLUMNS: tl.constexpr,
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
    if not BPR:
        slope = -sigmoid(-score) / n_rows
        cf = softplus(-score)
    scale = distill_weight / (tau_learner * tl.maximum(tl.load(live_count), 1).to(tl.float32))
    distill = 0.0
    gradient = tl.zeros([D], tl.float32)
    for first in range(0, n_negatives + n_distilled, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_negative = column < n_negatives
        is_distilled = (column >= n_negatives) & (column < width - 1)
        live = is_distilled
        if MASK:
            at = mask + row * n_distilled + column - n_negatives
            live = live & (tl.load(at, mask=is_distilled, other=0) != 0)
        ids = tl.load(negatives + row * n_negatives + column, mask=is_negative, other=0)
        ids += tl.load(distilled + row * n_distilled + column - n_negatives, mask=live, other=0)
        ids = tl.where(is_negative | live, ids, positive)  # which stands in for what is masked
        rows = tl.load(items_table + ids[:, None] * item_stride + k[None, :], mask=in_d[None, :], other=0.0)
        scores = tl.sum(rows * u[None, :], 1)
        if BIAS:
            scores += tl.load(item_bias + ids)
        x = scores
        if BPR:
            x = scores - score
        push = tl.where(is_negative, sigmoid(x) / n_rows, 0.0)
        cf += tl.sum(tl.where(is_negative, softplus(x), 0.0), 0)
        if BPR:
            slope -= tl.sum(push, 0)
        given = tl.load(guide + row * n_distilled + column - n_negatives, mask=live, other=0.0)
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
def sum_losses(cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, ROWS: tl.constexpr):
    """Losses of the batch from those of its rows."""
    cf = tl.zeros([ROWS], tl.float64)
    distill = tl.zeros([ROWS], tl.float64)
    for first in range(0, n_rows, ROWS):
        row = first + tl.arange(0, ROWS)
        cf += tl.load(cf_rows + row, mask=row < n_rows, other=0.0).to(tl.float64)
        distill += tl.load(distill_rows + row, mask=row < n_rows, other=0.0).to(tl.float64)
    tl.store(cf_loss, (tl.sum(cf, 0) / tl.maximum(n_rows, 1)).to(tl.float32))
    tl.store(distill_loss, (tl.sum(distill, 0) / tl.maximum(tl.load(live_count), 1)).to(tl.float32))


@triton.jit
def sum_rows(cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, ROWS: tl.constexpr):
    """`sum_losses` alone."""
    sum_losses(cf_rows, distill_rows, live_count, cf_loss, distill_loss, n_rows, ROWS)


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


def distill_loss(
    learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None, kind: str
) -> Tensor:
    """As in the reference: a sum for each block of scores, then the sum of those."""
    only_losses("triton", LOSSES, kind)
    n = learner.numel()
    sums = learner.new_zeros(triton.cdiv(n, BLOCK), dtype=torch.float32)
    if n:
        _distill(learner, guide, mask, None, sums, None, tau_learner, tau_guide)
    return sums.sum() / _live(learner, mask)


def distill_loss_backward(
    grad: Tensor, learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None, kind: str
) -> Tensor:
    """As in the reference."""
    only_losses("triton", LOSSES, kind)
    out = torch.empty_like(learner, memory_format=torch.contiguous_format)
    if learner.numel():
        scale = (grad / _live(learner, mask) / tau_learner).float()
        _distill(learner, guide, mask, scale, None, out, tau_learner, tau_guide)
    return out


def _distill(
    learner: Tensor,
    guide: Tensor,
    mask: Tensor | None,
    scale: Tensor | None,
    sums: Tensor | None,
    out: Tensor | None,
    tau_learner: float,
    tau_guide: float,
) -> None:
    n = learner.numel()
    distill_block[(triton.cdiv(n, BLOCK),)](
        learner.contiguous(), guide.contiguous(), flags(mask), scale, sums, out, n, tau_learner, tau_guide,
        MASK=mask is not None, BACKWARD=out is not None, BLOCK=BLOCK, **FUSED,
    )  # fmt: skip


def _live(scores: Tensor, mask: Tensor | None) -> Tensor:
    """[] int64 on the device: how many scores count, at least 1."""
    if mask is None:
        return torch.full((), max(1, scores.numel()), dtype=torch.int64, device=scores.device)
    return mask.sum().clamp(min=1)


def flags(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def fused_gradient(s: StepInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As in the reference. Ids out of range are asserted on devices that assert."""
    if checks.asserts_ids(s):
        s = checks.own_step(s)
    (n_rows, m), d, new = s.negatives.shape, s.user_table.shape[1], s.user_table.new_empty
    width, live = 1 + m + s.distill_ids.shape[1], _live(s.distill_ids, s.distill_mask)
    user_grad, item_grad, cf_loss, loss = new(n_rows, d), new(n_rows, width, d), new(()), new(())
    *losses, slopes = step(s, live, user_grad, None, item_grad)
    sum_rows[(1,)](*losses, live, cf_loss, loss, n_rows, ROWS=ROWS, **FUSED)
    return cf_loss, loss, user_grad, item_grad, slopes


def step(
    s: StepInputs, live: Tensor, user_grad: Tensor, user_rows: Tensor | None, item_grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both losses of each row, and the slopes; and what it writes to the other arguments."""
    (n_rows, n_negatives), n_distilled, d = s.negatives.shape, s.distill_ids.shape[1], s.user_table.shape[1]
    only_losses("triton", LOSSES, s.cf, s.distill_kind)
    new = s.user_table.new_empty
    cf_rows, distill_rows, slopes = new(n_rows), new(n_rows), new(n_rows, 1 + n_negatives + n_distilled)
    if n_rows:
        tables = [t if t.stride(1) == 1 else t.contiguous() for t in (s.user_table, s.item_table)]
        bias, (*batch, mask), numbers = s.item_bias, s.batch, (s.distill_weight, s.tau_learner, s.tau_guide)
        step_rows[(n_rows,)](
            *tables, None if bias is None else bias.contiguous(), *(t.contiguous() for t in batch), flags(mask), live,
            cf_rows, distill_rows, user_grad, user_rows, item_grad, slopes,
            tables[0].stride(0), tables[1].stride(0), d, n_negatives, n_distilled, n_rows, *numbers,
            BPR=s.cf == "bpr", BIAS=bias is not None, MASK=mask is not None, ITEM_GRAD=item_grad is not None,
            D=triton.next_power_of_2(max(1, d)), **FUSED,
        )  # fmt: skip
    return cf_rows, distill_rows, slopes
