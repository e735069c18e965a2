"""The ranges of the operators' numbers: `checks` holds arguments to them, and settings that reach an operator copy them.

Numbers that the kernels use in float32 must be finite there, and must not become 0 there: 1e39 would be infinite, 1e-50 nothing.
"""

import math
import sys
from typing import Any, NamedTuple

import torch

_FLOAT32 = torch.finfo(torch.float32)


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included.

    Attributes:
        integer: whole numbers alone.
        signed: also the same numbers below 0.
        zero: also 0.
        words: what an error says was expected.
    """

    low: float
    high: float
    words: str
    integer: bool = False
    signed: bool = False
    zero: bool = False

    def __contains__(self, value: Any) -> bool:
        size = abs(value) if self.signed else value
        return bool((self.low <= size <= self.high and not (self.integer and value % 1)) or (self.zero and size == 0))


def _integers(low: int, high: int) -> Range:
    return Range(low, high, f"an integer >= {low} and <= {high}", integer=True)


_IN_FLOAT32 = f"a number in [{_FLOAT32.tiny:.6g}, {_FLOAT32.max:.6g}], the normal range of float32"

# sample
DRAWS = _integers(1, 2**31 - 1)  # k: a draw's number has 32 bits
SEED = _integers(-(2**63), 2**63 - 1)
STEP = _integers(0, 2**32 - 1)
USER_ID = _integers(0, 2**32 - 1)
SHARPNESS = Range(math.ulp(0.0), sys.float_info.max, "a finite number > 0")  # alpha, eps and mu of the weights: float64
# losses
# Their order is that of the enums in csrc/core/step.h; `backends.reference` has their formulas.
FUSED_LOSSES = ("bce", "bpr", "softmax")  # the `cf` that fused steps know
DISTILL_LOSSES = ("bce", "listwise")
LISTWISE = (
    "listwise",
)  # those that compare what is distilled in a row, and are means over rows; others: over live entries
TAU = Range(_FLOAT32.tiny, _FLOAT32.max, _IN_FLOAT32)
LAMBDA = Range(_FLOAT32.tiny, _FLOAT32.max, f"0, or in size {_IN_FLOAT32}", signed=True, zero=True)
SLOPE = Range(
    0.0, _FLOAT32.max, "a finite float32", signed=True
)  # distill_weight / tau_learner, a factor of the gradient
# row optimizers
LR = Range(_FLOAT32.tiny, _FLOAT32.max, f"0 or {_IN_FLOAT32}", zero=True)
STEP_SIZE = Range(0.0, _FLOAT32.max, "a finite float32 >= 0")  # lr times what Adam corrects, which may be below 1
WEIGHT_DECAY = LR
ACCUMULATOR = LR  # initial_accumulator_value
BETA = Range(0.0, math.nextafter(1.0, 0.0), "a finite number >= 0 and < 1")
EPS = Range(_FLOAT32.tiny, _FLOAT32.max, _IN_FLOAT32)  # 0 would make NaN of a gradient that is 0
