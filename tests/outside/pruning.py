"""A callback of one's own: stop a run that a search, such as Optuna's, finds hopeless."""

from typing import Any

from bidistill import Callback, Run


class Pruning(Callback):
    """Reports the student's validation metric to a trial, and stops the run if the trial should be pruned.

    trial: what Optuna gives an objective: `report(value, step)` and `should_prune()`. After `fit`, `Result.stopped` tells.
    """

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_epoch(self, run: Run, row: dict[str, Any]) -> None:
        value = row.get(f"student/{run.config.train.monitor}")  # none in an epoch that was not evaluated
        if row["phase"] == "joint" and value is not None:
            self.trial.report(value, row["epoch"])
            if self.trial.should_prune():
                run.stop(f"pruned after epoch {row['epoch']}")
