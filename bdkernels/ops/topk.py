"""The operator of the stage `topk`."""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.ops.define import define, stages
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen


class TopKInputs(NamedTuple):
    """See `bdkernels.topk`."""

    factors: Factors
    k: int
    seen: Seen | None


def _check(s: TopKInputs) -> tuple[Tensor, Tensor]:
    users = s.factors.user_factors
    checks.factors(s.factors)
    checks.integer("k", s.k, 1, s.factors.n_items)
    checks.seen(s.seen, users.shape[0], users.device)
    shape = (users.shape[0], s.k)
    return users.new_empty(shape, dtype=torch.float32), users.new_empty(shape, dtype=torch.int64)


def _topk(s: TopKInputs, backend: str) -> tuple[Tensor, Tensor]:
    run = stages(backend, s.factors)
    return run.topk(s.factors, s.k, checks.own_seen(s.seen, s.factors.n_items, run.values))


define("topk", TopKInputs, "(Tensor, Tensor)", _check, _topk)
