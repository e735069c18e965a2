"""The options of [train]: what each model learns alone, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from bdkernels import ranges
from bidistill.errors import UserError
from bidistill.losses import over_catalog
from bidistill.metrics import names_of
from bidistill.options import option
from bidistill.registry import LOSSES

MOST_STEPS = int(ranges.STEP.high) + 1
OF_DIFFERENCES = ("softmax", "bpr")  # losses that stay the same where a number is added to all scores of a row


@dataclass(frozen=True)
class TrainConfig:
    loss: str = option("bce", "collaborative-filtering loss", choices=LOSSES)
    negatives: int = option(
        4, "unseen items drawn for each training interaction; a loss over the whole catalog takes none", least=1
    )
    negative_source: str = option(
        "row",
        "where negatives come from: row: unseen items of each interaction's own; shared: uniform draws that so many interactions"
        " have in common; batch: the positives of so many others, with log-q correction; these two cost far less where there are"
        " many",
        choices=("row", "shared", "batch"),
    )
    order: str = option(
        "interactions",
        "what is shuffled in an epoch: all interactions, or users, whose interactions then lie together: with the loss"
        " full_softmax that takes far less time",
        choices=("interactions", "users"),
    )
    batch_size: int = option(2048, "training interactions in a step", least=1)
    pretrain_epochs: int = option(100, "most epochs of each model alone, before distillation", least=0, most=MOST_STEPS)
    epochs: int = option(
        30, "most epochs of the joint phase, where the models learn from each other", least=0, most=MOST_STEPS
    )
    joint: str = option(
        "both",
        "who learns in the joint phase; student: the teacher stays as its pretraining left it, and takes no time",
        choices=("both", "student"),
    )
    patience: int = option(10, "evaluations without a better validation score before a phase ends; 0: never", least=0)
    eval_every: int = option(1, "epochs between evaluations", least=1)
    monitor: str = option(
        "ndcg@50",
        lambda: f"validation metric that picks the best epoch: {', '.join(names_of('K'))}, with a K of eval.ks",
    )

    @property
    def drawn_negatives(self) -> int:
        """Negatives of a training interaction; none where the loss is over the whole catalog."""
        return 0 if over_catalog(self.loss) else self.negatives

    @property
    def shares_negatives(self) -> bool:
        """Whether interactions have negatives in common."""
        return self.negative_source != "row"

    def check_negatives(self) -> None:
        """Raise UserError where the negatives cannot come from where they are to."""
        if not self.shares_negatives:
            return
        named = f"train.negative_source is {self.negative_source}, but"
        if over_catalog(self.loss):
            raise UserError(
                f"{named} train.loss {self.loss} takes no negatives: set it to row, or train.loss to softmax"
            )
        if self.negative_source == "batch":
            if self.loss not in OF_DIFFERENCES:
                raise UserError(
                    f"{named} the log-q correction is for losses of differences between scores, {' and '.join(OF_DIFFERENCES)},"
                    f" and train.loss is {self.loss}: set one of those, or train.negative_source to shared"
                )
            if self.order == "users":
                raise UserError(
                    f"{named} train.order is users, which puts the interactions of a user, whose items are no negatives of each"
                    " other, side by side: set train.order to interactions, or train.negative_source to shared"
                )
            if self.negatives >= self.batch_size:
                raise UserError(
                    f"{named} train.negatives is {self.negatives} and a batch of train.batch_size {self.batch_size} has"
                    f" {self.batch_size - 1} other positives: lower the one, or raise the other"
                )
