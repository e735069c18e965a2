"""The operators of the stage `score`: schema, checks, dispatch."""

import torch
from torch import Tensor

from .. import checks
from ..factors import Factors
from .define import FACTORS, OPTIONS, define, stages


def _score_fake(users: Tensor, items: Tensor, item_bias: Tensor | None, ids: Tensor, *, backend: str = "") -> Tensor:
    checks.factors(Factors(users, items, item_bias))
    checks.tensor("ids", ids, (users.shape[0], "C"), (torch.int64,), users.device)
    return users.new_empty(ids.shape, dtype=torch.float32)


def _score(users: Tensor, items: Tensor, item_bias: Tensor | None, ids: Tensor, *, backend: str = "") -> Tensor:
    _score_fake(users, items, item_bias, ids)
    ids = checks.own_ids("ids", ids, items.shape[0])
    f = Factors(users, items, item_bias)
    scores = stages(backend, f, listed=ids.shape[1]).score(f, ids)
    checks.no_nan_listed(scores, ids)
    return scores


define("score", f"({FACTORS}, Tensor ids, {OPTIONS}) -> Tensor", _score, _score_fake)
