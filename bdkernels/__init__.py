"""Fused, exact kernels for bidirectional distillation of top-K recommenders at catalog scale.

The pipeline, and so the order of this file: factors -> score -> rank -> topk -> sample -> loss -> update. Importing registers the
operators as torch.ops.bdkernels.*; it compiles nothing and touches no GPU driver.
"""

from bdkernels.backends import BackendError
from bdkernels.checks import NonFiniteLoss
from bdkernels.functional import (
    Draws,
    Samples,
    TopK,
    count_above,
    count_above_block,
    rank,
    sample,
    score,
    topk,
)
from bdkernels.losses import SoftmaxLoss, StepLoss, distill_loss, fused_loss, fused_step, softmax_loss, softmax_losses
from bdkernels.optim import SGD, Adagrad, RowOptimizer, SparseAdam, sparse_step
from bdkernels.sampling.keys import occurrence
from bdkernels.sampling.subset import PopularityStrata, rank_error, rank_errors
from bdkernels.storage.mapped import open_memmap
from bdkernels.types.factors import Factors
from bdkernels.types.scorers import ItemScorer, Scorer, Scores
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
    "ItemScorer",
    "Linear",
    "NonFiniteLoss",
    "PopularityStrata",
    "RankOnly",
    "RowOptimizer",
    "Samples",
    "Scorer",
    "Scores",
    "Seen",
    "SoftmaxLoss",
    "SparseAdam",
    "StepLoss",
    "Tanh",
    "TopK",
    "Uniform",
    "Weight",
    "count_above",
    "count_above_block",
    "distill_loss",
    "fused_loss",
    "fused_step",
    "occurrence",
    "open_memmap",
    "rank",
    "rank_error",
    "rank_errors",
    "sample",
    "score",
    "softmax_loss",
    "softmax_losses",
    "sparse_step",
    "topk",
]
