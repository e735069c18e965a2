"""What a phase of training came to, by the rows of the history: its epochs, the one that was kept, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bidistill.config import Config
from bidistill.distill.method import list_sizes
from bidistill.errors import UserError
from bidistill.losses import over_catalog
from bidistill.registry import LOSSES

PHASES = ("pretrain_teacher", "pretrain_student", "joint")
# What seeds are made of: names of their own, so that a phase may get another name and runs still repeat.
STREAMS = {"pretrain_teacher": "warmup_teacher", "pretrain_student": "warmup_student", "joint": "joint"}
TITLES = {
    "pretrain_teacher": "pretraining, teacher",
    "pretrain_student": "pretraining, student",
    "joint": "joint phase",
}
FAR = 2.0  # times the loss at the start, from where a loss at the end is far above it

Row = dict[str, Any]  # of a history: see `callbacks.Callback`
History = Sequence[Mapping[str, Any]]


@dataclass
class Progress:
    """Where a run stands: `epoch` epochs of the phase are finished, and `step` steps of the next one."""

    phase: str = PHASES[0]
    epoch: int = 0
    step: int = 0
    started: bool = False  # the phase's starting state has been evaluated
    ended: str = ""  # why a callback ended the phase


class Epochs(NamedTuple):
    """Of one model in one phase: how many epochs it was trained, and after how many of them its state was kept."""

    trained: int
    kept: int


def learn_in(phase: str, config: Config) -> tuple[str, ...]:
    """The models that learn in a phase."""
    if phase != "joint":
        return (phase.removeprefix("pretrain_"),)
    return ("student",) if config.train.joint == "student" else ("teacher", "student")


def rows_of(history: History, phase: str) -> list[Mapping[str, Any]]:
    """The history of one phase."""
    return [row for row in history if row["phase"] == phase]


def epochs_of(history: History, phase: str, model: str) -> Epochs | None:
    """None where the model was not trained in the phase, such as in the pretraining of a run that took another's over.

    Raises:
        UserError: the history is of an older version, which did not say which epoch it kept.
    """
    rows = rows_of(history, phase)
    if not rows:
        return None
    if f"{model}/best_epoch" not in rows[-1]:
        if any(name.endswith("/best_epoch") for name in rows[-1]):
            return None
        raise UserError(
            f"the history of the run does not say which epoch of the {TITLES[phase]} was kept: train the run again"
        )
    return Epochs(int(rows[-1]["epoch"]), int(rows[-1][f"{model}/best_epoch"]))


def problems(history: History, config: Config, phase: str, model: str) -> list[str]:
    """Signs that the phase did this model no good, a sentence each."""
    rows, epochs, found = rows_of(history, phase), epochs_of(history, phase, model), []
    if epochs is None or not epochs.trained:
        return []
    title = f"{model}, {TITLES[phase].partition(',')[0]}"
    if phase == "joint" and config.distill.method == "none":
        title += " without distillation"
    if not epochs.kept:
        state = "the state after the pretraining" if phase == "joint" else "the untrained state"
        found.append(f"{title}: epoch 0 is kept, {state}: no later epoch of {epochs.trained} was better on validation")
    losses = [row[f"{model}/loss_cf"] for row in rows if f"{model}/loss_cf" in row]
    if losses:
        start = min(losses[0], untrained_loss(config))
        if not losses[-1] <= FAR * start:
            found.append(
                f"{title}: the loss ended at {losses[-1]:.3g}, far above {start:.3g} at its start: lower {model}.lr"
            )
    return found


def untrained_loss(config: Config) -> float:
    """The collaborative-filtering loss of a model that scores everything 0; infinite where that depends on the catalog."""
    if over_catalog(config.train.loss) or config.train.negative_source == "batch":
        return math.inf
    most = max(config.train.negatives, list_sizes(config.distill)[1] if config.distill.negatives_from_samples else 0)
    negatives = torch.zeros(1, most)
    return float(LOSSES[config.train.loss](torch.zeros(1), negatives, negatives == 0))
