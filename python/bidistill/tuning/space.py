"""What a search may change: ranges and choices of options by their names, from a TOML file or a mapping of the same form."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from bidistill.config import Config, options
from bidistill.errors import UserError
from bidistill.registry import METHODS, MODELS
from bidistill.seeds import seed_of

MODEL = "model."  # stands for the model that is tuned, in the names of a space
OWN = Path(__file__).parent  # where the spaces of this package are
EDGE = 0.03  # of a range
SpaceLike = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Range:
    """An option between two numbers, both included. log: on a logarithmic scale. whole: whole numbers alone."""

    name: str
    lo: float
    hi: float
    log: bool
    whole: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The options that it sets."""
        return (self.name,)

    def draw(self, trial: Any) -> dict[str, Any]:
        """What an Optuna trial takes, as options."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return {self.name: suggest(self.name, self.lo, self.hi, log=self.log)}

    def at(self, share: float) -> int | float:
        """The value at a share, from 0 to below 1, of the range."""
        value = self.lo * (self.hi / self.lo) ** share if self.log else self.lo + (self.hi - self.lo) * share
        return min(max(round(value) if self.whole else value, self.lo), self.hi)

    def at_edge(self, value: float) -> bool:
        """Whether a value lies in the first or the last EDGE of the range."""
        ends = self.at(EDGE), self.at(1 - EDGE)
        return not ends[0] < value < ends[1]

    def standing(self, config: Config) -> Any:
        """The value that the settings have, if it is in the range; else None."""
        value = value_of(config, self.name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if number and self.lo <= value <= self.hi else None

    def each(self) -> list[dict[str, Any]]:
        """Settings that show whether all of it is allowed."""
        return [{self.name: self.lo}, {self.name: self.hi}]

    def __str__(self) -> str:
        return f"{self.lo:g} to {self.hi:g}{', logarithmic' if self.log else ''}"

    def values(self) -> dict[str, Any]:
        """What a space has of it, for JSON."""
        return {"lo": self.lo, "hi": self.hi, "log": self.log}


@dataclass(frozen=True)
class Choices:
    """One of several values of an option; or, under a name that is no option's, one of several tables of options and values."""

    name: str
    sets: tuple[dict[str, Any], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The options that it sets."""
        return tuple(dict.fromkeys(name for each in self.sets for name in each))

    @property
    def labels(self) -> list[str]:
        """What Optuna calls them."""
        return [", ".join(f"{name} = {json.dumps(value)}" for name, value in each.items()) for each in self.sets]

    def draw(self, trial: Any) -> dict[str, Any]:
        """What an Optuna trial takes, as options."""
        return self.sets[self.labels.index(trial.suggest_categorical(self.name, self.labels))]

    def at(self, share: float) -> str:
        """The label at a share, from 0 to below 1, of the choices."""
        return self.labels[int(share * len(self.sets))]

    def standing(self, config: Config) -> Any:
        """The label of what the settings have, if that is among the choices; else None."""
        for label, each in zip(self.labels, self.sets, strict=True):
            if all(value_of(config, name) == value for name, value in each.items()):
                return label
        return None

    def each(self) -> list[dict[str, Any]]:
        """Settings that show whether all of it is allowed."""
        return list(self.sets)

    def __str__(self) -> str:
        return " | ".join(self.labels)

    def values(self) -> dict[str, Any]:
        """What a space has of it, for JSON."""
        single = all(list(each) == [self.name] for each in self.sets)
        return {"choices": [each[self.name] if single else each for each in self.sets]}


Space = tuple[Range | Choices, ...]


def read_space(space: SpaceLike, model: str) -> Space:
    """A space from a TOML file, or a mapping of the same form: tables by sections, or names such as "student.lr".

    model: the "teacher" or the "student", for which "model" stands in the names.

    Raises:
        UserError: the file cannot be read, or an entry is not as this module's classes have it.
    """
    values = space if isinstance(space, Mapping) else _read(Path(space))
    found = tuple(_entry(name, entry, model) for name, entry in _flatten(values, model))
    if not found:
        raise UserError("the space is empty: give a range or choices of at least one option")
    names = [name for each in found for name in each.names]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the space sets {name} in two places: keep one of them")
    return found


def space_values(space: Space) -> dict[str, Any]:
    """The space by its names, for JSON; `read_space` takes it back."""
    return {each.name: each.values() for each in space}


def spread(space: Space, number: int, seed: int) -> dict[str, Any]:
    """What an Optuna trial of this number takes, where those of following numbers lie evenly in the whole space.

    Entry j of d has the share frac(shift_j + number / g^(j + 1)), where g^(d + 1) = g + 1 (Roberts 2018, a generalised golden
    ratio) and the shift is at random.
    """
    golden = 2.0
    for _ in range(64):
        golden = (1 + golden) ** (1 / (len(space) + 1))
    shifts = (seed_of(seed, "tune", each.name) / 2**56 for each in space)
    shares = ((shift + number / golden ** (j + 1)) % 1 for j, shift in enumerate(shifts))
    return {each.name: each.at(share) for each, share in zip(space, shares, strict=True)}


def value_of(config: Config, name: str) -> Any:
    """The value of an option, or of an entry of a table such as "teacher.args.alpha"; None where that is not known."""
    table, _, key = name.rpartition(".")
    if name in _names():
        return config[name]
    given: Any = config[table]
    if key in given:
        return given[key]
    if table == "distill.args":
        settings = METHODS.settings(config.distill.method, given, table) if config.distill.method != "none" else None
    elif table.endswith(".args"):
        settings = MODELS.settings(config.model(table.partition(".")[0]).kind, given, table)
    else:
        settings = None
    return getattr(settings, key, None)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except (OSError, ValueError, TOMLKitError) as error:
        raise UserError(f"cannot read the space {path}: {error}") from error
    return values


def _names() -> dict[str, Any]:
    return {each.name: each for each in options()}


def _flatten(values: Mapping[str, Any], model: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries with their names, in which "model" is replaced."""
    for key, value in values.items():
        name = _named(f"{prefix}{key}", model)
        if isinstance(value, Mapping) and not {"lo", "hi", "choices"} & set(value):
            yield from _flatten(value, model, f"{name}.")
        else:
            yield name, value


def _named(name: str, model: str) -> str:
    return f"{model}.{name.removeprefix(MODEL)}" if name.startswith(MODEL) else f"{model}" if name == "model" else name


def _known(name: str) -> bool:
    """Whether it is an option, or an entry of an option that is a table."""
    names = _names()
    table = name.rpartition(".")[0]
    return name in names or (table in names and names[table].type is dict)


def _entry(name: str, entry: Any, model: str) -> Range | Choices:
    if not isinstance(entry, Mapping):
        raise UserError(
            f"space: {name} must be a table with lo and hi, or with choices, found {entry!r}: write it so, or leave it out"
        )
    if "choices" in entry:
        return _choices(name, entry, model)
    _require_known(name)
    if wrong := set(entry) - {"lo", "hi", "log"}:
        raise UserError(f"space: {name} has {sorted(wrong)[0]!r}, but a range has lo, hi and log: leave it out")
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"space: {name} has log = {log!r}: make it true or false")
    if name in _names() and _names()[name].type not in (int, float):
        raise UserError(f"space: {name} is no number, so it has no range: give its choices")
    lo, hi = (_number(name, entry, key) for key in ("lo", "hi"))
    kind = int if isinstance(lo, int) and isinstance(hi, int) else float
    if not lo < hi:
        raise UserError(f"space: {name} needs lo below hi, found {lo!r} and {hi!r}")
    if log and lo <= 0:
        raise UserError(f"space: {name} has log = true, so lo must be above 0, found {lo!r}")
    return Range(name, kind(lo), kind(hi), log, kind is int)


def _number(name: str, entry: Mapping[str, Any], key: str) -> int | float:
    """An end of a range. Raises UserError where the option may not have that value."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"space: {name} needs a finite number as {key}, found {value!r}")
    checked: int | float = _names()[name].check(value) if name in _names() else value
    return checked


def _choices(name: str, entry: Mapping[str, Any], model: str) -> Choices:
    choices = entry["choices"]
    if set(entry) != {"choices"} or not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise UserError(f"space: {name} must have choices alone, a list of at least one, found {dict(entry)!r}")
    if _known(name):
        sets = [{name: choice} for choice in choices]
    elif all(isinstance(choice, Mapping) and choice for choice in choices):
        sets = [{_named(key, model): value for key, value in choice.items()} for choice in choices]
    else:
        _require_known(name)
    for each in sets:
        for key, value in each.items():
            _require_known(key)
            each[key] = _names()[key].check(value) if key in _names() else value
    found = Choices(name, tuple(sets))
    if len(set(found.labels)) < len(sets):
        raise UserError(f"space: {name} has a choice twice: leave one out")
    return found


def _require_known(name: str) -> None:
    if not _known(name):
        close = difflib.get_close_matches(name, _names(), n=1, cutoff=0.0)[0]
        raise UserError(
            f"space: {name} is not an option: did you mean {close}? (choices that set several options at once are tables)"
        )
