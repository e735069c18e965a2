"""One training of a search: one model alone, or both from a pretraining that all trainings share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidistill.config import Config, ModelConfig
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.files.access import present
from bidistill.training.callbacks import Callback, ProgressBar, Run
from bidistill.training.phases import Row, epochs_of, rows_of
from bidistill.training.trainer import Trainer
from bidistill.tuning.study import optuna

START = "start"  # folder of the pretraining, within that of the search
OTHER = {"teacher": "student", "student": "teacher"}


class TimeUp(Exception):
    """The time of the search is over."""


@dataclass(frozen=True)
class Outcome:
    """See `study.Trial`. pruned: whether it was given up."""

    value: float
    epochs: int
    kept: int
    pruned: bool = False
    reason: str = ""


def without_test(split: Split) -> Split:
    """The data of a search: no interaction of the test is in it, so that nothing can look at it."""
    none = np.empty(0, dtype=np.int64)
    return replace(split, test_users=none, test_items=none)


def alone(config: Config, name: str) -> Config:
    """Settings for the training of one model alone: the other one, which is not trained, is next to nothing."""
    config = silent(config).with_overrides({"distill.method": "none", "train.epochs": 0})
    other = ModelConfig(dim=1)
    return replace(config, teacher=other) if name == "student" else replace(config, student=other)


def silent(config: Config) -> Config:
    """The settings of a run that neither writes nor tells anything."""
    return config.with_overrides({"run.out": None, "run.progress": False, "run.tensorboard": False})


class Watch(Callback):
    """Reports each evaluation of a model in a phase to an Optuna trial, and ends the training where that is hopeless.

    trial: None reports nothing. prune: whether the training may be given up. deadline: of `time.monotonic()`.
    """

    def __init__(self, trial: Any, column: str, phase: str, prune: bool, deadline: float) -> None:
        self.trial, self.column, self.phase, self.prune, self.deadline = trial, column, phase, prune, deadline

    def on_step(self, run: Run) -> None:
        """Raise TimeUp when it is time."""
        if time.monotonic() > self.deadline:
            raise TimeUp

    def on_epoch(self, run: Run, row: Row) -> None:
        """Report, and raise optuna.TrialPruned where the trial should be."""
        value = row.get(self.column)
        if self.trial is None or row["phase"] != self.phase or value is None:
            return
        self.trial.report(value, row["epoch"])
        if self.prune and self.trial.should_prune():
            raise optuna().TrialPruned


class Work:
    """What the trainings of a search have in common.

    Args:
        config: the settings as they stand.
        split: without the test.
        name: the model that is tuned.
        distill: whether its distillation is.
        folder: of the search.
    """

    def __init__(self, config: Config, split: Split, name: str, distill: bool, folder: Path) -> None:
        self.config, self.split, self.name, self.distill, self.folder = config, split, name, distill, folder
        self.phase = "joint" if distill else f"pretrain_{name}"
        self.column = f"{name}/{config.train.monitor}"

    def check(self) -> None:
        """Raise UserError where the settings as they stand cannot be trained."""
        Trainer(silent(self.config) if self.distill else alone(self.config, self.name), self.split)

    def prepare(self, deadline: float) -> None:
        """With `distill`, do the pretraining that all trials begin from, unless it is there."""
        if not self.distill:
            return
        start = self.folder / START
        if present(start / "metrics.json"):
            return
        alike: dict[str, Any] = {
            "run.out": str(start),
            "distill.method": "none",
            "train.epochs": 0,
            "run.tensorboard": False,
        }
        watch = Watch(None, self.column, "", False, deadline)
        if present(start / "checkpoint" / "state.json"):
            trainer = Trainer.resume(start, split=self.split, callbacks=[watch])
        else:
            config = self.config.with_overrides(alike)
            trainer = Trainer(config, self.split, callbacks=[watch], overwrite=True)
        trainer.fit()

    def train(self, settings: Mapping[str, Any], trial: Any, prune: bool, deadline: float) -> Outcome:
        """Train with these settings in the place of those that stand.

        Raises:
            UserError: the settings are refused, or the training diverged.
            TimeUp, KeyboardInterrupt: it did not come to an end.
        """
        config = self.config.with_overrides(settings)
        watch: list[Callback] = [Watch(trial, self.column, self.phase, prune, deadline)]
        watch += [ProgressBar()] if config.run.progress else []
        pruned = False
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            try:
                if self.distill:
                    trainer = Trainer(silent(config), self.split, callbacks=watch, warm_start=self.folder / START)
                    trainer.fit()
                else:
                    trainer = Trainer(alone(config, self.name), self.split, callbacks=watch)
                    trainer.pretrain(self.name)
            except optuna().TrialPruned:
                pruned = True
        values = [row[self.column] for row in rows_of(trainer.history, self.phase) if self.column in row]
        epochs = epochs_of(trainer.history, self.phase, self.name)
        if not values or epochs is None:
            raise UserError(f"the {self.name} did not learn in the {self.phase} phase: choose settings that train it")
        reasons = dict.fromkeys(str(each.message) for each in told if issubclass(each.category, UserWarning))
        return Outcome(max(values), *epochs, pruned, " ".join("; ".join(reasons).split()))
