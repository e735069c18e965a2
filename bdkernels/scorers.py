"""The operators on scorers that are no `Factors`: what `functional` calls, once it has met one.

No torch operator stands between: a scorer is a Python object. What is asked of the arguments, and what comes out, is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import blocks, steps
from bdkernels.backends.backend import Steps
from bdkernels.backends.blocks import Blocks, plain
from bdkernels.ops.define import stages
from bdkernels.ops.rank import ids_or_bounds
from bdkernels.ops.sample import SampleInputs, check_asked, drawn
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen


def rank(f: Blocks, ids: Tensor, seen: Seen | None, backend: str) -> Tensor:
    """`functional.rank`."""
    with plain(f.device):
        checks.tensor("ids", ids, (f.n_rows, "C"), (torch.int64,), f.device)
        checks.seen(seen, f.n_rows, f.device)
        run = _steps(backend, f)
        ids, seen = checks.own_listed(ids, seen, f.n_items, run.values)
        return 1 + f.counts(ids, seen, run)


def count_above(
    f: Blocks, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int, backend: str
) -> Tensor:
    """`functional.count_above`."""
    with plain(f.device):
        checks.thresholds(f.n_rows, f.n_items, thresholds, tie_ids, item_offset, f.device)
        checks.seen(seen, f.n_rows, f.device)
        run = _steps(backend, f)
        seen = checks.own_seen(seen, checks.MAX_ITEMS, run.values)
        checks.no_nan("thresholds", thresholds)
        query = thresholds.detach().resolve_neg(), ids_or_bounds(tie_ids)
        return blocks.count_above(run, f, *query, seen, item_offset)


def topk(f: Blocks, k: int, seen: Seen | None, backend: str) -> tuple[Tensor, Tensor]:
    """`functional.topk`."""
    with plain(f.device):
        checks.integer("k", k, 1, f.n_items)
        checks.seen(seen, f.n_rows, f.device)
        run = _steps(backend, f)
        return blocks.topk(run, f, k, checks.own_seen(seen, f.n_items, run.values))


def sample(s: SampleInputs, backend: str) -> tuple[Tensor, Tensor]:
    """`functional.sample`, as ids [B, k] to the student and to the teacher."""
    (n_rows, n_items, device), others = _sizes(s.teacher), _sizes(s.student)
    for name, f in (("teacher.", s.teacher), ("student.", s.student)):
        if isinstance(f, Factors):
            checks.factors(f, name)
    checks.same("student: number of users", others[0], n_rows)
    checks.same("student: number of items", others[1], n_items)
    checks.same("student: device", others[2], device)
    checks.integer("number of items", n_items, 1)
    with plain(device):
        check_asked(s, n_rows, n_items, device)
        return drawn(s, _stages(backend, s.teacher, s.student))


def _sizes(f: Factors | Blocks) -> tuple[int, int, torch.device]:
    """Users, items, device."""
    if isinstance(f, Factors):
        return f.user_factors.shape[0], f.n_items, f.user_factors.device
    return f.n_rows, f.n_items, f.device


def _stages(backend: str, *models: Factors | Blocks) -> Steps:
    """The stages of the chosen backend for these models, one of which at least is no `Factors`."""
    factors = [f for f in models if isinstance(f, Factors)]
    others = [f for f in models if isinstance(f, Blocks)]
    found = stages(backend, *factors) if factors else _steps(backend, others[0])
    return blocks.blocked(found, dear=any(f.dear for f in others))


def _steps(backend: str, f: Blocks) -> Steps:
    return steps(f.device, backend, work=f.n_rows * f.n_items)
