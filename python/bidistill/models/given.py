"""The kind of a model that the program gives as a module, instead of settings that describe one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bidistill.errors import UserError
from bidistill.models.base import Recommender
from bidistill.registry import MODELS

GIVEN = "given"


@dataclass(frozen=True)
class GivenSettings:
    """module: the name of the module's class, which the Trainer fills in."""

    module: str = ""


def refuse(n_users: int, n_items: int, *, module: str = "", seed: int = 0) -> Recommender:
    """Raise UserError: nobody but the program can make the model."""
    raise missing("model", module)


def missing(name: str, module: str) -> UserError:
    """What to say where the module is not at hand; `name` is that of the model, such as "teacher"."""
    keyword = name if name in ("teacher", "student") else "teacher or student"
    return UserError(
        f"the {name} is a module that a program gave{f' ({module})' if module else ''}, which settings and files cannot make:"
        f" give it again as {keyword}=module to Trainer, Trainer.resume or open_run, or register its class with register_model"
        f" and choose it by {name}.kind"
    )


def given_config(module: Any) -> dict[str, Any]:
    """What stands for a given module where a model that settings describe has what `build_model` takes."""
    return {"kind": GIVEN, "args": {"module": type(module).__name__}}


MODELS.register(GIVEN, refuse, GivenSettings)
