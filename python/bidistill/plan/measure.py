"""What the parts of a run cost on this machine: measured on a job of the same shape in little, with the trainer's own code."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bdkernels import Factors, rank, sample
from bdkernels.measure import seconds
from bidistill.checkpoint import save_checkpoint
from bidistill.config import Config
from bidistill.data import Interactions, read, split, write_interactions
from bidistill.distill.bidirectional import CHUNK
from bidistill.errors import UserError
from bidistill.learner import new_model
from bidistill.phases import PHASES
from bidistill.plan.memory import memory, shortage, tables
from bidistill.plan.sizes import Sizes, made_up
from bidistill.trainer import Place, Trainer

# Tables of real size as far as that takes seconds: their rows cost more the less of them the caches and page tables hold.
MOST = {"users": 1_000_000, "items": 1_000_000, "train": 2_000_000}
SCANNED = 250_000  # items of a timed call that goes over all of them: more than the caches hold, too
OWN = 0.5  # standard deviation of the part that is not shared: a correlation of 0.8, and 0.7 to 0.8 was seen on trained models
ROWS = 200_000  # of the file that is read
BLOCK = 1 << 24  # floats of the checkpoint that is written: 64 MB
REPORT = 0.9  # what the results and the report of a run take, in imports of this package, most of which is torch


@dataclass(frozen=True)
class Line:
    """A cost that grows with the catalog: fixed + slope * items."""

    fixed: float
    slope: float

    def at(self, items: float) -> float:
        return self.fixed + self.slope * items


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine.

    Attributes:
        program: of a run besides its work: starting Python, importing, the report's page and figures.
        step: of a training step in each phase of `trainer.PHASES`, without the draws.
        draw: of one user's draws, both directions, by the number of items that ranks are counted over.
        rank: of one held-out item of one user, by the number of items, for "teacher" and "student".
        read: of a row of CSV: reading, numbering, splitting.
        start: of a training interaction when a Trainer is made, besides its tables.
        tables: of a byte of the tables then.
        save: of a byte of a checkpoint.
        took: of the whole measurement.
    """

    program: float
    step: dict[str, float]
    draw: Line
    rank: dict[str, Line]
    read: float
    start: float
    tables: float
    save: float
    took: float


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
    if shortage(memory(_quiet(config), little)):
        raise UserError(shortage(memory(config, sizes)))
    parts = made_up(little)
    folder = Path(config.run.out or "run").parent
    trainer = Trainer(_quiet(config), parts)
    start = time.perf_counter() - began
    size = tables(config.teacher, little) + tables(config.student, little)
    of_tables = seconds(lambda: [new_model(config[name], trainer.part, 0) for name in trainer.learners])
    draw = draw_line(trainer) if trainer.objective.distiller is not None else Line(0.0, 0.0)
    step = {phase: step_seconds(trainer, phase) for phase in PHASES}
    ranks = {name: rank_line(trainer, name) for name in trainer.learners}
    start = max(0.0, start - of_tables) / little.train
    read, save = read_seconds(), save_seconds(folder)
    return Costs(program_seconds(), step, draw, ranks, read, start, of_tables / size, save, time.perf_counter() - began)


def draw_share(config: Config, sizes: Sizes) -> float:
    """The share of the joint phase's time that exact draws would take, measured in a few seconds."""
    little = sizes.at_most(**MOST)
    trainer = Trainer(_quiet(config), made_up(little))
    return share_of(config, sizes, draw_line(trainer), step_seconds(trainer, "joint"))


def share_of(config: Config, sizes: Sizes, line: Line, step: float) -> float:
    """The same from the cost of exact draws and of a step of the joint phase."""
    draw = line.at(sizes.items)
    steps = math.ceil(sizes.train / config.train.batch_size)
    refresh = config.distill.refresh
    users = sizes.users / (refresh * steps) if refresh else config.train.batch_size  # drawn for in a step
    return users * draw / (users * draw + step)


def _quiet(config: Config) -> Config:
    exact = {"distill.catalog": 0} if config.distill.catalog == "auto" else {}
    return config.with_overrides({"run.out": None, "run.progress": False, **exact})


def step_seconds(trainer: Trainer, phase: str, repeats: int = 8) -> float:
    """A training step of this phase, with a pool of random items where the run has one."""
    trainer.place = Place(phase)
    distiller, size = trainer.objective.distiller, min(trainer.config.train.batch_size, len(trainer.users))
    if distiller is not None:
        shape = trainer.split.n_users, 2 * trainer.config.distill.pool
        distiller.pool = torch.randint(trainer.split.n_items, shape, dtype=torch.int32, device=trainer.device)
    order = torch.randperm(len(trainer.users), generator=torch.Generator().manual_seed(0))
    times = []
    for number in range(repeats + 2):
        some = order[torch.arange(number * size, (number + 1) * size) % len(order)].to(trainer.device)
        users, positives = trainer.users[some], trainer.items[some]
        times.append(seconds(lambda u=users, p=positives, n=number: trainer.step(u, p, n)))  # type: ignore[misc]
    return median(times[2:])


def draw_line(trainer: Trainer) -> Line:
    """Draws for as many users as a refill takes at once, over SCANNED items and over a quarter of them.

    How many proposals must be counted depends on how alike the two models rank. Those here are untrained; biases that they share
    in part make their ranks as alike as those of trained ones.
    """
    distiller, distill = trainer.objective.distiller, trainer.config.distill
    assert distiller is not None
    shared, *own = torch.randn(3, trainer.split.n_items, generator=torch.Generator().manual_seed(0))
    teacher, student = (
        factors_of(trainer, name, CHUNK)._replace(item_bias=(shared + OWN * noise).to(trainer.device))
        for name, noise in zip(("teacher", "student"), own, strict=True)
    )
    student_weight, teacher_weight = distiller.weights["student"], distiller.weights["teacher"]
    k = distill.pool if distill.refresh else distill.samples
    m = int(distill.catalog) or None

    users = torch.arange(len(teacher.users), device=trainer.device)

    def call(n: int) -> None:
        models = first(teacher, n), first(student, n)
        sample(
            *models,
            k,
            to_student=student_weight,
            to_teacher=teacher_weight,
            user_ids=users,
            step=0,
            catalog=m,
            independent_directions=distill.independent_directions,
        )

    return line(teacher, call)


def rank_line(trainer: Trainer, name: str) -> Line:
    """`rank` of one item for the users of a batch of evaluation, over SCANNED items and over a quarter of them."""
    factors = factors_of(trainer, name, trainer.config.eval.batch)
    ids = torch.zeros(len(factors.users), 1, dtype=torch.int64, device=trainer.device)
    return line(factors, lambda n: rank(first(factors, n), ids))


def factors_of(trainer: Trainer, name: str, users: int) -> Factors:
    """Some users of one of the models."""
    return trainer.learners[name].model.factors(torch.arange(min(users, trainer.split.n_users), device=trainer.device))


def first(factors: Factors, n: int) -> Factors:
    """The same users over the first n items."""
    return Factors(factors.users, factors.items[:n], None if factors.item_bias is None else factors.item_bias[:n])


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


def line(factors: Factors, call: Callable[[int], Any]) -> Line:
    """Seconds a user of calls over n items, for SCANNED items and a quarter of them in turns."""
    items, users = min(SCANNED, factors.n_items), len(factors.users)
    few = max(1, items // 4)
    call(few)
    times = [(seconds(lambda: call(few)), seconds(lambda: call(items)))]
    for _ in range(2 if sum(times[0]) < 0.5 else 0):
        times.append((seconds(lambda: call(few)), seconds(lambda: call(items))))
    short, long = (median(column) / users for column in zip(*times, strict=True))
    slope = max(0.0, long - short) / max(1, items - few)
    return Line(max(0.0, long - slope * items), slope)
