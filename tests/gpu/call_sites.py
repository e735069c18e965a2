"""Every launch of a Triton kernel in the package, with arguments small enough to be made anywhere."""

import os
from collections.abc import Callable, Iterator
from itertools import product
from unittest import mock

import torch
from compiled import call

import bdkernels as bd
from bdkernels.backends import precision
from bdkernels.backends.triton import loss, rank, round, sample, score, topk, update, values
from bdkernels.ranges import DISTILL_LOSSES, FUSED_LOSSES, LISTWISE
from bdkernels.types.round import Round
from bdkernels.types.rule import RULES, Rule
from bdkernels.types.step import StepInputs
from bdkernels.weights import KINDS

B, N, C = 64, 4000, 32
Site = tuple[str, Callable[[], None]]


def call_sites(d: int = 64, dtype: torch.dtype = torch.float32, ks: tuple[int, ...] = (20, 100)) -> Iterator[Site]:
    """Name and launch of each, for tables [64, d] and [4000, d] of a dtype, and lists of these lengths."""
    users, items, bias = torch.zeros(B, d, dtype=dtype), torch.zeros(N, d, dtype=dtype), torch.zeros(N, dtype=dtype)
    plain, biased = bd.Factors(users, items), bd.Factors(users, items, bias)
    ids, rows, scores = torch.zeros(B, C, dtype=torch.int64), torch.arange(B), torch.zeros(B, C)
    seen, live = bd.Seen.from_pairs(rows, rows, B), torch.ones((), dtype=torch.int64)
    mask = torch.ones(B, C, dtype=torch.bool)

    yield "score", lambda: call(score.score, biased, ids)
    yield "score block", lambda: call(score.score_block, plain)
    for name in precision.NAMES if dtype == torch.float32 else ("ieee", "bf16"):
        yield f"rank {name}", lambda p=name: with_precision(p, plain, scores, ids, None, 0)
    yield "rank biased, seen, live", lambda: with_precision("ieee", biased, scores, ids, seen, 0, live)
    for k in ks:
        yield f"topk {k}", lambda k=k: call(topk.topk, plain, k, None)
    yield f"topk {ks[0]} biased, seen", lambda: call(topk.topk, biased, ks[0], seen)
    if dtype != torch.float32:
        return  # what follows does not read the tables, or takes float32 alone
    yield "rank of a block", lambda: call(rank.count_above_block, torch.zeros(B, N), scores, ids, seen, 0)
    yield "values", lambda: call(values.values, ids, seen, N)
    for rows_seen in (None, seen):
        named = "propose" if rows_seen is None else "propose unseen"
        yield named, lambda s=rows_seen: call(sample.propose, 3, 4, rows, 0, C, N, s)
    for kind in KINDS:
        weight = (kind, 2.5, False)
        yield (
            f"accept {kind}",
            lambda w=weight: call(sample.accept, 3, 4, rows, 0, ids + 1, ids + 2, rows + N, w, False),
        )
    one, two, released = live, rows.new_zeros(2, B), (("tanh", 252.0, False), ("exp", 2.5, False))
    numbers = one, one, rows, live, rows.new_zeros(2, B, C), two, rows, one, one, two[:, 0].contiguous()
    for named, *models, rows_seen, weights in (
        ("round", plain, biased, seen, released),
        ("round, one direction", plain, plain, None, (("", 0.0, False), ("uniform", 0.0, False))),
    ):
        state = Round(*models, rows_seen, rows, rows, weights, (1024, 16, 4096), *numbers)
        yield named, lambda s=state: call(round.draw_round, s, 0, 512)
    batch = rows, rows, ids[:, :1], ids, scores
    for (cf, kind), covered in product(product(FUSED_LOSSES, DISTILL_LOSSES), (None, mask)):
        flags = (bias, *batch, covered, cf, kind, 0.5, 1.0, 1.0)
        yield (
            f"loss {cf}{f', {kind}' if kind in LISTWISE else ''}{' masked' if covered is not None else ''}",
            lambda a=flags: call(loss.fused_gradient, StepInputs(users, items, *a)),
        )
    for kind in RULES:
        state = [torch.zeros(t.shape) for t in (users, items, bias) for _ in range(RULES.index(kind))]
        rule = Rule(kind, 0.1, 0.0, 0.9, 0.999, 1e-8)
        inputs = StepInputs(users, items, bias, *batch, None, "bce", "bce", 0.5, 1.0, 1.0)
        yield f"update {kind}", lambda a=(inputs, state, rule): call(update.fused_step, *a)
    listed = inputs._replace(cf="softmax", distill_kind="listwise")
    yield "update listwise", lambda: call(update.fused_step, listed, state, rule)
    for kind, covered in product(DISTILL_LOSSES, (None, mask)):
        named = f"distill{f' {kind}' if kind in LISTWISE else ''}{' masked' if covered is not None else ''}"
        both = scores, scores, 1.0, 2.0, covered, kind
        yield named, lambda a=both: call(loss.distill_loss, *a)
        yield f"{named} backward", lambda a=both: call(loss.distill_loss_backward, torch.ones(()), *a)


def with_precision(asked: str, *args: object) -> None:
    """`rank` in this precision."""
    with mock.patch.dict(os.environ, {precision.VARIABLE: asked}):
        call(rank.count_above, *args)
