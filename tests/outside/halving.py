"""A callback of one's own: halve the learning rate where validation gets no better, and show it in TensorBoard."""

from typing import Any

from bidistill import Callback, Run


class Halving(Callback):
    """Halves the rate of a model after each epoch that was not its best; ends the phase below a thousandth of the first rate.

    writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar(name, value, step)`.
    """

    def __init__(self, name: str, writer: Any) -> None:
        self.name, self.writer = name, writer

    def on_epoch(self, run: Run, row: dict[str, Any]) -> None:
        if (best := row.get(f"{self.name}/best_epoch")) is None:  # it does not learn in this phase
            return
        if best < row["epoch"]:
            run.set_lr(self.name, run.lr(self.name) / 2)
        run.log(f"{self.name}/lr", run.lr(self.name))
        self.writer.add_scalar(f"{row['phase']}/{self.name}/lr", run.lr(self.name), row["epoch"])
        if run.lr(self.name) < run.config.model(self.name).lr / 1000:
            run.end_phase(f"the {self.name}'s learning rate is spent")
