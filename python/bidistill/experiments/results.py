"""What an experiment gave: for each data set and run, means over seeds, the gain over the control, and how certain it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import numpy as np

from bidistill.config import ModelConfig
from bidistill.errors import UserError
from bidistill.experiments.cell import MODELS
from bidistill.experiments.folder import ExperimentFolder, difference
from bidistill.experiments.grid import Cell, Grid, Sweep
from bidistill.experiments.records import CellRecord
from bidistill.experiments.statistics import Summary, Test, compared, holm, summary
from bidistill.metrics import metrics_of
from bidistill.models.kinds import takes
from bidistill.training.baselines import baselines


@dataclass(frozen=True)
class Outcome:
    """One model of one run on one data set.

    Attributes:
        before, after: of the monitored metric, after the pretraining and at the end.
        values: the metric at the end for each seed.
        test: against the control; None where there is none with a seed in common.
        holm_seeds, holm_users: its p values, corrected over the data sets.
        epochs, kept: by phase, means over seeds.
        bytes, microseconds: of the model; None: not measured.
        below: baselines of no more numbers a user and item that are better, with their values.
    """

    before: Summary
    after: Summary
    values: dict[int, float]
    test: Test | None
    epochs: dict[str, float]
    kept: dict[str, float]
    bytes: float
    microseconds: float | None
    below: dict[str, float]
    holm_seeds: float = float("nan")
    holm_users: float = float("nan")


@dataclass(frozen=True)
class Row:
    """One run on one data set; `models` is empty where no cell is finished.

    Attributes:
        failed: error by seed. missing: seeds without a record of these settings.
        seconds: by phase, means over seeds.
        notes: signs that a phase did a model no good, and for how many seeds.
    """

    data: str
    variant: str
    control: str
    models: dict[str, Outcome]
    failed: dict[int, str]
    missing: tuple[int, ...]
    seconds: dict[str, float]
    notes: dict[str, int]


@dataclass(frozen=True)
class ExperimentResults:
    """All of it.

    Attributes:
        part: "val" or "test". metric: of each data set, such as "ndcg@50".
        rows: by data set, in the order of the file.
        baselines: by data set: name to mean and spread over seeds.
        users: by data set, how many were evaluated.
        sweeps: by the sweep's name and the data set: for each run, (value, variant).
        versions: what the cells were trained with, a text for each combination.
        finished: of the last cell, UTC.
        notes: what to keep in mind. signs: that a phase did a model no good, by run.
    """

    name: str
    part: str
    control: str
    metric: dict[str, str]
    rows: dict[str, list[Row]]
    baselines: dict[str, dict[str, Summary]]
    users: dict[str, int]
    sweeps: dict[str, tuple[Sweep, dict[str, dict[str, list[tuple[Any, str]]]]]]
    versions: list[str]
    finished: str
    notes: list[str] = field(default_factory=list)
    signs: list[str] = field(default_factory=list)

    def row(self, data: str, variant: str) -> Row:
        """The row of this run."""
        return next(row for row in self.rows[data] if row.variant == variant)


@dataclass(frozen=True)
class Found:
    """The finished cells of a folder, by data set, variant and seed."""

    grid: Grid
    folder: ExperimentFolder
    records: dict[tuple[str, str, int], tuple[Cell, CellRecord]]
    failed: dict[tuple[str, str, int], str]
    other: list[str]

    @classmethod
    def of(cls, folder: ExperimentFolder) -> Found:
        """Read them. Raises UserError for a damaged file, or where there is none."""
        grid, splits = folder.grid(), folder.record().splits
        found = cls(grid, folder, {}, {}, [])
        for cell in grid.cells:
            record, key = folder.cell(cell), (cell.data, cell.variant, cell.seed)
            if record is None:
                continue
            if cell.data not in splits or difference(record, cell, splits[cell.data]):
                found.other.append(cell.name)
            elif record.error:
                found.failed[key] = record.error
            else:
                found.records[key] = cell, record
        if not found.records:
            raise UserError(f"{folder.path} has no finished cell yet: run the experiment first")
        return found

    def of_variant(self, data: str, variant: str) -> dict[int, tuple[Cell, CellRecord]]:
        """By seed."""
        keys = ((seed, (data, variant, seed)) for seed in self.grid.seeds)
        return {seed: self.records[key] for seed, key in keys if key in self.records}


def experiment_results(folder: ExperimentFolder) -> ExperimentResults:
    """The results of the cells that are there."""
    found = Found.of(folder)
    grid = found.grid
    rows, metric, users = {}, {}, {}
    fitted: dict[str, dict[str, Summary]] = {}
    for data in grid.data:
        mine = [each for (name, _, _), each in found.records.items() if name == data]
        if not mine:
            continue
        metric[data] = mine[0][0].config.train.monitor
        part = _part(grid, mine[0][1])
        users[data] = int(mine[0][1].metrics["student"][part]["users"])
        fitted[data] = _baselines([record for _, record in mine], part, metric[data])
        of_users = {variant: _of_users(found, data, variant, part, metric[data]) for variant in grid.variants(data)}
        kinds = {name: each for cell, _ in mine for name, each in baselines(cell.config).items()}
        rows[data] = [
            _row(found, data, variant, part, metric[data], of_users, fitted[data], kinds) for variant in of_users
        ]
    rows = _corrected(rows)
    records = [record for _, record in found.records.values()]
    versions = list(dict.fromkeys(", ".join(f"{k} {v}" for k, v in each.versions.items()) for each in records))
    return ExperimentResults(
        grid.name,
        grid.part,
        grid.control,
        metric,
        rows,
        fitted,
        users,
        {name: (sweep, _points(grid, sweep, rows)) for name, sweep in grid.sweeps.items()},
        versions,
        max(each.finished for each in records),
        _notes(found, rows, versions),
        [
            f"{data}/{row.variant}, {times} of {len(found.of_variant(data, row.variant))} seeds: {note}"
            for data, some in rows.items()
            for row in some
            for note, times in row.notes.items()
        ],
    )


def _part(grid: Grid, record: CellRecord) -> str:
    if grid.part not in record.metrics["student"]:
        raise UserError(
            f"part is {grid.part!r}, but the data set {record.data!r} holds nothing out for it: set part to val"
        )
    return grid.part


def _of_users(found: Found, data: str, variant: str, part: str, metric: str) -> dict[int, dict[str, np.ndarray]]:
    """By seed and model, float64 [users]: the metric of each user."""
    k = metric.partition("@")[2]
    tables: dict[int, dict[str, np.ndarray]] = {}
    for seed, (cell, record) in found.of_variant(data, variant).items():
        ranks = found.folder.ranks(cell, record)
        people = ranks[f"{part}_users"]
        tables[seed] = {
            name: metrics_of(people, ranks[f"{part}_{name}"].astype(np.int64), [int(k or 1)])[metric] for name in MODELS
        }
    return tables


def _row(
    found: Found,
    data: str,
    variant: str,
    part: str,
    metric: str,
    of_users: Mapping[str, dict[int, dict[str, np.ndarray]]],
    fitted: Mapping[str, Summary],
    kinds: Mapping[str, ModelConfig],
) -> Row:
    mine, control = found.of_variant(data, variant), found.grid.control_of(data, variant)
    failed = {
        seed: found.failed[data, variant, seed] for seed in found.grid.seeds if (data, variant, seed) in found.failed
    }
    missing = tuple(seed for seed in found.grid.seeds if seed not in mine and seed not in failed)
    records = [record for _, record in mine.values()]
    notes: dict[str, int] = {}
    for record in records:
        for note in record.notes:
            notes[note] = notes.get(note, 0) + 1
    models = {}
    for name in MODELS if records else ():
        values = {seed: float(record.metrics[name][part][metric]) for seed, (_, record) in mine.items()}
        test = None
        if control and (both := [seed for seed in mine if seed in of_users[control]]):
            base = found.of_variant(data, control)
            test = compared(
                [values[seed] for seed in both],
                [float(base[seed][1].metrics[name][part][metric]) for seed in both],
                [of_users[variant][seed][name] for seed in both],
                [of_users[control][seed][name] for seed in both],
            )
        config = next(iter(mine.values()))[0].config
        after = summary(list(values.values()))
        times = [record.microseconds[name] for record in records]
        models[name] = Outcome(
            before=summary([float(record.pretrained[name][part][metric]) for record in records]),
            after=after,
            values=values,
            test=test,
            epochs=_means([{phase: each[0] for phase, each in record.epochs[name].items()} for record in records]),
            kept=_means([{phase: each[1] for phase, each in record.epochs[name].items()} for record in records]),
            bytes=mean(record.bytes[name] for record in records),
            microseconds=None if None in times else mean(time for time in times if time is not None),
            below=_below(config.model(name).dim, after.mean, fitted, kinds),
        )
    return Row(data, variant, control, models, failed, missing, _means([record.seconds for record in records]), notes)


def _means(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each key that all have, the mean."""
    keys = [key for key in tables[0] if all(key in each for each in tables)] if tables else []
    return {key: mean(each[key] for each in tables) for key in keys}


def _baselines(records: Sequence[CellRecord], part: str, metric: str) -> dict[str, Summary]:
    """Of each baseline, over the seeds; cells of one seed and data have the same ones."""
    values: dict[str, dict[int, float]] = {}
    for record in records:
        for name, parts in record.baselines.items():
            values.setdefault(name, {}).setdefault(record.seed, float(parts[part][metric]))
    return {name: summary(list(each.values())) for name, each in values.items()}


def _below(dim: int, value: float, fitted: Mapping[str, Summary], kinds: Mapping[str, ModelConfig]) -> dict[str, float]:
    """Baselines that are better and have no more numbers for each user and item. The model that made data up is the ceiling."""
    return {
        name: each.mean
        for name, each in fitted.items()
        if name in kinds and value < each.mean and (not takes(kinds[name].kind, "dim") or kinds[name].dim <= dim)
    }


def _corrected(rows: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """With p values that hold for all data sets together, for each run and model."""
    places: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for data, some in rows.items():
        for at, row in enumerate(some):
            for name, model in row.models.items():
                if model.test is not None:
                    places.setdefault((row.variant, name), []).append((data, at))
    found = {data: list(some) for data, some in rows.items()}
    for (_, name), where in places.items():
        tests = [found[data][at].models[name].test for data, at in where]
        seeds = holm([each.p_seeds for each in tests if each is not None])
        users = holm([each.p_users for each in tests if each is not None])
        for (data, at), by_seeds, by_users in zip(where, seeds, users, strict=True):
            row = found[data][at]
            model = replace(row.models[name], holm_seeds=by_seeds, holm_users=by_users)
            found[data][at] = replace(row, models=row.models | {name: model})
    return found


def _points(grid: Grid, sweep: Sweep, rows: Mapping[str, list[Row]]) -> dict[str, dict[str, list[tuple[Any, str]]]]:
    """By data set and run: each value of a sweep with the variant that has it."""
    return {
        data: {
            run: [(value, grid.point(data, run, sweep.option, value)) for value in sweep.values] for run in sweep.runs
        }
        for data in rows
    }


def _notes(found: Found, rows: Mapping[str, list[Row]], versions: Sequence[str]) -> list[str]:
    """What to keep in mind, a sentence each."""
    notes = []
    lacking = [row for some in rows.values() for row in some if row.missing or row.failed]
    if lacking or len(rows) < len(found.grid.data):
        total, there = len(found.grid.cells), len(found.records)
        notes.append(f"{there} of {total} cells are finished, {len(found.failed)} failed: the tables are not complete")
    if found.other:
        notes.append(
            f"{len(found.other)} cells of other settings or data are in the folder and are not shown ({found.other[0]})"
        )
    if len(versions) > 1:
        notes.append(f"the cells were trained with different versions: {'; '.join(versions)}")
    if not found.grid.control:
        notes.append("no run is named as the control, so no gain is shown")
    for data, some in rows.items():
        notes += _beaten(data, some)
        for row in some:
            control = next((each for each in some if each.variant == row.control), None)
            if control is not None and row.models and control.models:
                own, base = (each.models["student"].epochs.get("joint") for each in (row, control))
                if own != base:
                    notes.append(
                        f"{data}: the student of {row.variant} had {_count(own)} epochs in the joint phase, that of its control"
                        f" {_count(base)}{': set train.patience to 0 for the same number' if own and base else ''}"
                    )
            for seed, error in row.failed.items():
                notes.append(f"{data}/{row.variant}/{seed} failed: {error}")
    return notes


def _beaten(data: str, rows: Sequence[Row]) -> list[str]:
    """Which models are below which baselines, a sentence for each baseline."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, model in row.models.items():
            for baseline, value in model.below.items():
                found.setdefault(f"{baseline} ({value:.4f})", []).append(
                    f"the {name} of {row.variant} ({model.after.mean:.4f})"
                )
    return [f"{data}: below {baseline} are {', '.join(models)}" for baseline, models in found.items()]


def _count(value: float | None) -> str:
    return "no" if value is None else f"{value:g}"
