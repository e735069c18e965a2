"""The C++ backend: loads its library and gives its stages the signatures of `reference`, whose distill_loss it takes as it is.

The library lies in bdkernels/lib, built by setup.py from csrc/cpu, or where the environment variable BDKERNELS_LIBRARY says (a
build under a sanitizer); importing this module never compiles anything.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import native, reference
from bdkernels.backends.backend import Backend, Steps
from bdkernels.backends.reference import distill_loss, distill_loss_backward
from bdkernels.types.factors import Factors
from bdkernels.types.rule import Rule
from bdkernels.types.seen import Seen
from bdkernels.types.step import StepInputs
from bdkernels.weights import WeightCode

LIBRARY = Path(os.environ.get("BDKERNELS_LIBRARY") or Path(__file__).parent.parent / "lib" / "libbdkernels_cpu.so")
CHOICES = ("BDKERNELS_LIBRARY", "BDKERNELS_ISA")  # environment variables that ask for something of this backend
ISAS = ("portable", "avx2", "avx512")  # the order of isa() in csrc/binding/cpu_score.cpp
TILE = 0  # items of a tile, 0 = chosen by the kernel; tests change it, results do not


def load() -> str | None:
    """Load the library. Returns None, or the reason why it cannot be had."""
    if not LIBRARY.is_file():
        if os.environ.get("BDKERNELS_LIBRARY"):
            return f"BDKERNELS_LIBRARY: expected the file of the library, got {LIBRARY}, which is none"
        return (
            "not built: it needs a C++20 compiler and torch at install time; install both, then bdkernels again "
            "(pip install --force-reinstall --no-deps --no-cache-dir -v), which says what is missing"
        )
    try:
        torch.ops.load_library(LIBRARY)
        isa()
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY.name} does not load: {str(error).splitlines()[0]}"
    return None


def isa() -> str:
    """The instruction set that the kernels run with: chosen at the first call, or forced by BDKERNELS_ISA."""
    return ISAS[torch.ops.bdkernels_cpu.isa()]


def score(f: Factors, ids: Tensor) -> Tensor:
    return torch.ops.bdkernels_cpu.score(*native.factors(f), ids.contiguous())


def score_block(f: Factors) -> Tensor:
    return torch.ops.bdkernels_cpu.score_block(*native.factors(f))


def count_above(f: Factors, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int) -> Tensor:
    counts, nan_at = torch.ops.bdkernels_cpu.count_above(
        *native.factors(f),
        thresholds.contiguous(),
        tie_ids.contiguous(),
        *native.seen(seen, tie_ids),
        item_offset,
        TILE,
    )
    checks.no_nan_at(nan_at, f.n_items, item_offset)
    return counts


def count_above_block(
    scores: Tensor, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int
) -> Tensor:
    counts, nan_at = torch.ops.bdkernels_cpu.count_above_block(
        scores.contiguous(),
        thresholds.contiguous(),
        tie_ids.contiguous(),
        *native.seen(seen, tie_ids),
        item_offset,
        TILE,
    )
    checks.no_nan_in_block(nan_at, scores.shape[1])
    return counts


def propose(seed: int, step: int, row_keys: Tensor, start: int, stop: int, n_items: int, seen: Seen | None) -> Tensor:
    rows = row_keys.contiguous()
    return torch.ops.bdkernels_cpu.propose(seed, step, rows, start, stop, n_items, *native.seen(seen, row_keys))


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
    return torch.ops.bdkernels_cpu.accept(
        seed, step, row_keys, start, rank_guide, rank_learner, n, *native.weight(weight), to_teacher
    )


def draw(
    batch: Any, k: int, weights: tuple[WeightCode, WeightCode], seed: int, step: int, limits: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """The whole of `sampler` in one call; `batch` is its Group."""
    subset = batch.subset is not None
    counted = batch.subset.ids.contiguous() if subset else batch.row_keys.new_empty(0)
    catalogs = *_catalog(batch), counted, *(_catalog(batch.counted) if subset else ([], [], []))
    kinds, parameters, flipped = map(list, zip(*map(native.weight, weights), strict=True))
    to_student, to_teacher, model, row, item = torch.ops.bdkernels_cpu.draw(
        *catalogs, batch.row_keys.contiguous(), k, seed, step, kinds, parameters, flipped, list(limits), TILE
    )
    if model >= 0:
        raise checks.NaNScore(("teacher", "student")[model], row, item)
    return to_student, to_teacher


def _catalog(batch: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Teacher and student, and what the users have seen."""
    models = list(native.factors(batch.teacher)), list(native.factors(batch.student))
    return *models, list(native.seen(batch.seen, batch.row_keys))


def topk(f: Factors, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    scores, ids, nan_at = torch.ops.bdkernels_cpu.topk(*native.factors(f), k, *native.seen(seen, f.user_factors), TILE)
    checks.no_nan_at(nan_at, f.n_items)
    return scores, ids


def fused_gradient(s: StepInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    none = s.users.new_empty(0)
    return torch.ops.bdkernels_cpu.fused_gradient(*native.tables(s, none), *native.batch(s, none), *native.objective(s))


def fused_step(s: StepInputs, state: list[Tensor], rule: Rule) -> tuple[Tensor, Tensor]:
    none = s.users.new_empty(0)
    return torch.ops.bdkernels_cpu.fused_step(
        *native.tables(s, none), state, *native.batch(s, none), *native.objective(s), *native.rule(rule)
    )


def update_rows(table: Tensor, state: list[Tensor], ids: Tensor, grads: Tensor, rule: Rule) -> None:
    if any(t.is_neg() for t in (table, *state)):  # in memory stand other numbers than it has
        reference.update_rows(table, state, ids, grads, rule)
    else:
        rows = ids.contiguous().resolve_neg(), grads.contiguous().resolve_neg()
        torch.ops.bdkernels_cpu.update_rows(table, state, *rows, *native.rule(rule))


STEPS = Steps(
    score, score_block, count_above, count_above_block, propose, accept, topk,
    distill_loss, distill_loss_backward, fused_gradient, fused_step, draw, update_rows=update_rows,
)  # fmt: skip
BACKEND = Backend("cpu", STEPS, default_on=("cpu",), load=load, variables=CHOICES, detail=isa)
