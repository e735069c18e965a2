"""The Triton backend: its stages have the signatures of `reference`. Importing this package does not import Triton itself.

Under TRITON_INTERPRET=1 the kernels run in Triton's interpreter, on CPU tensors: that is how they are tested without a GPU.
"""

import importlib.util
import os

from bdkernels.backends.backend import Backend, Steps, for_gpus


def load() -> str | None:
    """None, or the reason why the backend cannot be had."""
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


def simulated() -> bool:
    """Whether the kernels run in Triton's interpreter: the variable is read when they are decorated, at the first use."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def steps() -> Steps:
    """The stages; imports Triton."""
    from bdkernels.backends.triton import loss, rank, round, sample, score, topk, update, values

    return Steps(
        score.score,
        score.score_block,
        rank.count_above,
        rank.count_above_block,
        sample.propose,
        sample.accept,
        topk.topk,
        loss.distill_loss,
        loss.distill_loss_backward,
        loss.fused_gradient,
        update.fused_step,
        draw_round=round.draw_round,
        values=values.values,
        queued=True,
    )


BACKEND = Backend(
    "triton",
    steps,
    devices=lambda: ("cpu",) if simulated() else ("cuda",),
    default_on=("cuda",),
    load=load,
    detail=for_gpus,
)
