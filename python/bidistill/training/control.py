"""The matched control of a run: the same models, batches and epochs from the same pretraining, without distillation."""

from __future__ import annotations

from bidistill.config import Config
from bidistill.errors import UserError
from bidistill.eval_options import COMPARED
from bidistill.training.callbacks import Run
from bidistill.training.phases import History, rows_of


def joint_epochs(history: History) -> int:
    """Epochs that the joint phase has really had."""
    rows = rows_of(history, "joint")
    return int(rows[-1]["epoch"]) if rows else 0


def check_matchable(run: Run) -> None:
    """Raise UserError where the run has no matched control: some of its joint epochs were trained on other data."""
    rows = [row for row in rows_of(run.history, "joint") if row["epoch"]]
    if any(row.get("interactions") != run.interactions for row in rows):
        raise UserError(
            "the run has grown in its joint phase, so no control can have the same epochs: leave out the control, or train"
            " a new run on the data of today"
        )


def matched(run: Run) -> Config:
    """The settings of the control of a run that was trained: the number of epochs that its joint phase really had, whatever ended
    it. Both keep their best validation epoch. Train it with `warm_start` from the run's folder.

    Raises:
        UserError: see `check_matchable`.
    """
    check_matchable(run)
    epochs = joint_epochs(run.history)
    alike = {"distill.method": "none", "train.epochs": epochs, "train.patience": 0}
    return run.config.with_overrides(alike | COMPARED)  # the run itself has the others
