"""The operators torch.ops.bdkernels.*: one schema, one fake and one dispatch for each, the same for every backend.

The implementations are Python: they check the arguments, choose a backend, and call its stages. Public functions in the types
of this library are in `functional`. An optional `seen` is two tensors, both there or both None; a weight is its kind ("" for
none), parameter and flipped; backend "" chooses.
"""

from bdkernels.ops import loss, rank, sample, score, softmax, topk
from bdkernels.ops.define import LIBRARY

__all__ = ["LIBRARY", "loss", "rank", "sample", "score", "softmax", "topk"]
