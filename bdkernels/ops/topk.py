"""The operators of the stage `topk`: schema, checks, dispatch."""

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.ops.define import FACTORS, OPTIONS, SEEN, define, seen_rows, stages
from bdkernels.types.factors import Factors


def _topk_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    k: int,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    checks.factors(Factors(users, items, item_bias))
    checks.integer("k", k, 1, items.shape[0])
    seen_rows(seen_indptr, seen_indices, users.shape[0], users.device)
    shape = (users.shape[0], k)
    return users.new_empty(shape, dtype=torch.float32), users.new_empty(shape, dtype=torch.int64)


def _topk(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    k: int,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    _topk_fake(users, items, item_bias, k, seen_indptr, seen_indices)
    seen = checks.own_seen(seen_rows(seen_indptr, seen_indices, users.shape[0], users.device), items.shape[0])
    f = Factors(users, items, item_bias)
    return stages(backend, f).topk(f, k, seen)


define("topk", f"({FACTORS}, int k, {SEEN}, {OPTIONS}) -> (Tensor, Tensor)", _topk, _topk_fake)
