"""Recommenders, one file each.

To add one, give the Trainer a module, or register a factory under a name, for settings to choose it by:

    MODELS.register("mine", Mine, MineSettings)
"""

from __future__ import annotations

from typing import Any

from bidistill.models.base import Recommender, TableModel
from bidistill.models.mf import MF
from bidistill.registry import MODELS


def build_model(
    config: dict[str, Any], *, seed: int = 0, users: range | None = None, items: range | None = None
) -> Recommender:
    """A fresh model from what a model's `config()` gave: "kind", and the arguments of that kind.

    users, items: the rows that this process holds of tables that lie on several; all by default.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    part = {} if users is None and items is None else {"users": users, "items": items}
    model: Recommender = MODELS[kind](**arguments, **part, seed=seed)
    return model


__all__ = ["MF", "Recommender", "TableModel", "build_model"]
