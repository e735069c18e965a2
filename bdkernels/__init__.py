"""Fused, exact kernels for bidirectional distillation of top-K recommenders at catalog scale.

The pipeline, and so the order of this file: factors -> score -> rank -> topk -> sample -> loss -> update. Importing registers the
operators as torch.ops.bdkernels.*; it compiles nothing and touches no GPU driver.
"""

from importlib.metadata import PackageNotFoundError, version

from .backends import BackendError
from .checks import NonFiniteLoss
from .factors import Factors
from .functional import (
    Draws,
    Samples,
    StepLoss,
    TopK,
    bd_step_loss,
    bd_step_update,
    count_above,
    count_above_block,
    distill_loss,
    rank,
    sample,
    score,
    topk,
)
from .keys import occurrence
from .optim import SGD, Adagrad, LazyAdam, RowOptimizer
from .rows import apply_rows
from .seen import Seen
from .stored import open_table
from .subset import Strata, rank_error, rank_errors
from .weights import Exp, Linear, RankOnly, Tanh, Uniform, Weight

try:
    __version__ = version("bdkernels")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "SGD",
    "Adagrad",
    "BackendError",
    "Draws",
    "Exp",
    "Factors",
    "LazyAdam",
    "Linear",
    "NonFiniteLoss",
    "RankOnly",
    "RowOptimizer",
    "Samples",
    "Seen",
    "StepLoss",
    "Strata",
    "Tanh",
    "TopK",
    "Uniform",
    "Weight",
    "apply_rows",
    "bd_step_loss",
    "bd_step_update",
    "count_above",
    "count_above_block",
    "distill_loss",
    "occurrence",
    "open_table",
    "rank",
    "rank_error",
    "rank_errors",
    "sample",
    "score",
    "topk",
]
