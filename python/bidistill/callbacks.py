"""What watches a run: subclass Callback and pass it to the Trainer. The run folder's logs are callbacks too."""

from __future__ import annotations

import csv
import io
import sys
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bidistill.config import RunConfig

if TYPE_CHECKING:
    from bidistill.trainer import Trainer

Row = dict[str, Any]


class Callback:
    """Does nothing; override what you need. Each method gets the trainer and must not change it.

    A row of the history has: phase ("warmup_teacher", "warmup_student" or "joint"), epoch (how many are finished;
    0 is the state it starts from), seconds, and "teacher/..." and "student/..." columns as far as that model took part:
    loss_cf, loss_distill, and where the epoch was evaluated the validation metrics ("teacher/ndcg@50"). Where ranks are
    estimated, the joint phase's rows have rank_error, the mean error measured on some users, and rank_error_bound, which an
    error passes once in 20; both as shares of the catalog.
    """

    def on_phase(self, trainer: Trainer, phase: str, epochs: int, steps: int) -> None:
        """A phase begins or is resumed: at most `epochs` epochs of `steps` steps."""

    def on_step(self, trainer: Trainer) -> None:
        """A step is done."""

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """An epoch is done; the row is already the last of trainer.history."""

    def on_end(self, trainer: Trainer) -> None:
        """fit() is about to return or to raise."""


class Log(Callback):
    """One line on stdout for each evaluated epoch."""

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """Print phase, epoch, losses and the monitored metric of each model."""
        monitor = trainer.config.train.monitor
        parts = []
        for name in ("teacher", "student"):
            if f"{name}/{monitor}" in row:
                losses = [
                    f"{key} {row[f'{name}/loss_{key}']:.4f}" for key in ("cf", "distill") if f"{name}/loss_{key}" in row
                ]
                parts.append(f"{name} {' '.join([*losses, monitor])} {row[f'{name}/{monitor}']:.4f}")
        if "rank_error" in row:
            parts.append(f"ranks off by {row['rank_error']:.2%} (bound {row['rank_error_bound']:.2%})")
        if parts:
            took = " + ".join(
                f"{name} {row[f'{name}_seconds']:.1f}"
                for name in ("steps", "refill", "evaluate")
                if row.get(f"{name}_seconds")
            )
            tqdm.write(f"{row['phase']} epoch {row['epoch']}: {' | '.join(parts)}  ({took} s)", file=sys.stdout)


class ProgressBar(Callback):
    """Training interactions of each phase, how many a second, and the time left if no phase ends early; on stderr.

    A bar where stderr is a terminal; elsewhere, in a log, one line every LINE_SECONDS.
    """

    LINE_SECONDS = 60.0

    def __init__(self) -> None:
        self.bar: Any = None
        self.lines = not sys.stderr.isatty()

    def on_phase(self, trainer: Trainer, phase: str, epochs: int, steps: int) -> None:
        """Begin a bar, where the phase stands."""
        self.on_end(trainer)
        self.bar = tqdm(
            total=epochs * len(trainer.users),
            initial=trainer.done,
            desc=phase,
            unit=" interactions",
            unit_scale=True,
            leave=False,
            file=io.StringIO() if self.lines else sys.stderr,
            mininterval=self.LINE_SECONDS if self.lines else 0.1,
        )

    def on_step(self, trainer: Trainer) -> None:
        """Advance the bar."""
        if self.bar.update(trainer.done - self.bar.n) and self.lines:
            print(self.bar, file=sys.stderr, flush=True)

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """Show the epoch."""
        self.bar.set_postfix_str(f"epoch {row['epoch']}")

    def on_end(self, trainer: Trainer) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


class CsvLog(Callback):
    """metrics.csv: the whole history, one row an epoch. Written anew each time, so a resumed run has no row twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """Write the file; a column that an epoch lacks is left empty."""
        columns = list(dict.fromkeys(name for each in trainer.history for name in each))
        assert trainer.folder is not None
        written = trainer.folder.writing(self.path.name, durable=False)  # it is not read back
        with written as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(trainer.history)


class TensorBoard(Callback):
    """Scalars for TensorBoard in a folder, if it is installed; else one warning."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_phase(self, trainer: Trainer, phase: str, epochs: int, steps: int) -> None:
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
        if trainer.folder is not None:
            for file in self.folder.glob(f"*{own}"):
                trainer.folder.record(f"{self.folder.name}/{file.name}")

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """Log every number of the row under its phase."""
        for name, value in row.items():
            if self.writer is not None and name not in ("phase", "epoch"):
                self.writer.add_scalar(f"{row['phase']}/{name}", value, row["epoch"])

    def on_end(self, trainer: Trainer) -> None:
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
