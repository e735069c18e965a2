"""What the trainer needs of a model, and nothing more."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bdkernels import Factors

Tables = tuple[Tensor, Tensor, Tensor | None]  # [n_users, d], [n_items, d], [n_items] or None


@runtime_checkable
class Recommender(Protocol):
    """A torch.nn.Module that scores items by a dot product plus an item bias, and has these methods."""

    n_users: int
    n_items: int

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Differentiable scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        ...

    def factors(self, users: Tensor) -> Factors:
        """What rank, topk and sample score with, for users [B] int64: float32, without gradient, equal to `score`."""
        ...

    def row_kinds(self) -> dict[str, str]:
        """Which entries of `state_dict` have a row a user ("users") or an item ("items"): what grows with the data."""
        ...

    def config(self) -> dict[str, Any]:
        """Plain values that `build_model` makes an equal model from: "kind" and sizes."""
        ...

    # What every torch.nn.Module has, as far as the trainer uses it.
    training: bool

    def parameters(self) -> Any: ...

    def named_parameters(self) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor], *, assign: bool = False) -> Any: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...

    def to(self, device: torch.device | str) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


@runtime_checkable
class TableModel(Recommender, Protocol):
    """A Recommender that may let a training step change its tables in place, in one fused call without autograd."""

    def tables(self) -> Tables | None:
        """The memory of the parameters, if score(u, i) is <users[u], items[i]> + bias[i] and nothing more; else None.

        A subclass that scores in another way must return None.
        """
        ...
