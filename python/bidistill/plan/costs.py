"""What the parts of a run cost on this machine: measured on a job of the same shape in little, with the trainer's own code."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bdkernels.tools.measure import seconds
from bidistill.config import Config
from bidistill.data import Interactions, read, split, write_interactions
from bidistill.data.sizes import Sizes, made_up
from bidistill.errors import UserError
from bidistill.runs.checkpoint import save_checkpoint
from bidistill.training.engine import Engine
from bidistill.training.fitted import settled
from bidistill.training.memory import memory, model_sizes, shortage, tables
from bidistill.training.phases import PHASES
from bidistill.training.timing import MOST, Cost, draw_cost, exact, rank_cost, step_seconds

ROWS = 200_000  # of the file that is read
BLOCK = 1 << 24  # floats of the checkpoint that is written: 64 MB
REPORT = 0.9  # what the results and the report of a run take, in imports of this package, most of which is torch


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine.

    Attributes:
        program: of a run besides its work: starting Python, importing, the report's page and figures.
        step: of a training step in each phase of `phases.PHASES`, without the draws.
        draw: of one user's draws, both directions, by the number of items that ranks are counted over.
        rank: of one held-out item of one user, by the number of items, for "teacher" and "student".
        read: of a row of CSV: reading, numbering, splitting.
        start: of a training interaction when an Engine is made, besides its tables.
        tables: of a byte of the tables then.
        save: of a byte of a checkpoint.
        took: of the whole measurement.
        unfused: which models train without the fused step, and why; see `Engine.unfused`.
    """

    program: float
    step: dict[str, float]
    draw: Cost
    rank: dict[str, Cost]
    read: float
    start: float
    tables: float
    save: float
    took: float
    unfused: Sequence[str] = ()


def measure(config: Config, sizes: Sizes) -> Costs:
    """Measure everything, in some ten to twenty seconds.

    Args:
        config: the run's settings; dims, batch, optimizers, samples and pool are what counts.
        sizes: the run's; what is measured is at most MOST of it.

    Raises:
        UserError: this machine has too little memory to measure it.
    """
    began = time.perf_counter()
    little = sizes.at_most(**MOST)
    if shortage(memory(exact(config), little)):
        raise UserError(shortage(memory(config, sizes)))
    parts = made_up(little)
    folder = Path(config.run.out or "run").parent
    config = settled(config, model_sizes(config, little))
    engine = Engine(exact(config), parts)
    start = time.perf_counter() - began
    size = tables(config.teacher, little) + tables(config.student, little)
    of_tables = seconds(lambda: [engine.new_model(name) for name in engine.learners])
    draw = draw_cost(engine) if engine.objective.distiller is not None else Cost(0.0, 0.0)
    step = {phase: 0.0 if engine.fitted(phase) else step_seconds(engine, phase) for phase in PHASES}
    ranks = {name: rank_cost(engine, name) for name in engine.learners}
    start = max(0.0, start - of_tables) / little.train
    read, save = read_seconds(), save_seconds(folder)
    program, unfused = program_seconds(), engine.unfused()
    took = time.perf_counter() - began
    return Costs(program, step, draw, ranks, read, start, of_tables / size, save, took, unfused)


def program_seconds() -> float:
    """A run without its work, from importing what it imports."""
    command = [sys.executable, "-c", "import bidistill.cli"]
    return (1 + REPORT) * seconds(lambda: subprocess.run(command, check=True))


def read_seconds() -> float:
    """A row of a CSV file of whole numbers, read and split."""
    little = Sizes(ROWS // 20, ROWS // 20, ROWS, ROWS * 9 // 10, 1)
    parts = made_up(little)
    rows = Interactions(parts.train_users, parts.train_items, parts.train_items, parts.user_ids, parts.item_ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        write_interactions(path, rows)
        return seconds(lambda: split(read(path))) / len(rows)


def save_seconds(folder: Path) -> float:
    """A byte of a checkpoint in this folder, or where it will be made."""
    while not folder.is_dir():
        folder = folder.parent
    block = {"block": torch.rand(BLOCK)}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".plan.") as place:
        return seconds(lambda: save_checkpoint(place, block, {})) / (4 * BLOCK)
