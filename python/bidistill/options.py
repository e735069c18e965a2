"""What an option is: a dataclass field with a help text and limits, checked alike wherever its value comes from."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bidistill.errors import UserError

T = TypeVar("T")


def option(
    default: T,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """One option: default, help text, and what values are allowed: >= least, > above, < below, or one of choices; or else one
    of these words."""
    limits = {"choices": choices, "words": words, "least": least, "above": above, "below": below}
    made: T = field(default=default, metadata={"help": help, **limits})
    return made


@dataclass(frozen=True)
class Option:
    """One option as the command line shows it. `type` is str, int, float, bool or tuple (of ints)."""

    name: str  # "distill.to_student.alpha"
    type: type
    optional: bool  # None, written "none", is allowed
    default: Any
    help: str
    section_help: str
    choices: tuple[str, ...]
    words: tuple[str, ...]  # allowed beside the values of the type
    limits: dict[str, float | None]

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def field(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def flag(self) -> str:
        """The flag of the command line: --distill-to-student-alpha."""
        return "--" + self.name.replace(".", "-").replace("_", "-")

    def parse(self, text: str) -> Any:
        """The value that a text from the command line stands for: "none", "true", "10,50", ... Raises UserError."""
        if self.optional and text.lower() == "none":
            return None
        if text in self.words:
            return text
        try:
            if self.type is bool:
                return self.check({"true": True, "yes": True, "false": False, "no": False}[text.lower()])
            if self.type is tuple:
                return self.check(tuple(int(part) for part in text.split(",")))
            return self.check(self.type(text))
        except (KeyError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.name} must be {self._wanted()}, found {text!r}") from error

    def check(self, value: Any) -> Any:
        """The value in its own type (an int becomes a float where a float is meant), or UserError."""
        if (value is None and self.optional) or value in self.words:
            return value
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.type is tuple and isinstance(value, list):
            value = tuple(value)
        parts = value if isinstance(value, tuple) else (value,)
        part_type = int if self.type is tuple else self.type
        if not isinstance(value, self.type) or not parts or any(type(part) is not part_type for part in parts):
            raise UserError(f"{self.name} must be {self._wanted()}, found {value!r}")
        if any(not self._allowed(part) for part in parts):
            raise UserError(f"{self.name} must be {self._wanted()}, found {value!r}")
        return value

    def _allowed(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        least, above, below = (self.limits[name] for name in ("least", "above", "below"))
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (least is None or value >= least) and (above is None or value > above) and (below is None or value < below)
        )

    def _wanted(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kinds = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "whole numbers"}
        words = {"least": "at least", "above": "above", "below": "below"}
        bounds = [f"{words[name]} {limit:g}" for name, limit in self.limits.items() if limit is not None]
        return " or ".join([" ".join([kinds[self.type], " and ".join(bounds)]).strip(), *map(repr, self.words)])


@cache
def options_of(config: type) -> tuple[Option, ...]:
    """Every option of a dataclass and of the dataclasses in it, in their order."""

    def walk(cls: type, default: Callable[[], Any], prefix: str, section_help: str) -> Iterator[Option]:
        hints = get_type_hints(cls)
        nested = []
        for f in fields(cls):
            if is_dataclass(hints[f.name]):
                nested.append(f)
                continue
            kind, optional = _kind(hints[f.name])
            limits = {name: f.metadata[name] for name in ("least", "above", "below")}
            value = getattr(default(), f.name)
            help, choices, words = (f.metadata[name] for name in ("help", "choices", "words"))
            yield Option(prefix + f.name, kind, optional, value, help, section_help, choices, words, limits)
        for f in nested:
            assert callable(f.default_factory)
            yield from walk(hints[f.name], f.default_factory, f"{prefix}{f.name}.", f.metadata["help"])

    return tuple(walk(config, lambda: None, "", ""))


def _kind(hint: Any) -> tuple[type, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        return _kind(get_args(hint)[0])[0], types.NoneType in get_args(hint)
    return get_origin(hint) or hint, False
