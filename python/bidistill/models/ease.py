"""EASE (Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019): a linear item-item model in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bdkernels import Seen
from bidistill.errors import UserError
from bidistill.models.cooccurrence import cooccurrences
from bidistill.models.history import HistoryModel
from bidistill.registry import MODELS

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class EASESettings:
    """regularization: lambda, the L2 weight. precision: of the inverse, "float32" or "float64"; the weights are float32."""

    regularization: float = 200.0
    precision: str = "float64"

    def __post_init__(self) -> None:
        if not 0 < self.regularization < float("inf"):
            raise UserError(f"regularization must be above 0, found {self.regularization!r}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be float32 or float64, found {self.precision!r}")


class EASE(HistoryModel):
    """W minimises |X - X W|^2 + lambda |W|^2 with a diagonal of 0, where X [n_users, n_items] has a 1 for each interaction:

        P = (X^T X + lambda I)^-1,    W[h, i] = -P[h, i] / P[i, i] for h != i    (equation 8 of the paper)

    Args:
        n_users, n_items: sizes of the data. The weights take 4 n_items^2 bytes.
        regularization, precision: see `EASESettings`.
    """

    weights: Tensor

    def __init__(
        self, n_users: int, n_items: int, *, regularization: float = 200.0, precision: str = "float64", seed: int = 0
    ) -> None:
        super().__init__(n_users, n_items)
        self.regularization, self.precision = regularization, PRECISIONS[precision]
        self.register_buffer("weights", torch.zeros(n_items, n_items))

    def fit_bytes(self, interactions: int) -> int:
        """The matrix and its inverse, or its Cholesky factor and the inverse."""
        return 2 * self.precision.itemsize * self.n_items**2

    def fit(self, train: Seen, seed: int) -> None:
        """Invert the matrix. Nothing in it is random.

        Raises:
            UserError: in this precision it has no inverse.
        """
        gram = torch.empty(self.n_items, self.n_items, dtype=self.precision, device=self.weights.device)
        for first, counts in cooccurrences(train, self.n_items):
            gram[first : first + len(counts)] = counts
        gram.diagonal().add_(self.regularization)
        factor, wrong = torch.linalg.cholesky_ex(gram)
        del gram
        if int(wrong):
            raise UserError(
                f"EASE cannot invert its matrix in {str(self.precision).removeprefix('torch.')}: raise regularization, or set"
                " precision to float64"
            )
        inverse = torch.cholesky_inverse(factor)
        del factor
        own = -inverse.diagonal().clone()
        inverse.div_(own).fill_diagonal_(0.0)  # each column by its own number
        self.weights.copy_(inverse)
        self.remember(train)

    def weights_of(self, items: Tensor, others: Tensor) -> Tensor:
        """W[h, i] [n, C] of items h [n] and others i [n, C]."""
        return self.weights[items[:, None], others]

    def score_block(self, users: Tensor, first: int, stop: int) -> Tensor:
        """Scores [B, stop - first] float32 of a range of items for users [B] int64, with the bits of `score`."""
        has = Seen(self.indptr, self.items).rows(users)
        if not len(has.indices) or first == stop:  # embedding_bag refuses no rows, and on several threads no columns
            return self.weights.new_zeros(len(users), stop - first)
        table = self.weights[:, first:stop]
        return embedding_bag(has.indices, table, has.indptr, mode="sum", include_last_offset=True)


MODELS.register("ease", EASE, EASESettings)
