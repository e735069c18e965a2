"""How a model learns from a batch: by autograd and torch.optim, or in one fused call where that is the same formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bdkernels import NonFiniteLoss, StepLoss, fused_step
from bidistill.config import ModelConfig
from bidistill.losses import CatalogLoss
from bidistill.models import Recommender
from bidistill.models.base import Tables
from bidistill.optimizers import clip, load_state, make_fused, make_optimizer, state_of
from bidistill.registry import LOSSES
from bidistill.training.types import Batch, Terms


class Update(Protocol):
    """Changes a model by one step a call, and owns its optimizer."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Whose param_groups have the learning rate."""
        ...

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
        self.model, self.terms, self.clip_norm = model, terms, config.clip_norm
        settings = config.lr, config.weight_decay, config.optimizer_args
        self.optimizer = make_optimizer(config.optimizer, model.parameters(), *settings)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        n_positive, m, k = 1, batch.negatives.ids.shape[1], batch.distill.ids.shape[1]
        of, listed = LOSSES[self.terms.cf], batch.listed(fused=False)
        if isinstance(of, CatalogLoss):
            loss = of(self.model, batch.users, batch.positives)
            n_positive, listed = 0, listed[:, 1:]
        parts = n_positive, m, k
        # One call scores everything; but for a loss over the catalog that is the distilled items alone, if there are any.
        scores = (self.model.score(batch.users, listed) if sum(parts) else batch.guide_scores).split(parts, dim=1)
        if n_positive:
            loss = of(scores[0][:, 0], scores[1], batch.negatives.mask)
        losses = {"cf": loss.detach()}
        if scores[2].shape[1]:
            distill = self.terms.distill_loss(scores[2], batch.guide_scores, batch.distill)
            loss, losses["distill"] = loss + self.terms.distill_weight * distill, distill.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:
            clip(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return losses

    def state(self) -> dict[str, Any]:
        return state_of(self.optimizer)

    def load_state(self, state: dict[str, Any]) -> None:
        load_state(self.optimizer, state)

    def row_kinds(self, model: Mapping[str, str]) -> dict[str, str]:
        names = [name for name, _ in self.model.named_parameters()]
        return {str(index): model[name] for index, name in enumerate(names) if name in model}


class TableUpdate:
    """What updates have in common that change tables in place.

    State is named by the numbers of the model's parameters, as in `EagerUpdate`, so that either goes on where the other stopped.

    Args:
        model: whose tables they are.
        tables: all of it, or the rows that are here.
    """

    def __init__(self, model: Recommender, tables: Tables, config: ModelConfig) -> None:
        settings = config.lr, config.weight_decay, config.optimizer_args
        self.optimizer = make_fused(config.optimizer, tables, *settings)
        places = {parameter.data_ptr(): at for at, parameter in enumerate(model.parameters())}
        found = [places.get(table.data_ptr(), -1) for table in tables if table is not None]
        self.numbers = list(range(len(found))) if -1 in found else found

    def state(self) -> dict[str, Any]:
        return self._renamed(state_of(self.optimizer), dict(enumerate(self.numbers)))

    def load_state(self, state: dict[str, Any]) -> None:
        load_state(self.optimizer, self._renamed(state, {number: at for at, number in enumerate(self.numbers)}))

    def row_kinds(self, model: Mapping[str, str]) -> dict[str, str]:
        return {str(number): "items" if at else "users" for at, number in enumerate(self.numbers)}

    def _renamed(self, state: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
        """The state by other numbers of the tables; settings, by "group", keep their names."""
        split = [(*name.partition("."), value) for name, value in state.items()]
        return {
            f"{numbers[int(at)] if at.isdecimal() else at}.{rest}": value
            for at, _, rest, value in split
            if not at.isdecimal() or int(at) in numbers
        }


class FusedUpdate(TableUpdate):
    """Tables whose dot product is the whole score, an optimizer of FUSED, and batches without missing negatives."""

    def __init__(self, model: Recommender, tables: Tables, config: ModelConfig, terms: Terms) -> None:
        super().__init__(model, tables, config)
        self.terms = terms

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        cf, kind, distill_weight, tau_learner, tau_guide, _ = self.terms
        try:
            found = fused_step(
                self.optimizer,
                batch.users,
                batch.positives,
                batch.negatives.ids,
                batch.distill,
                batch.guide_scores,
                cf=cf,
                distill_kind=kind,
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
