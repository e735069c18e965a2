"""What watches a run: subclass Callback and pass it to the Trainer. The run folder's logs are callbacks too."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bidistill.config import Config, RunConfig
from bidistill.distill import Distiller
from bidistill.logs import log
from bidistill.runs.folder import RunFolder
from bidistill.training.phases import PHASES, TITLES, Progress, Row, learn_in, rows_of


class Run(Protocol):
    """What a callback sees of a run, which is a `Trainer`, and may ask of it: `Steered` says what `stop` to `log` do.

    Attributes:
        config: all settings. progress: how far the run is. history: its rows so far.
        interactions: training interactions of an epoch. done: those of the running phase that were learned from.
        folder: of the run; None where nothing is written.
        stopped: why the run was stopped, or "".
        distiller: draws the items on which the models follow each other; None where they do not.
    """

    config: Config
    progress: Progress
    history: list[Row]
    folder: RunFolder | None
    stopped: str

    def stop(self, reason: str) -> None: ...

    def end_phase(self, reason: str) -> None: ...

    def lr(self, name: str) -> float: ...

    def set_lr(self, name: str, value: float) -> None: ...

    def log(self, name: str, value: float) -> None: ...

    @property
    def interactions(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def distiller(self) -> Distiller | None: ...


class Callback:
    """Does nothing; override what you need. Each method gets the run, may call its methods, and must not change it otherwise.

    A row of the history has: phase ("pretrain_teacher", "pretrain_student" or "joint"), epoch (how many are finished;
    0 is the state it starts from), interactions (that an epoch trains on), seconds, and "teacher/..." and "student/..."
    columns as far as that model took part: best_epoch (whose state is the best so far), loss_cf, loss_distill, and where the
    epoch was evaluated the validation metrics ("teacher/ndcg@50"). The joint phase's rows have the numbers of the method
    (`Method.numbers`). Those of bidirectional where ranks are estimated: rank_error, the mean error measured on some users, and
    rank_error_bound, which an error passes once in 20; both as shares of the catalog.
    """

    def on_phase(self, run: Run, phase: str, epochs: int, steps: int) -> None:
        """A phase begins, or is resumed (then `run.progress.started`): at most `epochs` epochs of `steps` steps."""

    def on_step(self, run: Run) -> None:
        """A step is done."""

    def on_epoch(self, run: Run, row: Row) -> None:
        """An epoch is done; the row is already the last of run.history."""

    def on_end(self, run: Run) -> None:
        """fit() is about to return or to raise."""


class Log(Callback):
    """A table in the log: a title for each phase, and one line of at most 80 columns for each evaluated epoch."""

    def __init__(self) -> None:
        self.columns: list[tuple[str, int, Callable[[float], str], str]] = []  # column of a row, width, format, title

    def on_phase(self, run: Run, phase: str, epochs: int, steps: int) -> None:
        """Tell what the columns are."""
        config, distill = run.config, run.distiller if phase == "joint" else None
        note = distill.method.note() if distill is not None else ""
        self.columns = [("epoch", 5, "{:.0f}".format, "epoch")]
        for name in learn_in(phase, config):
            self.columns += [(f"{name}/{config.train.monitor}", 8, "{:.4f}".format, name)]
            self.columns += [(f"{name}/loss_cf", 7, _loss, "cf")]
            self.columns += [(f"{name}/loss_distill", 8, _loss, "distill")] if distill is not None else []
        self.columns.append(("steps_seconds", 6, _seconds, "steps"))
        self.columns += [("resample_seconds", 9, _seconds, "resample")] if distill is not None else []
        self.columns.append(("evaluate_seconds", 6, _seconds, "eval"))
        self.columns += distill.method.columns() if distill is not None else []
        title = f"{TITLES[phase]}, at most {epochs} epochs: {config.train.monitor} on validation, losses, seconds"
        log.info(title + (f"; {note}" if note else ""))
        log.info("".join(f"{title:>{width}}" for _, width, _, title in self.columns))

    def on_epoch(self, run: Run, row: Row) -> None:
        """Tell the epoch, if it was evaluated."""
        if any(f"{name}/{run.config.train.monitor}" in row for name in learn_in(row["phase"], run.config)):
            cells = [(show(row[name]) if name in row else "", width) for name, width, show, _ in self.columns]
            log.info("".join(f"{text:>{width}}" for text, width in cells).rstrip())


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0e}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


class ProgressBar(Callback):
    """Training interactions of each phase, how many a second, and how long the run takes yet if no phase ends early; on stderr.

    A bar where stderr is a terminal; elsewhere one line every LINE_SECONDS. Whatever handler shows records of the logger, they
    stand on lines of their own: the bar is cleared before each and drawn anew with the next step.
    """

    LINE_SECONDS = 60.0
    FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"

    def __init__(self) -> None:
        self.bar: Any = None
        self.lines = not sys.stderr.isatty()
        self.speeds: dict[str, float] = {}  # seconds of an interaction, by phase
        self.began, self.done = 0.0, 0

    def on_phase(self, run: Run, phase: str, epochs: int, steps: int) -> None:
        """Begin a bar, where the phase stands."""
        self.on_end(run)
        self.speeds = speeds_of(run.history)
        self.began, self.done = time.perf_counter(), run.done
        self.bar = tqdm(
            total=epochs * run.interactions,
            initial=run.done,
            desc=phase,
            unit="",
            unit_scale=True,
            leave=False,
            file=io.StringIO() if self.lines else sys.stderr,
            mininterval=self.LINE_SECONDS if self.lines else 0.1,
            bar_format=self.FORMAT,
        )
        log.addFilter(self._step_aside)

    def on_step(self, run: Run) -> None:
        """Advance the bar."""
        phase = run.progress.phase
        if run.done > self.done:
            self.speeds[phase] = (time.perf_counter() - self.began) / (run.done - self.done)
        sizes = {each: run.interactions * epochs for each, epochs in most_epochs(run.config).items()}
        left = tqdm.format_interval(seconds_left(phase, run.done, sizes, self.speeds))
        self.bar.set_postfix_str(f"epoch {run.progress.epoch}, run: at most about {left} left", refresh=False)
        if self.bar.update(run.done - self.bar.n) and self.lines:
            sys.stderr.write(f"{self.bar}\n")
            sys.stderr.flush()

    def on_end(self, run: Run) -> None:
        """Remove the bar."""
        log.removeFilter(self._step_aside)
        if self.bar is not None:
            self.bar.close()

    def _step_aside(self, record: logging.LogRecord) -> bool:
        self.bar.clear()
        return True


def most_epochs(config: Config) -> dict[str, int]:
    """Epochs of each phase, if it does not end early."""
    return {phase: config.train.epochs if phase == "joint" else config.train.pretrain_epochs for phase in PHASES}


def speeds_of(history: Sequence[Row]) -> dict[str, float]:
    """Seconds of a training interaction in each phase that has had an epoch, evaluations included."""
    found = {}
    for phase in PHASES:
        rows = rows_of(history, phase)
        if done := sum(row["interactions"] for row in rows if row["epoch"]):
            found[phase] = sum(row["seconds"] for row in rows) / done
    return found


def seconds_left(phase: str, done: int, sizes: Mapping[str, int], speeds: Mapping[str, float]) -> float:
    """How long the running phase and those after it take.

    A model alone is taken to be as slow as the other one was, and both together as slow as one after the other, without
    the draws, until there is a measurement.

    Args:
        done: interactions of the running phase.
        sizes: interactions of every phase.
        speeds: seconds of an interaction in the phases that are known; one at least.
    """
    alone = [speeds[each] for each in PHASES[:2] if each in speeds] or [speeds[phase] / 2]
    mean = sum(alone) / len(alone)
    guess = {each: mean if each != "joint" else 2 * mean for each in PHASES} | {**speeds}
    later = PHASES[PHASES.index(phase) + 1 :]
    return (sizes[phase] - done) * guess[phase] + sum(sizes[each] * guess[each] for each in later)


class CsvLog(Callback):
    """metrics.csv: the whole history, one row an epoch. Written anew each time, so a resumed run has no row twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, run: Run, row: Row) -> None:
        """Write the file; a column that an epoch lacks is left empty."""
        columns = list(dict.fromkeys(name for each in run.history for name in each))
        assert run.folder is not None
        written = run.folder.writing(self.path.name, durable=False)  # it is not read back
        with written as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(run.history)


class TensorBoard(Callback):
    """Scalars for TensorBoard in a folder, if it is installed; else one warning."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_phase(self, run: Run, phase: str, epochs: int, steps: int) -> None:
        """Open the folder, the first time."""
        if self.writer is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn(
                "run.tensorboard is on, but tensorboard is not installed: no such log is written", stacklevel=2
            )
            return
        own = f".{uuid.uuid4().hex[:8]}"  # by which the file can be told from those of others
        self.writer = SummaryWriter(str(self.folder), filename_suffix=own)
        if run.folder is not None:
            for file in self.folder.glob(f"*{own}"):
                run.folder.record(f"{self.folder.name}/{file.name}")

    def on_epoch(self, run: Run, row: Row) -> None:
        """Log every number of the row under its phase."""
        for name, value in row.items():
            if self.writer is not None and name not in ("phase", "epoch"):
                self.writer.add_scalar(f"{row['phase']}/{name}", value, row["epoch"])

    def on_end(self, run: Run) -> None:
        """Flush."""
        if self.writer is not None:
            self.writer.flush()


def standard_callbacks(run: RunConfig) -> list[Callback]:
    """What the settings ask for: lines and bars, and the logs of the run folder."""
    callbacks: list[Callback] = [Log(), ProgressBar()] if run.progress else []
    if run.out:
        callbacks.append(CsvLog(Path(run.out) / "metrics.csv"))
        callbacks += [TensorBoard(Path(run.out) / "tensorboard")] if run.tensorboard else []
    return callbacks
