"""An experiment from its grid to its cells: checks first, then what is missing, several at a time."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.experiments.cell import Job, failure, pretrain, pretraining_key, train
from bidistill.experiments.folder import ExperimentFolder, difference
from bidistill.experiments.grid import Cell, Grid
from bidistill.experiments.sources import load_data
from bidistill.experiments.trial import check_cells, check_disk, check_memory
from bidistill.experiments.workers import Outcome, Task, outcomes
from bidistill.files.access import present
from bidistill.logs import log
from bidistill.metrics import heading
from bidistill.training.memory import gb


@dataclass(frozen=True)
class Done:
    """What a call did: names of cells.

    Attributes:
        trained, failed: now.
        there: those that were there before.
        left: those that `only` left out and that are missing.
    """

    trained: tuple[str, ...]
    failed: tuple[str, ...]
    there: tuple[str, ...]
    left: tuple[str, ...]


def run_experiment(
    grid: Grid,
    *,
    jobs: int = 0,
    only: Sequence[str] = (),
    redo: bool = False,
    check: bool = False,
    cache: str | Path = ".cache",
) -> Done:
    """Train what is missing of an experiment, and what failed before. Everything is checked before the first cell is trained.

    Args:
        jobs: cells at a time; 0: those of the grid.
        only: patterns of cell names, such as "movielens/*/0"; by default all.
        redo: train cells anew whose settings or data have changed; else they are an error.
        check: only check; nothing is written.
        cache: folder where downloaded data are kept.

    Raises:
        UserError: a mistake in the settings, too little disk or memory, a folder of others.
    """
    folder = ExperimentFolder(grid.folder)
    jobs = _jobs(jobs or grid.jobs)
    chosen = _chosen(grid, only)
    folder.check(grid.name)
    splits = {name: load_data(grid.data[name], cache) for name in dict.fromkeys(cell.data for cell in chosen)}
    prints = {name: each.fingerprint() for name, each in splits.items()}
    missing, there = _missing(folder, chosen, prints, redo)
    _check(grid, missing, splits, jobs)
    if check:
        return Done((), (), tuple(cell.name for cell in there), tuple(cell.name for cell in missing))
    with folder.held(grid.name):
        missing, there = _missing(folder, chosen, prints, redo)  # another process may have trained some meanwhile
        folder.write(grid, prints)
        for name in {cell.data for cell in missing}:
            path = folder.split_path(name)
            if not present(path) or Split.load(path).fingerprint() != prints[name]:
                splits[name].save(path)
        trained, failed = _train(grid, folder, missing, prints, jobs)
    left = [cell.name for cell in grid.cells if cell not in chosen and not _finished(folder, cell)]
    return Done(tuple(trained), tuple(failed), tuple(cell.name for cell in there), tuple(left))


def _chosen(grid: Grid, only: Sequence[str]) -> list[Cell]:
    """The cells that a call is about."""
    for pattern in only:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in grid.cells):
            raise UserError(f"no cell is called {pattern!r}: names are DATA/RUN/SEED, such as {grid.cells[0].name}")
    return [cell for cell in grid.cells if not only or any(fnmatch.fnmatchcase(cell.name, each) for each in only)]


def _check(grid: Grid, missing: Sequence[Cell], splits: Mapping[str, Split], jobs: int) -> None:
    check_cells(missing, splits)
    check_memory(missing, splits, min(jobs, len(missing)))
    share, keep = grid.share_pretraining, grid.keep_models
    need = check_disk(Path(grid.folder), missing, splits, jobs, share=share, keep=keep)
    if missing:
        log.info(f"{len(missing):,} cells to train, {jobs} at a time, in {grid.folder}: about {gb(need)} of disk")


def _missing(
    folder: ExperimentFolder, cells: Sequence[Cell], prints: Mapping[str, str], redo: bool
) -> tuple[list[Cell], list[Cell]]:
    """Cells that are to be trained, and those that are there. Raises UserError where some are of other settings or data."""
    missing, there, changed = [], [], []
    for cell in cells:
        record = folder.cell(cell)
        if record is None or record.error:
            missing.append(cell)
        elif found := difference(record, cell, prints[cell.data]):
            changed.append(f"{folder.cell_path(cell)} was trained with {found}")
            missing.append(cell)
        else:
            there.append(cell)
    if changed and not redo:
        more = f", and {len(changed) - 1} other cells differ too" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{more}: change it back, train these cells anew (--redo), or choose another folder; nothing was trained"
        )
    return missing, there


def _finished(folder: ExperimentFolder, cell: Cell) -> bool:
    record = folder.cell(cell)
    return record is not None and not record.error


def _train(
    grid: Grid, folder: ExperimentFolder, cells: Sequence[Cell], prints: Mapping[str, str], jobs: int
) -> tuple[list[str], list[str]]:
    """Names of the cells that were trained, and of those that failed, in the order of the grid."""
    threads = max(1, cores() // jobs)
    tasks: dict[str, Task] = {}
    for cell in cells:
        shared = pretraining_key(cell.config, prints[cell.data]) if grid.share_pretraining else ""
        job = Job(grid.folder, cell, prints[cell.data], shared, threads, grid.keep_models)
        before = f"the pretraining {shared}" if shared else ""
        if before and before not in tasks:
            tasks[before] = Task(before, pretrain, job)
        tasks[cell.name] = Task(cell.name, train, job, before)
    trained: list[str] = []
    failed: list[str] = []
    for outcome in outcomes(list(tasks.values()), jobs):
        job = outcome.task.argument
        if outcome.task.target is pretrain:
            if not outcome.error:  # else its cells say so
                log.info(f"the pretraining of {job.cell.name} is there")
            continue
        if outcome.error:
            failed.append(job.cell.name)
            folder.write_cell(job.cell, failure(job, outcome.error, outcome.details))
        else:
            trained.append(job.cell.name)
        log.info(f"[{len(trained) + len(failed)} of {len(cells)}] {_line(folder, outcome)}")
    names = [cell.name for cell in cells]
    return sorted(trained, key=names.index), sorted(failed, key=names.index)


def _line(folder: ExperimentFolder, outcome: Outcome) -> str:
    """What to tell of a cell that has ended."""
    cell: Cell = outcome.task.argument.cell
    if outcome.error:
        return f"{cell.name} failed: {outcome.error}"
    record, metric = folder.cell(cell), cell.config.train.monitor
    assert record is not None
    values = [
        f"{name} {record.pretrained[name]['val'][metric]:.4f} -> {record.metrics[name]['val'][metric]:.4f}"
        for name in ("teacher", "student")
    ]
    return f"{cell.name}: {heading(metric)} on validation, {', '.join(values)}; {record.seconds['cell']:.0f} s"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(asked: int) -> int:
    if asked > cores():
        raise UserError(
            f"jobs is {asked}, but this machine has {cores()} cores: set it to at most {cores()}, or to 0 for that"
        )
    return asked or cores()
