"""Every stage in plain PyTorch: the definition that all backends are tested against, and the fallback on every device.

It streams the catalog in tiles like the kernels do, and it is exact: a score here has the same bits as in the C++ backend. That
holds in the default float mode: this is torch's own arithmetic, which follows the mode of the processor (docs/numerics.md).
Arguments are checked by `ops`; nothing here checks them again. Shapes: B users, N items, C listed items a user, d factors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bdkernels.backends.backend import Backend, Steps
from bdkernels.checks import NaNScore
from bdkernels.ranges import LISTWISE
from bdkernels.storage import mapped
from bdkernels.types.factors import Factors
from bdkernels.types.rule import Rule
from bdkernels.types.seen import Seen
from bdkernels.types.step import StepInputs
from bdkernels.weights import WeightCode

TILE_ELEMENTS = 1 << 18  # users x items of one tile: a few MB of float64 scratch; tests change it, results do not
_LOW32 = 0xFFFFFFFF
NEGATIVE_ZERO = torch.iinfo(torch.int32).min  # the bits of -0.0
NO_KEY = torch.iinfo(torch.int64).min  # an order key that is no item's


# ---- score ----


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c in float32 with one rounding, as the hardware's fused multiply-add does it, from float64 operations. Of float64
    numbers, which this module alone has: with two roundings.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums", 2008), so that the second rounding, to float32, is the only one that counts.
    """
    if c.dtype == torch.float64:
        return a * b + c
    p, c64 = a.double() * b.double(), c.double()
    s = p + c64
    back = s - c64
    err = (c64 - (s - back)) + (p - back)  # TwoSum: s + err is the exact sum
    bits = s.contiguous().view(torch.int64)
    toward = torch.sign(err * s).nan_to_num_(0.0).to(torch.int64)  # NaN only where s is not finite: leave it
    return (bits + toward * (1 - (bits & 1))).view(torch.float64).float()


def score_block(f: Factors) -> Tensor:
    """[B, N] float32 scores of one block of items: a sequential fused multiply-add over d that starts at the bias."""
    users, items = f.user_factors.float(), f.item_factors.float()
    bias = items.new_zeros(items.shape[0]) if f.item_bias is None else f.item_bias.float()
    acc = bias.repeat(users.shape[0], 1)  # not added to 0, which would lose the sign of -0.0
    for k in range(users.shape[1]):
        acc = fma(users[:, k, None], items[None, :, k], acc)
    return acc


def score(f: Factors, ids: Tensor) -> Tensor:
    """[B, C] float32 scores of the listed items, the same bits as `score_block` gives them; float64 of float64 factors."""
    users, items = (
        _wide(f.user_factors).T.contiguous(),
        _wide(f.item_factors[ids]).movedim(2, 0).contiguous(),
    )  # [d, B], [d, B, C]
    acc = users.new_zeros(ids.shape) if f.item_bias is None else _wide(f.item_bias[ids])
    for u, v in zip(users, items, strict=True):
        acc = fma(u[:, None], v, acc)
    return acc


def score_backward_users(grad: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """[B, d] gradient of `score` for the users, from that of the scores [B, C]."""
    rows = mapped.take(items, ids.flatten()).to(grad.dtype)
    return torch.bmm(grad[:, None], rows.view(*ids.shape, items.shape[1])).squeeze(1)


def score_backward_items(grad: Tensor, users: Tensor) -> Tensor:
    """[B * C, d] gradient of `score` for the rows of the listed items; for their biases it is that of the scores."""
    return (grad[:, :, None] * users.to(grad.dtype)[:, None]).flatten(0, 1)


# ---- rank ----


def order_key(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys whose order is the total order of design.md: higher score first, ties by lower id. Not for NaN."""
    return (order_bits(scores).long() << 32) + (_LOW32 - ids)


def order_bits(scores: Tensor) -> Tensor:
    """int32 in the order of float32 scores, of which -0.0 and 0.0 are equal; by integers, so in any float mode."""
    bits = scores.contiguous().view(torch.int32)
    return torch.where(bits < 0, torch.where(bits == NEGATIVE_ZERO, 0, bits ^ 0x7FFFFFFF), bits)


def order_score(keys: Tensor) -> Tensor:
    """The float32 scores inside of order keys."""
    monotone = keys >> 32
    return torch.where(monotone < 0, monotone ^ 0x7FFFFFFF, monotone).int().view(torch.float32)


def tile_size(n_users: int) -> int:
    """Items in a tile, so that a tile of scores stays near TILE_ELEMENTS."""
    return max(1, TILE_ELEMENTS // max(1, n_users))


def count_above_block(
    scores: Tensor, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int
) -> Tensor:
    """[B, C] int64: how many unseen items of a block of scores [B, n] come before each (threshold, tie id)."""
    if (bad := scores.isnan().nonzero()).numel():
        raise ValueError(f"scores: expected no NaN, got NaN at {bad[0].tolist()}")
    keys, order = order_key(thresholds, tie_ids).contiguous().sort(dim=1)
    ids = torch.arange(item_offset, item_offset + scores.shape[1], device=scores.device)
    hist = _histogram(torch.searchsorted(keys, order_key(scores, ids).contiguous()), keys.shape[1], seen, item_offset)
    return _suffix_counts(hist, order)


def count_above(f: Factors, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int) -> Tensor:
    """`count_above_block` over the whole item table, tile by tile. Raises ValueError on a NaN score."""
    keys, order = order_key(thresholds, tie_ids).contiguous().sort(dim=1)
    hist = tie_ids.new_zeros(tie_ids.shape[0], tie_ids.shape[1] + 1)
    tile = tile_size(f.user_factors.shape[0])
    for start in range(0, f.n_items, tile):
        bins = _bins(slice_items(f, start, start + tile), keys, item_offset + start)
        hist += _histogram(bins, keys.shape[1], seen, item_offset + start)
    return _suffix_counts(hist, order)


def _bins(f: Factors, keys: Tensor, first_id: int) -> Tensor:
    """[B, n] int64: how many of the sorted keys [B, C] each item comes before, by its score's exact bits.

    A filter in the way of exact geometric predicates (Shewchuk, 1997): a float64 product and a bound on how far the fp32
    chain may be from it decide nearly every item; only where a threshold lies within the bound the chain itself is computed.
    """
    users, items = f.user_factors.double(), f.item_factors.double()
    approximate, size = users @ items.T, users.norm(dim=1)[:, None] * items.norm(dim=1)
    if f.item_bias is not None:
        approximate += f.item_bias.double()
        size += f.item_bias.double().abs()
    certain = size < 3e38  # of every partial sum: no overflow, no NaN
    steps = users.shape[1] + 2
    bound = size.mul_(steps * 2.0**-24 * (1 + steps * 2.0**-22)).add_(steps * 2.0**-149)  # of |chain - approximate|
    sorted_thresholds = order_score(keys).double()
    bins = torch.searchsorted(sorted_thresholds, approximate - bound)
    certain &= bins == torch.searchsorted(sorted_thresholds, approximate + bound, right=True)
    unsure = certain.logical_not_().nonzero()
    ids = torch.arange(first_id, first_id + f.n_items, device=keys.device)
    if unsure.shape[0] * 2 > bins.numel():
        scores = score_block(f)
        check_scores(scores, first_id)
        return torch.searchsorted(keys, order_key(scores, ids))
    rows, columns = unsure.unbind(1)
    pairs = Factors(f.user_factors[rows], f.item_factors, f.item_bias)
    scores = score(pairs, columns[:, None])
    check_scores_at(scores[:, 0], rows, ids[columns])
    found = _search_rows(keys, order_key(scores[:, 0], ids[columns]), rows)
    return bins.index_put_((rows, columns), found)


def _search_rows(keys: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """searchsorted of each value in the row of keys [B, C] that `rows` names: C is small, so by comparing with all."""
    return torch.cat([(keys[r] < v[:, None]).sum(1) for r, v in zip(rows.split(4096), values.split(4096), strict=True)])


def _histogram(bins: Tensor, n_keys: int, seen: Seen | None, first_id: int) -> Tensor:
    """[B, C + 1] int64: how many unseen items of the block fall into each bin [B, n]."""
    counts = torch.ones_like(bins)
    if seen is not None:
        inside = (seen.indices >= first_id) & (seen.indices < first_id + bins.shape[1])
        counts[seen.row_of_each()[inside], seen.indices[inside] - first_id] = 0
    return bins.new_zeros(bins.shape[0], n_keys + 1).scatter_add_(1, bins, counts)


def _suffix_counts(hist: Tensor, order: Tensor) -> Tensor:
    """Counts above each key, in the order that the keys had before they were sorted."""
    above = hist.flip(1).cumsum(1).flip(1)[:, 1:]
    return torch.empty_like(above).scatter_(1, order, above)


def slice_items(f: Factors, start: int, stop: int) -> Factors:
    """The same users over items start .. stop - 1."""
    return Factors(f.user_factors, f.item_factors[start:stop], None if f.item_bias is None else f.item_bias[start:stop])


def check_scores(scores: Tensor, first_id: int) -> None:
    """Raise ValueError naming the first user row and item whose score in this block [B, n] is NaN."""
    rows, columns = scores.isnan().nonzero(as_tuple=True)
    check_scores_at(scores[rows, columns], rows, columns + first_id)


def check_scores_at(scores: Tensor, rows: Tensor, ids: Tensor) -> None:
    """The same for scores [M] of user rows and item ids."""
    if (bad := scores.isnan().nonzero()).numel():
        at = int(bad[0])
        raise NaNScore("factors", int(rows[at]), int(ids[at]))


# ---- sample ----

PROPOSE, ACCEPT, FALLBACK, SUBSET = 0, 1, 2, 3  # streams of random numbers; the first three as in csrc/core/philox.h


def philox(seed: int, index: Tensor, stream: int, keys: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (in int64) of Philox4x32-10 for each (index, stream, row key, step), with the seed as its own key.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). `index` and `keys` broadcast;
    `keys.py` makes row keys, and a user's id is one.
    """
    c0, key = torch.broadcast_tensors(index, keys)
    c1, c2, c3 = stream | key >> 32 & _LOW32, key & _LOW32, torch.full_like(c0, step)
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wrap in int64; both halves are still right
        c0, c1, c2, c3 = (p1 >> 32 & _LOW32) ^ c1 ^ k0, p1 & _LOW32, (p0 >> 32 & _LOW32) ^ c3 ^ k1, p0 & _LOW32
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return c0, c1, c2, c3


def uniform(hi: Tensor, lo: Tensor) -> Tensor:
    """float64 in (0, 1), never 0 or 1, from the upper 52 of 64 random bits."""
    return ((hi << 20 | lo >> 12).double() + 0.5) * 2.0**-52


def candidate_counts(n_items: int, n_rows: int, seen: Seen | None, device: torch.device) -> Tensor:
    """[B] int64: n_u, the items that each user has not seen."""
    if seen is None:
        return torch.full((n_rows,), n_items, dtype=torch.int64, device=device)
    return n_items - seen.counts()


def propose(seed: int, step: int, row_keys: Tensor, start: int, stop: int, n_items: int, seen: Seen | None) -> Tensor:
    """[B, stop - start] int64: proposals start .. stop - 1 of each user, uniform over the unseen items (-1 if none)."""
    index = torch.arange(start, stop, device=row_keys.device)
    hi, lo, _, _ = philox(seed, index, PROPOSE, row_keys[:, None], step)
    n = candidate_counts(n_items, row_keys.shape[0], seen, row_keys.device)[:, None]
    nth = (hi * n + (lo * n >> 32)) >> 32  # floor(64 random bits * n / 2^64): off by less than n / 2^64
    return nth if seen is None else seen.nth_unseen(nth, n_items)


def log_weight(kind: str, parameter: float, delta: Tensor, n: Tensor, rank_guide: Tensor) -> Tensor:
    """float64 log of the unnormalised weight.

    Args:
        delta: int64, rank_guide - rank_learner, already negated where the weight is flipped.
        n: int64, number of candidates of the user.
        rank_guide: int64, 1 = best.
    """
    gap = delta.double() / n
    if kind == "tanh":
        return torch.tanh(parameter * gap.clamp(min=0)).log()
    if kind == "exp":
        return parameter * gap
    if kind == "linear":
        return gap.clamp(min=0).log()
    if kind == "rank_only":
        return -(rank_guide - 1).double() / parameter  # 0 at the best, however small the parameter
    return torch.zeros_like(gap)  # uniform


def max_log_weight(kind: str, parameter: float, n: Tensor) -> Tensor:
    """The log-weight at the largest gap there can be among n candidates, and at the guide's best rank."""
    return log_weight(kind, parameter, n - 1, n, torch.ones_like(n))


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
    """[B, C] bool: which of the proposals start .. start + C - 1 are draws from the weight's distribution."""
    kind, parameter, flipped = weight
    index = torch.arange(start, start + rank_guide.shape[1], device=row_keys.device)
    words = philox(seed, index, ACCEPT, row_keys[:, None], step)
    u = uniform(*words[2:]) if to_teacher else uniform(*words[:2])
    n = n[:, None]
    delta = rank_learner - rank_guide if flipped else rank_guide - rank_learner
    # NaN (no weight anywhere, or no candidate at all) compares false: not accepted.
    return u.log() < log_weight(kind, parameter, delta, n, rank_guide) - max_log_weight(kind, parameter, n)


# ---- loss ----


def distill_loss(
    learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None, kind: str
) -> Tensor:
    """ "bce": mean over the mask of BCE(sigmoid(learner / tau_learner), sigmoid(guide / tau_guide)), 0 where it is empty.

    "listwise": mean over rows of KL(softmax(guide / tau_guide) || softmax(learner / tau_learner)) over the mask, 0 where a row
    has none.
    """
    learner, guide = _wide(learner), _wide(guide)
    if kind == "bce":
        target = torch.sigmoid(guide / tau_guide).to(learner.dtype)
        terms = F.binary_cross_entropy_with_logits(learner / tau_learner, target, reduction="none")
    else:  # listwise
        log_p, log_q = (_log_shares(s, tau, mask) for s, tau in ((guide, tau_guide), (learner, tau_learner)))
        p = log_p.exp()
        terms = (p * (log_p - log_q)).where(p != 0, 0.0).to(learner.dtype)  # a share of 0 weighs nothing, NaN all
    return (terms if mask is None else terms.where(mask, 0.0)).sum() / _count(learner, mask, kind)


def distill_loss_backward(
    grad: Tensor, learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None, kind: str
) -> Tensor:
    """Gradient of `distill_loss` for the learner's scores: (learner's chance or share - guide's) / tau / count."""
    if kind == "bce":
        slope = torch.sigmoid(_wide(learner) / tau_learner) - torch.sigmoid(_wide(guide) / tau_guide)
    else:  # listwise
        slope = _log_shares(_wide(learner), tau_learner, mask).exp() - _log_shares(_wide(guide), tau_guide, mask).exp()
    slope = slope if mask is None else slope.where(mask, 0.0)
    # One division after the other: a float times an integer tensor is float32, also where the scores are float64.
    return (grad * slope / _count(learner, mask, kind) / tau_learner).to(learner.dtype)


def _log_shares(scores: Tensor, tau: float, mask: Tensor | None) -> Tensor:
    """log softmax(scores / tau) over those of a row that the mask lists; the others are undefined.

    The maximum is subtracted first, since scores / tau may be infinite.
    """
    if scores.numel() == 0:
        return scores
    scores = scores if mask is None else scores.where(mask, -torch.inf)
    return ((scores - scores.amax(-1, keepdim=True)) / tau).log_softmax(-1)


def _wide(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _count(scores: Tensor, mask: Tensor | None, kind: str) -> Tensor | int:
    """Of what the distillation loss is the mean: scores that count, or rows; at least 1."""
    if kind in LISTWISE:
        return max(1, scores.shape[:-1].numel())
    return max(1, scores.numel()) if mask is None else mask.sum().clamp(min=1)


def cf_loss(cf: str, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [] of scores [B, 1] and [B, M], summed over a row and averaged over rows; its slopes in both.

    softmax: log(exp(positive) + sum of exp(negative)) - positive is softplus(z) with z = log(sum of exp(negative - positive)),
    which loses no digits where the positive is far ahead.
    """
    n_rows = max(1, positive.shape[0])
    if cf == "bce":
        loss = (F.softplus(-positive).sum() + F.softplus(negative).sum()) / n_rows
        return loss, -torch.sigmoid(-positive) / n_rows, torch.sigmoid(negative) / n_rows
    if cf == "bpr":
        loss = F.softplus(negative - positive).sum() / n_rows
        pull = torch.sigmoid(negative - positive) / n_rows
        return loss, -pull.sum(1, keepdim=True), pull
    z = (negative - positive).logsumexp(1, keepdim=True)  # softmax
    pull = torch.sigmoid(z) / n_rows
    return F.softplus(z).sum() / n_rows, -pull, pull * negative.softmax(1)


def fused_gradient(s: StepInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One learner's losses and the gradient of the rows that they touch; see `bdkernels.fused_loss`.

    Returns: cf loss [], NaN where a score is not finite; distillation loss []; and the gradient of
    cf + distill_weight * distillation for the user rows [B, d], for the item rows [B, 1 + M + k, d] (positive, negatives,
    distilled) and for their biases [B, 1 + M + k].
    """
    listed = s.listed()
    u, v = s.user_table[s.users], s.item_table[listed]
    scores = torch.einsum("bd,bcd->bc", u, v)
    if s.item_bias is not None:
        scores = scores + s.item_bias[listed]
    none_or_nan = (scores - scores).sum()  # where a score is not finite, the losses may be, though the gradient is not
    m = s.negatives.shape[1]
    positive, negative, distilled = scores[:, :1], scores[:, 1 : 1 + m], scores[:, 1 + m :]
    cf, *slopes = cf_loss(s.cf, positive, negative)
    distillation = distilled, s.guide_scores, s.tau_learner, s.tau_guide, s.distill_mask, s.distill_kind
    loss = distill_loss(*distillation)
    slopes.append(distill_loss_backward(loss.new_full((), s.distill_weight), *distillation))
    slope = torch.cat(slopes, 1)
    return cf + none_or_nan, loss, torch.einsum("bc,bcd->bd", slope, v), slope[:, :, None] * u[:, None, :], slope


# ---- update ----


def fused_step(s: StepInputs, state: list[Tensor], rule: Rule) -> tuple[Tensor, Tensor]:
    """The losses of `fused_gradient`, then the rule on the rows that they touch, in place; see `bdkernels.fused_step`.

    On a CPU nothing is changed where the losses are not finite. On a GPU nobody waits to know.
    """
    cf, loss, g_users, g_items, g_bias = fused_gradient(s)
    if cf.device.type == "cpu" and not (cf.isfinite() and loss.isfinite()):
        return cf, loss
    listed = s.listed().flatten()
    touched = [(s.user_table, s.users, g_users), (s.item_table, listed, g_items.flatten(0, 1))]
    if s.item_bias is not None:
        touched.append((s.item_bias, listed, g_bias.flatten()))
    each = len(state) // len(touched)
    for i, (table, ids, grads) in enumerate(touched):
        update_rows(table, state[i * each : (i + 1) * each], ids, grads, rule)
    return cf, loss


def update_rows(table: Tensor, state: list[Tensor], ids: Tensor, grads: Tensor, rule: Rule) -> None:
    """Sum the gradients of equal ids and apply the rule once to each of those rows; formulas in `bdkernels.optim`."""
    ids, place = ids.unique(return_inverse=True)
    old, rows = table.index_select(0, ids), [each.index_select(0, ids) for each in state]  # each row is visited once
    g = torch.zeros_like(old).index_add_(0, place, grads) + rule.weight_decay * old
    if rule.kind == "adagrad":
        rows[0] += g * g
        g = g / (rows[0].sqrt() + rule.eps)
    elif rule.kind == "adam":
        for average, new, beta in zip(rows, (g, g * g), (rule.beta1, rule.beta2), strict=True):
            average += (1 - beta) * (new - average)
        g = rows[0] / (rows[1].sqrt() + rule.eps)
    for each, new in zip((*state, table), (*rows, old - rule.lr * g), strict=True):
        each.index_copy_(0, ids, new)


# ---- topk ----


def topk(f: Factors, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    """[B, k] scores and ids of the best unseen items in the total order, merged tile by tile; -inf and -1 past the last."""
    n_rows = f.user_factors.shape[0]
    best = torch.full((n_rows, k), NO_KEY, dtype=torch.int64, device=f.user_factors.device)
    tile = max(k, tile_size(n_rows))
    for start in range(0, f.n_items, tile):
        scores = score_block(slice_items(f, start, start + tile))
        check_scores(scores, start)
        best = merge_best(best, scores, start, seen)
    return listed_keys(best)


def merge_best(best: Tensor, scores: Tensor, first_id: int, seen: Seen | None) -> Tensor:
    """[B, k] order keys of the best unseen items: of `best`, those so far, and of a block of scores [B, n]; NO_KEY for none."""
    stop = first_id + scores.shape[1]
    keys = order_key(scores, torch.arange(first_id, stop, device=scores.device))
    if seen is not None:
        inside = (seen.indices >= first_id) & (seen.indices < stop)
        keys[seen.row_of_each()[inside], seen.indices[inside] - first_id] = NO_KEY
    return torch.cat([best, keys], 1).topk(best.shape[1], dim=1).values  # keys are all different: ties cannot be split


def listed_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of order keys; -inf and -1 for NO_KEY."""
    missing = keys == NO_KEY
    return order_score(keys).masked_fill(missing, -torch.inf), (_LOW32 - (keys & _LOW32)).masked_fill(missing, -1)


STEPS = Steps(
    score, score_block, count_above, count_above_block, propose, accept, topk,
    distill_loss, distill_loss_backward, fused_gradient, fused_step,
)  # fmt: skip
BACKEND = Backend("reference", STEPS, devices=None, float64=True)
