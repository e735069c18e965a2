"""Implicit-feedback matrix factorisation by alternating least squares (Hu, Koren, Volinsky, ICDM 2008), fitted by the library
`implicit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from bdkernels import Seen
from bidistill.errors import UserError
from bidistill.models.mf import MF
from bidistill.registry import MODELS


@dataclass(frozen=True)
class ALSSettings:
    """regularization: L2 weight. alpha: the weight of an interaction, where a pair without one has 1. iterations: over users and
    items. continued: let gradients train it after that, as an `mf` that begins there; False: it stays as it was fitted.
    """

    regularization: float = 0.1
    alpha: float = 10.0
    iterations: int = 15
    continued: bool = False

    def __post_init__(self) -> None:
        for name in ("regularization", "alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be above 0, found {getattr(self, name)!r}")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise UserError(f"iterations must be a whole number above 0, found {self.iterations!r}")
        if not isinstance(self.continued, bool):
            raise UserError(f"continued must be true or false, found {self.continued!r}")


class ALS(MF):
    """An `MF` without item bias that minimises, over all pairs of a user u and an item i,

        sum c(u, i) (x(u, i) - <user_factors[u], item_factors[i]>)^2 + regularization (|user_factors|^2 + |item_factors|^2)

    where x = 1 and c = alpha for training interactions, and x = 0 and c = 1 for all other pairs.

    Args:
        n_users, n_items, dim, sparse: see `MF`.
        regularization, alpha, iterations, continued: see `ALSSettings`.
        seed: of the values before it is fitted.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int,
        *,
        regularization: float = 0.1,
        alpha: float = 10.0,
        iterations: int = 15,
        continued: bool = False,
        seed: int = 0,
        sparse: bool = False,
    ) -> None:
        super().__init__(n_users, n_items, dim, seed=seed, sparse=sparse)
        self.regularization, self.alpha, self.iterations = regularization, alpha, iterations
        self.continued = continued
        self.requires_grad_(continued)

    def fit_bytes(self, interactions: int) -> int:
        """The interactions by user and by item, with their weights, and factors of the library's own.

        Raises:
            UserError: the library is not installed.
        """
        _check_library()
        return 24 * interactions + 4 * self.dim * (self.n_users + self.n_items)

    def fit(self, train: Seen, seed: int) -> None:
        """Run the library, with as many threads as torch has. Raises UserError where it is not installed."""
        _check_library()
        import numpy as np
        from implicit.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        indices, indptr = train.indices.cpu().numpy(), train.indptr.cpu().numpy()
        ones = np.ones(len(indices), dtype=np.float32)
        with threadpool_limits(1, "blas"):  # threads of the library's own share the work
            found = AlternatingLeastSquares(
                factors=self.dim,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.iterations,
                random_state=seed % 2**32,
                num_threads=torch.get_num_threads(),
                use_gpu=False,
            )
            found.fit(csr_matrix((ones, indices, indptr), (self.n_users, self.n_items)), show_progress=False)
        with torch.no_grad():
            self.user_factors.weight.copy_(torch.from_numpy(found.user_factors))
            self.item_factors.weight.copy_(torch.from_numpy(found.item_factors))
            self.item_bias.weight.zero_()


def _check_library() -> None:
    if find_spec("implicit") is None:
        raise UserError("the model 'als' needs implicit: install it with pip install 'bdkernels[baselines]'")


MODELS.register("als", ALS, ALSSettings)
