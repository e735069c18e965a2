"""Optimizers by name: those of torch, and those of bdkernels that change the rows of a batch alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bdkernels import SGD, Adagrad, SparseAdam

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "sparse_adam": torch.optim.SparseAdam,
}


# Those that leave a row without gradient as it is, so that visiting only the rows of a batch is the same formula.
FUSED: dict[str, Any] = {"adagrad": Adagrad, "sgd": SGD, "sparse_adam": SparseAdam}


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state by "index of the parameter.name": tensors and plain numbers."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in states.items() for name, value in values.items()}


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `state_of` gave, of this optimizer or of another one of the same rule, of torch.optim or of bdkernels, whose
    parameters may have a dimension of size 1 more or less.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        index, _, key = name.partition(".")
        shape = parameters[int(index)].shape
        fits = isinstance(value, Tensor) and value.dim() and value.numel() == shape.numel()
        states.setdefault(int(index), {})[key] = value.view(shape) if fits else value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
