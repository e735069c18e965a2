"""What an option is: a dataclass field with a help text and limits, checked alike wherever its value comes from."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bidistill.errors import UserError

T = TypeVar("T")
INT64 = 2**63 - 1  # the largest whole number of TOML, numpy and torch
LIMITS = ("least", "most", "above", "below")


def option(
    default: T,
    help: str | Callable[[], str],
    *,
    choices: Collection[str] = (),
    words: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    or_zero: bool = False,
) -> T:
    """One option: default, help text (a function's is made when it is read), and what values are allowed: >= least, <= most,
    > above, < below, or one of choices. One of these words is allowed too, and 0 with or_zero. Whole numbers are at most INT64.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    allowed = {"choices": choices, "words": words, "or_zero": or_zero}
    metadata = {"help": help, **allowed, **limits}
    if isinstance(default, dict):
        made: T = field(default_factory=default.copy, metadata=metadata)  # type: ignore[assignment]
        return made
    made = field(default=default, metadata=metadata)
    return made


@dataclass(frozen=True)
class Option:
    """One option as the command line shows it.

    `type` is str, int, float, bool, tuple (of `part`, int or str), or dict: a table of plain values, on the command line
    name=value,name=value.
    """

    name: str  # "distill.to_student.alpha"
    type: type
    optional: bool  # None, written "none", is allowed
    default: Any
    text: str | Callable[[], str]
    section_help: str
    choices: Collection[str]  # a registry's are those that are registered when a value is checked
    words: tuple[str, ...]  # allowed beside the values of the type
    or_zero: bool  # 0 is allowed beside the limits
    limits: dict[str, float | None]  # by LIMITS; None: no such limit
    part: Callable[[Any], Any]  # the type of a tuple's values; else the type itself

    @property
    def help(self) -> str:
        """What the option does."""
        return self.text if isinstance(self.text, str) else self.text()

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
                return self.check(tuple(self.part(part.strip()) for part in text.split(",")))
            if self.type is dict:
                pairs = (part.partition("=") for part in text.split(",") if part and text not in ("none", "{}"))
                return self.check({name.strip(): _plain(value.strip()) for name, _, value in pairs})
            return self.check(self.type(text))
        except (KeyError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.name} must be {self._wanted()}, found {text!r}") from error

    def check(self, value: Any) -> Any:
        """The value in its own type (an int becomes a float where a float is meant), or UserError."""
        if (value is None and self.optional) or value in self.words:
            return value
        if self.type is dict:
            return self._checked_table(value)
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) <= sys.float_info.max else math.inf
        if self.type is tuple and isinstance(value, list):
            value = tuple(value)
        parts = value if isinstance(value, tuple) else (value,)
        if not isinstance(value, self.type) or not parts or any(type(part) is not self.part for part in parts):
            raise UserError(f"{self.name} must be {self._wanted()}, found {value!r}")
        if wrong := [part for part in parts if not self._allowed(part)]:
            raise UserError(f"{self.name} must be {self._wanted(wrong[0])}, found {value!r}")
        return value

    def _checked_table(self, value: Any) -> dict[str, Any]:
        """A table whose keys are names and whose values are plain."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.isidentifier() for key in value):
            raise UserError(f"{self.name} must be a table of name = value, found {value!r}")
        for key, each in value.items():
            for part in each if isinstance(each, (list, tuple)) else (each,):
                if not isinstance(part, (bool, int, float, str)):
                    raise UserError(
                        f"{self.name}.{key} must be text, a number, true or false, or a list, found {each!r}"
                    )
        return {key: list(each) if isinstance(each, tuple) else each for key, each in value.items()}

    def _allowed(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, float) and not math.isfinite(value):
            return False
        least, most, above, below = (self.limits[name] for name in LIMITS)
        fits = (
            least is None or value >= least,
            most is None or value <= most,
            above is None or value > above,
            below is None or value < below,
        )
        return all(fits) or (self.or_zero and value == 0)

    def _wanted(self, found: Any = None) -> str:
        """What values are allowed; INT64 is named only where the value found is larger."""
        if self.choices:
            also = getattr(self.choices, "also", "")  # of a ClassRegistry
            some = "some" if self.type is tuple else "one"
            return f"{some} of " + ", ".join([*self.choices, *self.words]) + (f", or {also}" if also else "")
        kinds = {
            str: "text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            tuple: "whole numbers",
        }
        words = {"least": "at least", "most": "at most", "above": "above", "below": "below"}
        limits = {name: limit for name, limit in self.limits.items() if limit is not None}
        if limits.get("most") == INT64 and not (isinstance(found, int) and found > INT64):
            del limits["most"]
        bounds = [f"{words[name]} {_exact(limit)}" for name, limit in limits.items()]
        others = [*map(repr, self.words), *(["0"] if self.or_zero else [])]
        return " or ".join([" ".join([kinds[self.type], " and ".join(bounds)]).strip(), *others])


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
            limits = {name: f.metadata[name] for name in LIMITS}
            hint = get_args(hints[f.name])[0] if optional else hints[f.name]
            part = get_args(hint)[0] if kind is tuple else kind
            if part is int and limits["most"] is None:
                limits["most"] = INT64
            value = getattr(default(), f.name)
            text, choices, words, or_zero = (f.metadata[name] for name in ("help", "choices", "words", "or_zero"))
            about = text, section_help, choices, words, or_zero, limits, part
            yield Option(prefix + f.name, kind, optional, value, *about)
        for f in nested:
            assert callable(f.default_factory)
            yield from walk(hints[f.name], f.default_factory, f"{prefix}{f.name}.", f.metadata["help"])

    return tuple(walk(config, lambda: None, "", ""))


def _plain(text: str) -> Any:
    """The value of a table's entry on the command line: true, false, a number, or text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _exact(limit: float) -> str:
    """A limit so that who types it is not refused."""
    short = f"{limit:g}"
    return short if isinstance(limit, float) and float(short) == limit else repr(limit)


def _kind(hint: Any) -> tuple[type, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        return _kind(get_args(hint)[0])[0], types.NoneType in get_args(hint)
    return get_origin(hint) or hint, False
