"""The CUDA backend: loads its library and gives its stages the signatures of `reference`, whose distill_loss it takes as it is.

The library lies in bdkernels/lib, built by setup.py from csrc/cuda where nvcc is found, or where the environment variable
BDKERNELS_CUDA_LIBRARY says: the same source compiled for the CPU, which is how it is tested without a GPU.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import native, precision, reference
from bdkernels.backends.backend import Backend, Steps, for_gpus
from bdkernels.backends.reference import distill_loss, distill_loss_backward
from bdkernels.types.factors import Factors
from bdkernels.types.round import Round
from bdkernels.types.rule import Rule
from bdkernels.types.seen import Seen
from bdkernels.types.step import StepInputs
from bdkernels.weights import WeightCode

LIBRARY = Path(
    os.environ.get("BDKERNELS_CUDA_LIBRARY") or Path(__file__).parent.parent / "lib" / "libbdkernels_cuda.so"
)
CHOICES = ("BDKERNELS_CUDA_LIBRARY",)  # environment variables that ask for something of this backend
BLOCKS = 0  # that the GPU runs at once, 0 = as it says; tests change it, results do not
MOST_TOPK = 2048  # kMostTopK of csrc/cuda/kernels.h
# Of topk, 0 = chosen: blocks that the device runs at once, and items whose k best are the first bar. Tests change them,
# results do not.
PLACES, FIRST_PART = 0, 0


def load() -> str | None:
    """Load the library. Returns None, or the reason why it cannot be had."""
    if not LIBRARY.is_file():
        if os.environ.get("BDKERNELS_CUDA_LIBRARY"):
            return f"BDKERNELS_CUDA_LIBRARY: expected the file of the library, got {LIBRARY}, which is none"
        return "not built: it needs nvcc at install time; `python setup.py build_kernels` in a checkout says what is missing"
    if not os.environ.get("BDKERNELS_CUDA_LIBRARY") and torch.version.cuda is None:
        return "this torch is a build without CUDA"
    try:
        torch.ops.load_library(LIBRARY)
        simulated()
    except (AttributeError, OSError, RuntimeError) as error:
        return f"{LIBRARY.name} does not load: {str(error).splitlines()[0]}"
    return None


def simulated() -> bool:
    """Whether the loaded library is the one compiled for the CPU."""
    return bool(torch.ops.bdkernels_cuda.simulated())


def values(ids: Tensor | None, seen: Seen | None, limit: int) -> Tensor:
    """See `Steps.values`."""
    listed, lists = None if ids is None else ids.contiguous(), native.lists(seen)
    given = lists[0] if listed is None else listed
    assert given is not None
    fine = given.new_ones(2)
    torch.ops.bdkernels_cuda.values(listed, limit, *lists, fine)
    return fine


def score(f: Factors, ids: Tensor) -> Tensor:
    return torch.ops.bdkernels_cuda.score(*native.rows(f), ids.contiguous())


def score_block(f: Factors) -> Tensor:
    return torch.ops.bdkernels_cuda.score_block(*native.rows(f), BLOCKS)


def count_above(
    f: Factors, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int, live: Tensor | None = None
) -> Tensor:
    """`live`: int64 [] on the device, only so many rows need counting; what stands in the others is not said."""
    keys, order = _sorted_keys(thresholds, tie_ids)
    nan_at = no_nan(keys)
    counts = torch.ops.bdkernels_cuda.count_above(
        *native.rows(f), keys, order, *native.lists(seen), item_offset, live, nan_at,
        precision.NAMES.index(precision.asked()), BLOCKS,
    )  # fmt: skip
    checks.no_nan_at(nan_at, f.n_items, item_offset)
    return precision.within_bounds(counts)


def count_above_block(
    scores: Tensor, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int
) -> Tensor:
    keys, order = _sorted_keys(thresholds, tie_ids)
    nan_at = no_nan(keys)
    counts: Tensor = torch.ops.bdkernels_cuda.count_above_block(
        scores.contiguous(), keys, order, *native.lists(seen), item_offset, nan_at, BLOCKS
    )
    checks.no_nan_in_block(nan_at, scores.shape[1])
    return counts


def no_nan(like: Tensor) -> Tensor:
    """int64 [] on its device, which a kernel overwrites with the place of the first score that is NaN."""
    return like.new_full((), -1, dtype=torch.int64)


def _sorted_keys(thresholds: Tensor, tie_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Order keys [B, C], rising in each row, and where each was before."""
    keys, order = torch.ops.bdkernels_cuda.order_keys(thresholds.contiguous(), tie_ids.contiguous()).sort(dim=1)
    return keys, order


def propose(seed: int, step: int, row_keys: Tensor, start: int, stop: int, n_items: int, seen: Seen | None) -> Tensor:
    rows = row_keys.contiguous()
    return torch.ops.bdkernels_cuda.propose(seed, step, rows, start, stop, n_items, *native.lists(seen))


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
    per_user, ranks = (row_keys.contiguous(), start), (rank_guide.contiguous(), rank_learner.contiguous())
    return torch.ops.bdkernels_cuda.accept(
        seed, step, *per_user, *ranks, n.contiguous(), *native.weight(weight), to_teacher
    )


def draw_round(s: Round, start: int, stop: int) -> None:
    """See `Round`; most proposals of a round: kMostProposals of csrc/cuda/kernels.h."""
    torch.ops.bdkernels_cuda.draw_round(
        *native.rows(s.teacher), *native.rows(s.student), *native.lists(s.seen), s.row_keys.contiguous(), s.candidates,
        *native.weight(s.weights[0]), *native.weight(s.weights[1]), *s.limits, s.seed, s.step, s.rows, s.live,
        s.ids, s.hits, s.next_rows, s.next_live, s.short, s.nan_at,
        start, stop, precision.NAMES.index(precision.asked()), BLOCKS,
    )  # fmt: skip


def topk(f: Factors, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    """For k above MOST_TOPK the reference serves: no list of that length fits beside a tile in shared memory."""
    if k > MOST_TOPK:
        return reference.topk(f, k, seen)
    nan_at = no_nan(f.user_factors)
    scores, ids = torch.ops.bdkernels_cuda.topk(*native.rows(f), k, *native.lists(seen), nan_at, PLACES, FIRST_PART)
    checks.no_nan_at(nan_at, f.n_items)
    return scores, ids


def fused_gradient(s: StepInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ids out of range are asserted on devices that assert."""
    batch, counts, sizes = native.batch(s), s.users.new_ones(2), (s.user_table.shape[0], s.item_table.shape[0])
    torch.ops.bdkernels_cuda.step_counts(*batch, *sizes, counts)
    checks.queued_ids(counts[1], *sizes)
    return torch.ops.bdkernels_cuda.fused_gradient(*native.tables(s), *batch, counts, *native.objective(s))


def fused_step(
    s: StepInputs, state: list[Tensor], rule: Rule, lr: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`lr`: float32 [] on the device, in the place of the rule's; `count`: `steps_done` of `UpdateInputs`. Ids out
    of range are asserted on devices that assert.
    """
    batch, counts, sizes = native.batch(s), s.users.new_ones(2), (s.user_table.shape[0], s.item_table.shape[0])
    keys = torch.ops.bdkernels_cuda.step_keys(*batch, *sizes, counts)
    checks.queued_ids(counts[1], *sizes)
    touches = keys.sort(stable=True)  # stable: sums have one order
    return torch.ops.bdkernels_cuda.fused_step(
        *native.tables(s), state, *batch, counts, *touches, lr, count, *native.objective(s), *native.rule(rule)
    )  # fmt: skip


STEPS = Steps(
    score, score_block, count_above, count_above_block, propose, accept, topk,
    distill_loss, distill_loss_backward, fused_gradient, fused_step, draw_round=draw_round, values=values, queued=True,
)  # fmt: skip
BACKEND = Backend(
    "cuda",
    STEPS,
    devices=lambda: ("cpu",) if simulated() else ("cuda",),
    default_on=("cuda",),
    load=load,
    variables=CHOICES,
    detail=for_gpus,
)
