"""Whether a training step may be one fused call, and if not, why: then it takes the eager one, of the same formula."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bdkernels.ranges import FUSED_LOSSES
from bidistill.config import Config, ModelConfig
from bidistill.distill import make_method
from bidistill.models import Recommender
from bidistill.models.base import tables_of
from bidistill.optimizers import no_fused_form


def unfused(config: Config) -> str:
    """What in the settings no fused step can do, whatever the models; "" where there is nothing.

    Where negatives are shared, what stands for the fused step takes every loss: see `SharedUpdate`.
    """
    if config.train.shares_negatives:
        return ""
    if config.train.loss not in FUSED_LOSSES:
        return f"the loss {config.train.loss!r} has no fused form"
    if config.distill.negatives_from_samples:
        return "with distill.negatives_from_samples, a user without a distilled item has no negative"
    method = make_method(config.distill)
    if method is not None and method.own_loss:
        return f"distill.method {config.distill.method!r} has a loss of its own"
    return ""


def obstacle(model: Recommender, config: ModelConfig) -> str:
    """What of this model and its optimizer no fused step can do; "" where there is nothing."""
    tables = tables_of(model)
    if tables is None:
        return "the model's score is more than a dot product of two tables"
    if tables[0].dtype != torch.float32:
        return f"the model's tables are {tables[0].dtype}"
    return unfused_settings(config)


def unfused_settings(config: ModelConfig) -> str:
    """What in the settings of a model no fused step can do; "" where there is nothing."""
    if config.clip_norm:
        return "clip_norm needs the gradient of a whole step"
    return no_fused_form(config.optimizer, config.optimizer_args)


def told(reasons: Mapping[str, str]) -> list[str]:
    """The reasons of the models that have some, a sentence each."""
    found = []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [name for name, own in reasons.items() if own == reason]
        verb = "trains" if len(names) == 1 else "train"
        found.append(f"{' and '.join(names)} {verb} without the fused step: {reason}")
    return found
