"""What is asked of a model: one method, and more that it may have. There is no base class: what has the methods will do."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from bdkernels import Factors, Seen

Tables = tuple[Tensor, Tensor, Tensor | None]  # [n_users, d], [n_items, d], [n_items] or None


@runtime_checkable
class Recommender(Protocol):
    """A torch.nn.Module that scores items for users.

    The Trainer fills in `n_users` and `n_items` where they are missing. What makes a model faster are the methods of
    `FactorModel`, `BlockModel` and `TableModel`. A model whose tables may grow may have `row_kinds() -> dict[str, str]`, which
    says of entries of `state_dict` that they have a row a user ("users") or an item ("items"), if their shapes do not tell.
    """

    n_users: int
    n_items: int

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Differentiable scores [B, C] float32 of items [B, C] int64 for users [B] int64."""
        ...

    # What every torch.nn.Module has, as far as the trainer uses it.
    training: bool

    def modules(self) -> Any: ...

    def parameters(self) -> Any: ...

    def buffers(self) -> Any: ...

    def named_parameters(self) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor], *, assign: bool = False) -> Any: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...

    def to(self, device: torch.device | str) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


@runtime_checkable
class FactorModel(Recommender, Protocol):
    """A Recommender whose score is a dot product plus an item bias: operators are fused for it."""

    def factors(self, users: Tensor) -> Factors:
        """For users [B] int64: their factors [B, d], those of all items [n_items, d], and a bias [n_items] or None; float32,
        with the scores that `score` gives.
        """
        ...


@runtime_checkable
class FactorLearner(FactorModel, Protocol):
    """A FactorModel that losses over the whole catalog can train, such as train.loss full_softmax."""

    def trained_factors(self, users: Tensor) -> Factors:
        """What `factors` gives for users [B] int64, but with gradients to the parameters."""
        ...


@runtime_checkable
class BlockModel(Recommender, Protocol):
    """A Recommender that scores a range of items for all users of a batch faster than `score` does."""

    def score_block(self, users: Tensor, first: int, stop: int) -> Tensor:
        """Scores [B, stop - first] float32 of the items from `first` to `stop` - 1 for users [B] int64, as `score` gives them."""
        ...


@runtime_checkable
class TableModel(FactorModel, Protocol):
    """A Recommender that may let a training step change its tables in place, in one fused call without autograd."""

    def tables(self) -> Tables | None:
        """The memory of the parameters, if score(u, i) is <users[u], items[i]> + bias[i] and nothing more; else None.

        A subclass that scores in another way must return None.
        """
        ...


@runtime_checkable
class FittedModel(Recommender, Protocol):
    """A Recommender that is fitted in one call, in the place of the epochs of its pretraining, and stays as it is from then on.

    It needs no parameter and no gradient; what `score` computes with is in its `state_dict`, which `load_state_dict` takes back.
    Before it is fitted it has to score too, in any way. It may have `continued`, which if true lets it be trained by gradient
    after it was fitted, and `fit_bytes(interactions: int) -> int`: the memory that `fit` takes beyond the state. That is asked
    for before a run begins, and may raise a `UserError` where something that `fit` needs is missing.
    """

    def fit(self, train: Seen, seed: int) -> None:
        """Learn from the training items of all users; `seed` is of whatever is random in it, and other for each model and run."""
        ...


def is_fitted(model: Any) -> bool:
    """Whether the model is a `FittedModel`."""
    return callable(getattr(model, "fit", None))


def learns(model: Any) -> bool:
    """Whether gradients train the model: every one but a `FittedModel` that is not `continued`."""
    return not is_fitted(model) or bool(getattr(model, "continued", False))


def device_of(model: Any, otherwise: torch.device | str = "cpu") -> torch.device:
    """Where the model's parameters are, or its buffers; `otherwise` where it has neither."""
    for name in ("parameters", "buffers"):
        for each in getattr(model, name, tuple)():
            return cast(torch.device, each.device)
    return torch.device(otherwise)


def tables_of(model: Recommender) -> Tables | None:
    """The tables of a TableModel; None of any other model."""
    tables = getattr(model, "tables", None)  # isinstance would look at every name of the protocol, in each step
    found: Tables | None = tables() if callable(tables) else None
    return found
