"""A callback of one's own: numbers of a run for an experiment tracker, such as MLflow or Weights & Biases."""

from typing import Any

from bidistill import Callback, Run


class Tracking(Callback):
    """Sends each epoch's numbers.

    logger: has `log(numbers, step)`, as `wandb.run.log` and `mlflow.log_metrics` take them.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def on_epoch(self, run: Run, row: dict[str, Any]) -> None:
        numbers = {f"{row['phase']}/{name}": value for name, value in row.items() if name not in ("phase", "epoch")}
        self.logger.log(numbers, step=len(run.history) - 1)  # a resumed run goes on with the same steps
