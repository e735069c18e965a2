"""How large models are, found before they are made: a model without memory (torch's meta device) stands for the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bidistill.errors import UserError
from bidistill.models.base import Recommender, device_of, is_fitted, learns, tables_of
from bidistill.models.kinds import build_model
from bidistill.models.modes import evaluating

LITTLE = 16  # users and items of the models that are made where a factory needs real memory
OVERFLOW = 1 << 63
ROWS, COLUMNS = 2, 8  # of the batches whose scores are taken


class ModelSize(NamedTuple):
    """What a model takes.

    Attributes:
        state: bytes of its parameters and buffers.
        listed: bytes that an item of a row takes in a training step by autograd: numbers that are kept, and their gradients.
        width: length of the vectors in its tables, where it is a `TableModel`; else None.
        learns: whether gradients train it: see `models.base.learns`.
        fitted: whether it is a `FittedModel`.
        fit_bytes: what such a model says of the memory that its `fit` takes, by the number of interactions.
    """

    state: int
    listed: int
    width: int | None
    learns: bool = True
    fitted: bool = False
    fit_bytes: Callable[[int], int] | None = None


def size_of(model: Recommender) -> ModelSize:
    """The size of a model that is there, or of one on the meta device."""
    tables, learned = tables_of(model), learns(model)
    width = None if tables is None else int(tables[0].shape[1])
    fitted = is_fitted(model)
    fit_bytes = getattr(model, "fit_bytes", None) if fitted else None
    return ModelSize(state_bytes(model), listed_bytes(model) if learned else 0, width, learned, fitted, fit_bytes)


def size_of_kind(config: dict[str, Any]) -> ModelSize:
    """The size of what `build_model` would make.

    Where the factory does not work without memory, for example because it computes its initial values, three little models tell:
    their state is taken to be a constant, plus so much a user, plus so much an item.
    """
    try:
        with torch.device("meta"):
            return size_of(build_model(config))
    except UserError:
        raise
    except Exception as error:  # whatever a factory does with tensors that have no values
        if "overflow" in str(error):  # of an address: no machine has as much memory
            return ModelSize(OVERFLOW, 0, None)
        sizes = [(LITTLE, LITTLE), (2 * LITTLE, LITTLE), (LITTLE, 2 * LITTLE)]
        first, users, items = (size_of(build_model({**config, "n_users": u, "n_items": n})) for u, n in sizes)
        each_user, each_item = ((more.state - first.state) / LITTLE for more in (users, items))
        state = first.state + each_user * (config["n_users"] - LITTLE) + each_item * (config["n_items"] - LITTLE)
        return first._replace(state=max(0, round(state)), fit_bytes=None)


def state_bytes(model: Recommender) -> int:
    """Bytes of the parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def listed_bytes(model: Recommender) -> int:
    """What autograd keeps for one more item of a row, and as much for its gradient."""

    def kept(columns: int) -> int:
        sizes: list[int] = []

        def keep(value: torch.Tensor) -> torch.Tensor:
            if value.is_floating_point():
                sizes.append(value.numel() * value.element_size())
            return value

        device = device_of(model)
        users = torch.zeros(ROWS, dtype=torch.int64, device=device)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model.score(users, torch.zeros(ROWS, columns, dtype=torch.int64, device=device))
        return sum(sizes)

    with evaluating(model):
        return 2 * (kept(2 * COLUMNS) - kept(COLUMNS)) // (ROWS * COLUMNS)
