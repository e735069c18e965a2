"""Fused, exact kernels for bidirectional distillation of top-K recommenders at catalog scale.

The pipeline, and so the order of this file: factors -> score -> rank -> topk -> sample -> loss -> update. Importing registers the
operators as torch.ops.bdkernels.*; it compiles nothing and touches no GPU driver.
"""

from bdkernels.backends import BackendError
from bdkernels.checks import NonFiniteLoss
from bdkernels.functional import (
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
from bdkernels.optim import SGD, Adagrad, LazyAdam, RowOptimizer
from bdkernels.sampling.keys import occurrence
from bdkernels.sampling.subset import Strata, rank_error, rank_errors
from bdkernels.sparse import apply_rows
from bdkernels.storage.mapped import open_table
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen
from bdkernels.version import __version__ as __version__
from bdkernels.weights import Exp, Linear, RankOnly, Tanh, Uniform, Weight

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
