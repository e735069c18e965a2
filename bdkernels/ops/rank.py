"""The operators of the stage `rank`."""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import steps
from bdkernels.ops.define import define, stages
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen


class CountInputs(NamedTuple):
    """See `bdkernels.count_above`."""

    factors: Factors
    thresholds: Tensor  # [B, C]
    tie_ids: Tensor  # [B, C]
    seen: Seen | None
    item_offset: int = 0


class CountBlockInputs(NamedTuple):
    """See `bdkernels.count_above_block`."""

    scores: Tensor  # [B, n]
    thresholds: Tensor  # [B, C]
    tie_ids: Tensor  # [B, C]
    seen: Seen | None
    item_offset: int = 0


class RankInputs(NamedTuple):
    """See `bdkernels.rank`."""

    factors: Factors
    ids: Tensor  # [B, C]
    seen: Seen | None


def ids_or_bounds(tie_ids: Tensor) -> Tensor:
    """Any integer may break a tie; beyond every item id they are all the same, and the backends' keys have 32 bits for one."""
    return tie_ids.clamp(0, checks.MAX_ITEMS)


def _check_query(s: CountInputs | CountBlockInputs, n_rows: int, n_items: int) -> Tensor:
    device = s[0].user_factors.device if isinstance(s, CountInputs) else s.scores.device
    checks.thresholds(n_rows, n_items, s.thresholds, s.tie_ids, s.item_offset, device)
    checks.seen(s.seen, n_rows, device)
    return torch.empty_like(s.tie_ids, memory_format=torch.contiguous_format)


def _check_count(s: CountInputs) -> Tensor:
    checks.factors(s.factors)
    return _check_query(s, s.factors.user_factors.shape[0], s.factors.n_items)


def _count_above(s: CountInputs, backend: str) -> Tensor:
    run = stages(backend, s.factors)
    seen = checks.own_seen(s.seen, checks.MAX_ITEMS, run.values)
    checks.no_nan("thresholds", s.thresholds)
    return run.count_above(s.factors, s.thresholds, ids_or_bounds(s.tie_ids), seen, s.item_offset)


define("count_above", CountInputs, "Tensor", _check_count, _count_above)


def _check_block(s: CountBlockInputs) -> Tensor:
    checks.tensor("scores", s.scores, ("B", "n"), (torch.float32,), s.scores.device)
    return _check_query(s, *s.scores.shape)


def _count_above_block(s: CountBlockInputs, backend: str) -> Tensor:
    run = steps(s.scores.device, backend, work=s.scores.numel())
    seen = checks.own_seen(s.seen, checks.MAX_ITEMS, run.values)
    checks.no_nan("thresholds", s.thresholds)
    return run.count_above_block(s.scores, s.thresholds, ids_or_bounds(s.tie_ids), seen, s.item_offset)


define("count_above_block", CountBlockInputs, "Tensor", _check_block, _count_above_block)


def _check_rank(s: RankInputs) -> Tensor:
    users = s.factors.user_factors
    checks.factors(s.factors)
    checks.tensor("ids", s.ids, (users.shape[0], "C"), (torch.int64,), users.device)
    checks.seen(s.seen, users.shape[0], users.device)
    return torch.empty_like(s.ids, memory_format=torch.contiguous_format)


def _rank(s: RankInputs, backend: str) -> Tensor:
    run = stages(backend, s.factors)
    ids, seen = checks.own_listed(s.ids, s.seen, s.factors.n_items, run.values)
    return 1 + run.count_above(s.factors, run.score(s.factors, ids), ids, seen, 0)


define("rank", RankInputs, "Tensor", _check_rank, _rank)
