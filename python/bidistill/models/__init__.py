"""Recommenders. To add a kind: implement `Recommender` in a file of its own and register it in KINDS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bidistill.errors import UserError
from bidistill.models.base import Recommender, TableModel
from bidistill.models.mf import MF

KINDS: dict[str, Callable[..., Recommender]] = {"mf": MF}


def build_model(
    config: dict[str, Any], *, seed: int = 0, users: range | None = None, items: range | None = None
) -> Recommender:
    """A fresh model from what a model's `config()` gave: "kind", and the arguments of that kind.

    users, items: the rows that this process holds of tables that lie on several; all unless given.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"there is no model kind {kind!r}: choose one of {', '.join(KINDS)}")
    part = {} if users is None and items is None else {"users": users, "items": items}
    return KINDS[kind](**arguments, **part, seed=seed)


__all__ = ["KINDS", "MF", "Recommender", "TableModel", "build_model"]
