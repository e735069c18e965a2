"""How `rank` multiplies on a GPU: exactly by default, or on tensor cores, where the user says so.

BDKERNELS_PRECISION names what users' and items' factors are rounded to first: "ieee" (the default: not at all, the scores are
those of `score`, bit for bit), "tf32", "bf16" or "fp16". Sums stay in float32. Rounded products can move neighbours in the
ranking and count an item before itself; draws by `sample` then follow the ranks of the rounded scores.
"""

import os

from torch import Tensor

VARIABLE = "BDKERNELS_PRECISION"
NAMES = ("ieee", "tf32", "bf16", "fp16")


def asked() -> str:
    """What the environment says now.

    Raises:
        ValueError: it is no such name.
    """
    name = os.environ.get(VARIABLE) or "ieee"
    if name not in NAMES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


def within_bounds(counts: Tensor) -> Tensor:
    """Counts from which seen items were taken off by their exact scores: with others, one too many can go."""
    return counts if asked() == "ieee" else counts.clamp_(min=0)
