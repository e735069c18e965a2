"""A backend: the reference, with a note of what it was asked for; and one that has a single stage."""

from collections import Counter

import torch

from bdkernels.backends import Backend, Steps, reference, register

CALLS: Counter[str] = Counter()


def counted(stage):
    """The stage, with a note of each call."""

    def run(*arguments):
        CALLS[stage.__name__] += 1
        return stage(*arguments)

    return run


STAGES = Steps(
    score=counted(reference.score),
    score_block=counted(reference.score_block),
    count_above=counted(reference.count_above),
    propose=counted(reference.propose),
    accept=counted(reference.accept),
    topk=counted(reference.topk),
    fused_step=counted(reference.fused_step),
)


def why_not(device, dtype):
    """Which tables it does not take."""
    return "expected float32 or float16, got bfloat16" if dtype == torch.bfloat16 else None


register(Backend("counted", STAGES, devices=("cpu",), refuses=why_not))
register(Backend("scores_only", Steps(score=reference.score)))
