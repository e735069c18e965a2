"""How a model learns from a batch: by autograd and torch.optim, or in one fused call where that is the same formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bdkernels import NonFiniteLoss, StepLoss, distill_loss, fused_step
from bidistill.config import ModelConfig
from bidistill.models import Recommender
from bidistill.models.base import Tables
from bidistill.registry import LOSSES
from bidistill.training.optimizers import FUSED, OPTIMIZERS, load_state, state_of
from bidistill.training.types import Batch, Terms

TABLE_KINDS = {"0": "users", "1": "items", "2": "items"}  # of a user table, an item table and its bias


class Update(Protocol):
    """Changes a model by one step a call, and owns its optimizer."""

    optimizer: torch.optim.Optimizer

    def __call__(self, batch: Any, /) -> dict[str, Tensor]:
        """One step on what the strategy gives for a batch.

        Returns:
            the scalar losses before the step: "cf", and "distill" where there is something to distil.
        """
        ...

    def state(self) -> dict[str, Any]:
        """The optimizer's state: tensors and plain numbers by name."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        ...

    def row_kinds(self, model: Mapping[str, str]) -> dict[str, str]:
        """Which names of `state`, or beginnings of them before a ".", have a row a user ("users") or an item ("items").

        model: the same for the names of the model's `state_dict`.
        """
        ...


class EagerUpdate:
    """Any model and any optimizer."""

    def __init__(self, model: Recommender, config: ModelConfig, terms: Terms) -> None:
        self.model, self.terms = model, terms
        decay = {"weight_decay": config.weight_decay} if config.weight_decay else {}
        self.optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr, **decay)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        cf, distill_weight, tau_learner, tau_guide, own = self.terms
        widths = 1, batch.negatives.ids.shape[1], batch.distill.ids.shape[1]
        scores = self.model.score(batch.users, batch.listed(fused=False)).split(
            widths, dim=1
        )  # one call scores everything
        loss = LOSSES[cf](scores[0][:, 0], scores[1], batch.negatives.mask)
        losses = {"cf": loss.detach()}
        if scores[2].shape[1]:
            if own is None:
                distill = distill_loss(scores[2], batch.guide_scores, tau_learner, tau_guide, batch.distill.mask)
            else:
                distill = own(scores[2], batch.guide_scores, batch.distill)
            loss, losses["distill"] = loss + distill_weight * distill, distill.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return losses

    def state(self) -> dict[str, Any]:
        return state_of(self.optimizer)

    def load_state(self, state: dict[str, Any]) -> None:
        load_state(self.optimizer, state)

    def row_kinds(self, model: Mapping[str, str]) -> dict[str, str]:
        names = [name for name, _ in self.model.named_parameters()]
        return {str(index): model[name] for index, name in enumerate(names) if name in model}


class FusedUpdate:
    """Tables whose dot product is the whole score, an optimizer of FUSED, and batches without missing negatives."""

    def __init__(self, tables: Tables, config: ModelConfig, terms: Terms) -> None:
        self.terms = terms[:4]
        self.optimizer = FUSED[config.optimizer](tables, lr=config.lr)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        cf, distill_weight, tau_learner, tau_guide = self.terms
        try:
            found = fused_step(
                self.optimizer,
                batch.users,
                batch.positives,
                batch.negatives.ids,
                batch.distill,
                batch.guide_scores,
                cf=cf,
                distill_weight=distill_weight,
                tau_learner=tau_learner,
                tau_guide=tau_guide,
            )
        except NonFiniteLoss:  # as a GPU leaves it: the trainer looks for diverged rows at the end of an epoch
            with torch.no_grad():
                self.optimizer.user_table[batch.users] = torch.nan
            nan = batch.guide_scores.new_full((), torch.nan)
            found = StepLoss(nan, nan, nan)
        return {"cf": found.cf, "distill": found.distill} if batch.distill.ids.shape[1] else {"cf": found.cf}

    def state(self) -> dict[str, Any]:
        return state_of(self.optimizer)

    def load_state(self, state: dict[str, Any]) -> None:
        load_state(self.optimizer, state)

    def row_kinds(self, model: Mapping[str, str]) -> dict[str, str]:
        return TABLE_KINDS
