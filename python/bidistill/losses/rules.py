"""What settings of losses over the whole catalog go together."""

from __future__ import annotations

from typing import Any

from bidistill.errors import UserError
from bidistill.losses import FULL_SOFTMAX, over_catalog
from bidistill.optimizers import wants_sparse


def check_losses(config: Any) -> None:
    """Raise UserError where train.loss or distill.loss is over the whole catalog, and another setting cannot serve it.

    config: the `Config`.
    """
    train, distill = config.train, config.distill
    if over_catalog(train.loss):
        if distill.negatives_from_samples:
            raise UserError(
                f"distill.negatives_from_samples is set, but train.loss {train.loss} takes no negatives: unset it"
            )
        for name in ("teacher", "student"):
            if wants_sparse(config.model(name).optimizer):
                raise UserError(
                    f"{name}.optimizer is {config.model(name).optimizer}, which changes the rows of a batch alone, but"
                    f" train.loss {train.loss} touches every item in each step: set {name}.optimizer to adam, or"
                    " train.loss to softmax"
                )
    if distill.method == "none" or distill.loss != FULL_SOFTMAX:
        return
    if train.loss != FULL_SOFTMAX:
        raise UserError(
            f"distill.loss is {FULL_SOFTMAX}, but train.loss is {train.loss}, and one pass over the catalog is for both: set"
            f" train.loss to {FULL_SOFTMAX}, or distill.loss to listwise"
        )
    if distill.samples or not distill.resample_every:
        raise UserError(
            f"distill.loss {FULL_SOFTMAX} learns from a user's whole pool: set distill.samples to 0, and distill.resample_every"
            " to 1 or more"
        )
    if distill.tau_learner != 1:
        raise UserError(
            f"distill.tau_learner is {distill.tau_learner:g}, but with distill.loss {FULL_SOFTMAX} the learner's chances are"
            " those of train.loss, without a temperature: set it to 1"
        )
