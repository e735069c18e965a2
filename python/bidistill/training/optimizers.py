"""Optimizers by name: those of torch, and those of bdkernels that change the rows of a batch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdkernels import SGD, Adagrad, RowOptimizer, SparseAdam

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "sparse_adam": torch.optim.SparseAdam,
}


# Those that leave a row without gradient as it is, so that visiting only the rows of a batch is the same formula.
FUSED: dict[str, Any] = {"adagrad": Adagrad, "sgd": SGD, "sparse_adam": SparseAdam}


TABLES = ("user_table", "item_table", "item_bias")  # in the order of a TableModel's parameters


def to_torch(state: dict[str, Any], parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer of FUSED as the one of torch.optim with the same rule has it."""
    tensor = isinstance(optimizer, torch.optim.Adagrad)  # keeps its step in one
    found: dict[str, Any] = {}
    for index, (table, parameter) in enumerate(zip(TABLES, parameters, strict=True)):
        names = [name for name in state if name.startswith(f"{table}.")]
        found |= {f"{index}.{name.partition('.')[2]}": state[name].view(parameter.shape) for name in names}
        if names:
            found[f"{index}.step"] = torch.tensor(float(state["step"])) if tensor else int(state["step"])
    return found


def from_torch(state: dict[str, Any], optimizer: RowOptimizer) -> dict[str, Any]:
    """The other way: what the torch.optim of the rule has, for an optimizer of FUSED."""
    found: dict[str, Any] = {"step": 0}
    for index, (table, like) in enumerate(zip(TABLES, optimizer.tables().values(), strict=True)):
        for name in optimizer.names:
            value = state.get(f"{index}.{name}")  # none before the first step
            found[f"{table}.{name}"] = torch.zeros_like(like) if value is None else value.view(like.shape)
        found["step"] = max(found["step"], int(state.get(f"{index}.step", 0)))
    return found
