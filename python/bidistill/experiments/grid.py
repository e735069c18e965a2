"""The grid of an experiment, as its TOML file has it: data sets x runs x seeds, and sweeps over one option."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from bidistill.config import Config, flattened
from bidistill.errors import UserError
from bidistill.eval_options import COMPARED
from bidistill.presets import PRESETS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")  # what may be a part of a path on every system
KEYS = {
    "name": str,
    "folder": str,
    "preset": str,
    "seeds": list,
    "jobs": int,
    "control": str,
    "part": str,
    "share_pretraining": bool,
    "keep_models": bool,
    "common": dict,
    "data": dict,
    "runs": dict,
    "sweeps": dict,
}
KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}
OF_DATA = ("fetch", "generate", "settings")  # keys of a data set beside the options of [data]
OF_RUN = ("preset", "on")  # keys of a run beside the sections of settings
OWN = ("run.out", "run.seed", "run.threads", "run.progress", "run.tensorboard", "run.checkpoint_steps")


@dataclass(frozen=True)
class DataSet:
    """One data set of the grid.

    Attributes:
        options: of the section [data], by their names there.
        fetch: the name of a public data set that is downloaded, or "".
        generate: arguments of `data.generate`, or {}.
        settings: {"section.option": value} that every run has on this data set.
    """

    name: str
    options: dict[str, Any]
    fetch: str
    generate: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class RunSettings:
    """One run of the grid: {"section.option": value}, and the same for single data sets."""

    name: str
    preset: str
    settings: dict[str, Any]
    on: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """An option that takes several values, in some of the runs."""

    name: str
    option: str
    values: tuple[Any, ...]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One training of the grid.

    Attributes:
        variant: the name of the run, and behind an "@" the option and value that a sweep changes.
        config: all settings but those of the data and where and how it runs.
    """

    data: str
    variant: str
    seed: int
    config: Config = field(repr=False)

    @property
    def name(self) -> str:
        """Such as "movielens/rrd@distill.samples=8/0"."""
        return f"{self.data}/{self.variant}/{self.seed}"


@dataclass(frozen=True)
class Grid:
    """A whole experiment.

    Attributes:
        name: whose experiment a folder is.
        folder: where everything is written.
        seeds: values of `run.seed`.
        jobs: trainings at a time; 0: as many as there are cores.
        control: the run that the others are compared with, or "".
        part: what the report shows: "val" or "test".
        share_pretraining: cells whose pretraining is the same take over one.
        keep_models: keep a run folder of each cell.
        source: the file's content.
    """

    name: str
    folder: str
    seeds: tuple[int, ...]
    jobs: int
    control: str
    part: str
    share_pretraining: bool
    keep_models: bool
    preset: str
    common: dict[str, Any]
    data: dict[str, DataSet]
    runs: dict[str, RunSettings]
    sweeps: dict[str, Sweep]
    source: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Grid:
        """The grid of a TOML file. Raises UserError that names the file and what is wrong in it."""
        try:
            values = tomlkit.parse(Path(path).read_text(encoding="utf-8")).unwrap()
        except (OSError, ValueError, TOMLKitError) as error:
            raise UserError(f"cannot read the experiment {os.fspath(path)}: {error}") from error
        try:
            return cls.of(values, Path(path).stem)
        except UserError as error:
            raise UserError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> Grid:
        """The grid of a file's content; `name` where that has none. Raises UserError."""
        try:
            source = json.loads(json.dumps(values))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"there is a value that is no text, number, true, false, list or table ({error})"
            ) from error
        _known(source, KEYS, "the experiment")
        for key, value in source.items():
            if type(value) is not KEYS[key]:
                raise UserError(f"{key} must be {KINDS[KEYS[key]]}, found {value!r}")
        name = _name("name", source.get("name", name))
        data = {key: _data_set(key, each) for key, each in _tables("data", source.get("data", {})).items()}
        runs = {key: _run(key, each, data) for key, each in _tables("runs", source.get("runs", {})).items()}
        for what, tables in (("data", data), ("runs", runs)):
            if not tables:
                raise UserError(f"there is no [{what}.NAME]: an experiment needs at least one")
        control = source.get("control", "")
        if control and control not in runs:
            raise UserError(f"control is {control!r}, which is no run: choose one of {', '.join(runs)}")
        if (part := source.get("part", "test")) not in ("val", "test"):
            raise UserError(f"part must be val or test, found {part!r}")
        if (jobs := source.get("jobs", 0)) < 0:
            raise UserError(f"jobs must be at least 0, found {jobs}")
        common = _settings("common", source.get("common", {}))
        found = cls(
            name=name,
            folder=source.get("folder", f"runs/{name}"),
            seeds=_seeds(source.get("seeds", [0])),
            jobs=jobs,
            control=control,
            part=part,
            share_pretraining=source.get("share_pretraining", True),
            keep_models=source.get("keep_models", False),
            preset=_preset("preset", source.get("preset", "default")),
            common=common,
            data=data,
            runs=runs,
            sweeps={},
            source=source,
        )
        sweeps = _tables("sweeps", source.get("sweeps", {}))
        found.sweeps.update({key: found._sweep(key, each) for key, each in sweeps.items()})
        _ = found.cells  # every setting is checked here
        return found

    def config(self, data: str, run: str, seed: int, swept: Mapping[str, Any] | None = None) -> Config:
        """The settings of a run on a data set: from the preset, common, of the data set, of the run, of the run there."""
        chosen = self.runs[run]
        layers = self.common | self.data[data].settings | chosen.settings | chosen.on.get(data, {})
        own: dict[str, Any] = {"run.seed": seed, "run.progress": False}
        if self.control not in ("", run):
            own |= COMPARED  # those of the control's cells are shown
        config = Config.preset(chosen.preset or self.preset).with_overrides(layers | own)
        return config.with_overrides(swept) if swept else config

    @cached_property
    def cells(self) -> list[Cell]:
        """Every training, the first seed's first. Raises UserError that names the cell whose settings are refused."""
        return [cell for seed in self.seeds for data in self.data for cell in self._cells(data, seed)]

    def _cells(self, data: str, seed: int) -> Iterator[Cell]:
        base = {}
        for run in self.runs:
            base[run] = self._checked(data, run, seed, {})
            yield Cell(data, run, seed, base[run])
        told = set()
        for sweep in self.sweeps.values():
            for run in sweep.runs:
                for value in sweep.values:
                    variant = variant_of(run, sweep.option, value)
                    config = self._checked(data, run, seed, {sweep.option: value})
                    if config != base[run] and variant not in told:
                        told.add(variant)
                        yield Cell(data, variant, seed, config)

    def _checked(self, data: str, run: str, seed: int, swept: Mapping[str, Any]) -> Config:
        try:
            return self.config(data, run, seed, swept)
        except UserError as error:
            value = "".join(f" with {option} = {each!r}" for option, each in swept.items())
            raise UserError(f"run {run!r} on the data set {data!r}{value}: {error}") from error

    def variants(self, data: str) -> list[str]:
        """Those of a data set, in the file's order."""
        return list(dict.fromkeys(cell.variant for cell in self.cells if cell.data == data))

    def point(self, data: str, run: str, option: str, value: Any) -> str:
        """The variant that has this value of a swept option: the run itself where that is its own value."""
        variant = variant_of(run, option, value)
        return variant if variant in self.variants(data) else run

    def control_of(self, data: str, variant: str) -> str:
        """What a variant is compared with: the control with the same swept value, where there is one; "": nothing."""
        run, at, swept = variant.partition("@")
        if not self.control or run == self.control:
            return ""
        own = f"{self.control}@{swept}"
        return own if at and own in self.variants(data) else self.control

    def _sweep(self, name: str, values: Any) -> Sweep:
        """One of [sweeps]."""
        where = f"sweeps.{name}"
        _known(values, ("option", "values", "runs"), where)
        option, found = values.get("option", ""), values.get("values", [])
        if not isinstance(option, str) or option.startswith(("run.", "data.")):
            raise UserError(f"{where}.option must name an option such as distill.samples, found {option!r}")
        if not isinstance(found, list) or not found or any(isinstance(each, (list, dict)) for each in found):
            raise UserError(f"{where}.values must be a list of numbers or words, found {found!r}")
        runs = values.get("runs")
        if runs is None:
            first = {run: self._checked(next(iter(self.data)), run, self.seeds[0], {}) for run in self.runs}
            moot = {
                run for run, each in first.items() if option.startswith("distill.") and each.distill.method == "none"
            }
            runs = [run for run in self.runs if run not in moot]
        if not isinstance(runs, list) or not runs or any(run not in self.runs for run in runs):
            raise UserError(f"{where}.runs must be some of {', '.join(self.runs)}, found {runs!r}")
        for value in found:
            _name(f"a value of {where}.values", text_of(value))
        return Sweep(name, option, tuple(found), tuple(runs))


def variant_of(run: str, option: str, value: Any) -> str:
    """The name of a run with another value of one option."""
    return f"{run}@{option}={text_of(value)}"


def text_of(value: Any) -> str:
    """A value as names have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _known(values: Any, names: Collection[str], where: str) -> None:
    """Raise UserError for what is no table, or has other keys than these."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a table, found {values!r}")
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise UserError(f"{where} has no key {key!r}: did you mean {close}?")


def _name(what: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise UserError(
            f"{what} must consist of letters, digits, and _ . + - inside, since it becomes a path, found {value!r}"
        )
    return value


def _tables(where: str, values: dict[str, Any]) -> dict[str, Any]:
    """Tables by names that can be parts of a path."""
    for key, each in values.items():
        _name(f"the name in [{where}.NAME]", key)
        if not isinstance(each, dict):
            raise UserError(f"{where}.{key} must be a table, found {each!r}")
    return values


def _seeds(values: Sequence[Any]) -> tuple[int, ...]:
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in values)
    if not values or not whole or len({*values}) < len(values):
        raise UserError(f"seeds must be different whole numbers of at least 0, found {values!r}")
    return tuple(values)


def _preset(where: str, value: Any) -> str:
    if value not in PRESETS:
        raise UserError(f"{where} must be one of {', '.join(PRESETS)}, found {value!r}")
    return str(value)


def _settings(where: str, values: dict[str, Any]) -> dict[str, Any]:
    """{"section.option": value}, without those that the experiment itself sets."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a table, found {values!r}")
    found = dict(flattened(values))
    for name in found:
        if name in OWN:
            raise UserError(f"{where} sets {name}, which the experiment sets itself: leave it out")
        if name.startswith("data."):
            raise UserError(f"{where} sets {name}, but data are described in [data.NAME]: move it there")
    return found


def _data_set(name: str, values: dict[str, Any]) -> DataSet:
    where = f"data.{name}"
    options = {key: each for key, each in values.items() if key not in OF_DATA}
    fetch, generate = values.get("fetch", ""), values.get("generate", {})
    try:
        Config().with_overrides({f"data.{key}": each for key, each in options.items()})
    except UserError as error:
        raise UserError(f"[{where}]: {error}") from error
    sources = [key for key in ("path", "train_path", "fetch", "generate") if values.get(key)]
    if len(sources) != 1:
        raise UserError(
            f"[{where}] must have one of path, train_path, fetch and generate, found {' and '.join(sources) or 'none'}"
        )
    if not isinstance(fetch, str) or not isinstance(generate, dict):
        raise UserError(f"{where}.fetch must be text, and {where}.generate a table")
    return DataSet(name, options, fetch, generate, _settings(f"{where}.settings", values.get("settings", {})))


def _run(name: str, values: dict[str, Any], data: Collection[str]) -> RunSettings:
    where = f"runs.{name}"
    on = _tables(f"{where}.on", values.get("on", {}))
    for each in on:
        if each not in data:
            raise UserError(f"{where}.on.{each}: there is no data set {each!r}: choose one of {', '.join(data)}")
    preset = _preset(f"{where}.preset", values["preset"]) if "preset" in values else ""
    settings = _settings(where, {key: each for key, each in values.items() if key not in OF_RUN})
    return RunSettings(name, preset, settings, {key: _settings(f"{where}.on.{key}", each) for key, each in on.items()})
