"""The operators of the stage `rank`: schema, checks, dispatch."""

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import steps
from bdkernels.ops.define import FACTORS, OPTIONS, SEEN, define, seen_rows, stages
from bdkernels.types.factors import Factors


def ids_or_bounds(tie_ids: Tensor) -> Tensor:
    """Any integer may break a tie; beyond every item id they are all the same, and the backends' keys have 32 bits for one."""
    return tie_ids.clamp(0, checks.MAX_ITEMS)


def _count_above_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    checks.factors(Factors(users, items, item_bias))
    checks.thresholds(users.shape[0], items.shape[0], thresholds, tie_ids, item_offset, users.device)
    seen_rows(seen_indptr, seen_indices, users.shape[0], users.device)
    return torch.empty_like(tie_ids, memory_format=torch.contiguous_format)


def _count_above(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    _count_above_fake(users, items, item_bias, thresholds, tie_ids, seen_indptr, seen_indices, item_offset)
    seen = checks.own_seen(seen_rows(seen_indptr, seen_indices, users.shape[0], users.device), checks.MAX_ITEMS)
    checks.no_nan("thresholds", thresholds)
    f = Factors(users, items, item_bias)
    return stages(backend, f).count_above(f, thresholds, ids_or_bounds(tie_ids), seen, item_offset)


define(
    "count_above",
    f"({FACTORS}, Tensor thresholds, Tensor tie_ids, {SEEN}, int item_offset=0, {OPTIONS}) -> Tensor",
    _count_above,
    _count_above_fake,
)


def _count_above_block_fake(
    scores: Tensor,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    checks.tensor("scores", scores, ("B", "n"), (torch.float32,), scores.device)
    checks.thresholds(scores.shape[0], scores.shape[1], thresholds, tie_ids, item_offset, scores.device)
    seen_rows(seen_indptr, seen_indices, scores.shape[0], scores.device)
    return torch.empty_like(tie_ids, memory_format=torch.contiguous_format)


def _count_above_block(
    scores: Tensor,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    _count_above_block_fake(scores, thresholds, tie_ids, seen_indptr, seen_indices, item_offset)
    seen = checks.own_seen(seen_rows(seen_indptr, seen_indices, scores.shape[0], scores.device), checks.MAX_ITEMS)
    checks.no_nan("thresholds", thresholds)
    ties = ids_or_bounds(tie_ids)
    run = steps(scores.device, backend, work=scores.numel())
    return run.count_above_block(scores, thresholds, ties, seen, item_offset)


define(
    "count_above_block",
    f"(Tensor scores, Tensor thresholds, Tensor tie_ids, {SEEN}, int item_offset=0, {OPTIONS}) -> Tensor",
    _count_above_block,
    _count_above_block_fake,
)


def _rank_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    checks.factors(Factors(users, items, item_bias))
    checks.tensor("ids", ids, (users.shape[0], "C"), (torch.int64,), users.device)
    seen_rows(seen_indptr, seen_indices, users.shape[0], users.device)
    return torch.empty_like(ids, memory_format=torch.contiguous_format)


def _rank(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    _rank_fake(users, items, item_bias, ids, seen_indptr, seen_indices)
    f, seen = Factors(users, items, item_bias), seen_rows(seen_indptr, seen_indices, users.shape[0], users.device)
    ids = checks.own_ids("ids", ids, items.shape[0])
    seen = checks.own_seen(seen, items.shape[0])
    run = stages(backend, f)
    return 1 + run.count_above(f, run.score(f, ids), ids, seen, 0)


define("rank", f"({FACTORS}, Tensor ids, {SEEN}, {OPTIONS}) -> Tensor", _rank, _rank_fake)
