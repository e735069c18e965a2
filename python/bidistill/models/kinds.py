"""Kinds of models: names that settings may give, and the factories that they stand for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from bidistill.errors import UserError
from bidistill.models.base import Recommender
from bidistill.models.given import given_config
from bidistill.registry import MODELS

COMMON = ("dim", "sparse")  # settings that every kind has, for factories with parameters of these names
PART = ("users", "items")  # likewise, for models whose tables may lie on several processes


def register_model(name: str, factory: Callable[..., Any], settings: type | None = None) -> None:
    """Let `teacher.kind` and `student.kind` be this name.

    The factory is called with keyword arguments alone: n_users and n_items of the data, seed (a whole number, other for each
    model and run), and each field of the settings. Where it has parameters of these names it also gets dim (`teacher.dim`),
    sparse (whether the optimizer wants sparse gradients), and users and items (ranges: the rows that this process is to hold,
    see `MF`). It returns a torch.nn.Module: see `Recommender`. torch's default generator is seeded before each call. The factory
    may be called more than once, also on the meta device, to know how large the model will be.

    An installed package can register by an entry point of the group "bidistill.models" instead. Its value is the factory; or,
    where the module of the entry point calls `register_model` itself, whatever it names.

    Args:
        settings: a dataclass whose fields have defaults; [teacher.args] sets them. None: [teacher.args] is passed on unchecked.

    Raises:
        UserError: the name is taken or is no identifier, or `settings` is no dataclass.
    """
    MODELS.register(name, factory, settings)


def build_model(
    config: dict[str, Any], *, seed: int = 0, users: range | None = None, items: range | None = None
) -> Recommender:
    """A fresh model from what `config_of` gives.

    Args:
        config: "kind", "n_users", "n_items", and if it has them "dim", "sparse" and "args", the settings of that kind.
        users, items: the rows that this process holds of tables that lie on several; all by default.

    Raises:
        UserError: an unknown kind, settings that it does not have, or a factory that takes other arguments.
    """
    kind = config.get("kind", "")
    factory, settings = MODELS[kind], MODELS.settings(kind, config.get("args", {}), "args")
    own = {each.name: getattr(settings, each.name) for each in fields(settings)} if is_dataclass(settings) else settings
    common = {name: config[name] for name in COMMON if name in config and takes(kind, name)}
    sizes = {name: config[name] for name in ("n_users", "n_items")}
    part = {} if users is None and items is None else {"users": users, "items": items}
    arguments = {**sizes, **common, **own, **part, "seed": seed}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"the factory of the model {kind!r} cannot be called with {', '.join(arguments)} ({error}): let it take them"
        ) from error
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model: Recommender = factory(**arguments)
    if not isinstance(model, torch.nn.Module):
        raise UserError(
            f"the factory of the model {kind!r} must return a torch.nn.Module, found {type(model).__name__}"
        )
    args = {"args": dict(config["args"])} if config.get("args") else {}
    setattr(model, "built_from", {"kind": kind, **sizes, **common, **args})  # noqa: B010 (no model declares it)
    return model


def config_of(model: Recommender) -> dict[str, Any]:
    """Plain values that `build_model` made this model from; of a module that a program gave, the kind "given"."""
    found: dict[str, Any] | None = getattr(model, "built_from", None)
    return given_config(model) if found is None else found


def may_lie_in_parts(kind: str) -> bool:
    """Whether models of this kind can be made with a part of their rows, for several processes."""
    return all(takes(kind, name) for name in PART)


def takes(kind: str, name: str) -> bool:
    """Whether the factory of this kind has a parameter of this name."""
    return name in inspect.signature(MODELS[kind]).parameters
