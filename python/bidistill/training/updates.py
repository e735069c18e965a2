"""How a model learns from a batch: by autograd and torch.optim, or in one fused call where that is the same formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from bdkernels import Draws, NonFiniteLoss, StepLoss, fused_step, sparse_step
from bdkernels.optim import NAMES
from bidistill.config import ModelConfig
from bidistill.losses import CatalogLoss
from bidistill.models import Recommender
from bidistill.models.base import FactorLearner, Tables
from bidistill.optimizers import clip, load_state, make_fused, make_optimizer, state_of, wants_sparse
from bidistill.registry import LOSSES
from bidistill.training.soft_targets import learns_from_targets, soft_target_loss
from bidistill.training.types import Batch, SharedNegatives, Terms


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
        learner = callable(getattr(model, "trained_factors", None))
        self.factored = learner and not wants_sparse(config.optimizer)  # the gradients of factors are dense
        settings = config.lr, config.weight_decay, config.optimizer_args
        self.optimizer = make_optimizer(config.optimizer, model.parameters(), *settings)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if learns_from_targets(batch, self.terms):
            loss, losses = soft_target_loss(cast(FactorLearner, self.model), batch, self.terms)
        else:
            loss, losses = self._losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:
            clip(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return losses

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What the step minimises, and its parts."""
        loss, scores = self._cf(batch)
        losses = {"cf": loss.detach()}
        if scores.shape[1]:
            distill = self.terms.distill_loss(scores, batch.guide_scores, batch.distill)
            loss, losses["distill"] = loss + self.terms.distill_weight * distill, distill.detach()
        return loss, losses

    def _cf(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The collaborative-filtering loss, and the scores [B, k] of the distilled items."""
        of, negatives, k = LOSSES[self.terms.cf], batch.negatives, batch.distill.ids.shape[1]
        if isinstance(of, CatalogLoss):
            loss = of(self.model, batch.users, batch.positives)
        elif isinstance(negatives, SharedNegatives) and self.factored:
            loss = of(*self._products(batch.users, batch.positives, negatives), negatives.mask)
        else:  # one call scores everything
            listed = batch.listed(fused=False)
            scores, distilled = self.model.score(batch.users, listed).split([listed.shape[1] - k, k], dim=1)
            if isinstance(negatives, SharedNegatives):
                scores = negatives.corrected(scores, listed[:, : scores.shape[1]])
            return of(scores[:, 0], scores[:, 1:], negatives.mask), distilled
        return loss, self.model.score(batch.users, batch.distill.ids.clamp(min=0)) if k else batch.guide_scores

    def _products(self, users: Tensor, positives: Tensor, negatives: SharedNegatives) -> tuple[Tensor, Tensor]:
        """`shared_scores` of a model with `trained_factors`."""
        rows, items, bias = cast(FactorLearner, self.model).trained_factors(users)
        ids = negatives.with_positives(positives)
        biases = None if bias is None else embedding(ids, bias.reshape(-1, 1)).squeeze(1)
        return shared_scores(rows, embedding(ids, items), biases, positives, negatives)

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
        assert isinstance(batch.negatives, Draws)
        cf, kind, distill_weight, tau_learner, tau_guide, *_ = self.terms
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


class SharedUpdate(TableUpdate):
    """What `FusedUpdate` is for negatives that rows share: the products are torch's, and the rows of the batch alone change.

    Any loss and any method will do; the gradient is that of autograd for the rows that were gathered.
    """

    def __init__(self, model: Recommender, tables: Tables, config: ModelConfig, terms: Terms) -> None:
        super().__init__(model, tables, config)
        self.terms = terms

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        users, positives, negatives, draws, guide_scores = batch
        assert isinstance(negatives, SharedNegatives)
        shape = draws.ids.shape
        distilled = draws.ids.where(draws.mask, positives[:, None])  # what is missing touches no other row
        ids = torch.cat([negatives.with_positives(positives), distilled.flatten()])
        places = dict(zip(NAMES, (users, ids, ids), strict=True))
        tables = self.optimizer.tables()
        rows = {name: table.detach().index_select(0, places[name]) for name, table in tables.items()}
        with torch.enable_grad():
            of_users, items, *bias = (each.requires_grad_() for each in rows.values())
            parts = [len(ids) - distilled.numel(), distilled.numel()]
            biases = bias[0].split(parts) if bias else (None, items.new_zeros(parts[1]))
            chosen, others = items.split(parts)
            of = LOSSES[self.terms.cf]
            loss = of(*shared_scores(of_users, chosen, biases[0], positives, negatives), negatives.mask)
            losses = {"cf": loss.detach()}
            if shape[1]:
                scores = torch.bmm(others.view(*shape, -1), of_users[:, :, None]).squeeze(2) + biases[1].view(shape)
                distill = self.terms.distill_loss(scores, guide_scores, draws)
                loss, losses["distill"] = loss + self.terms.distill_weight * distill, distill.detach()
        grads = torch.autograd.grad(loss, tuple(rows.values()))
        sparse_step(self.optimizer, **{name: (places[name], grad) for name, grad in zip(rows, grads, strict=True)})
        return losses


def shared_scores(
    users: Tensor, items: Tensor, biases: Tensor | None, positives: Tensor, negatives: SharedNegatives
) -> tuple[Tensor, Tensor]:
    """Corrected scores of the positives [B] and of the negatives [B, M] of rows: one product of matrices for each group.

    Args:
        users: [B, d] factors of the rows' users.
        items, biases: [B + G M, d] and [B + G M] of the items `with_positives`; no biases: 0.
        positives: [B] int64.
    """
    (groups, width), (rows, d) = negatives.ids.shape, users.shape
    biases = items.new_zeros(len(items)) if biases is None else biases
    biases = negatives.corrected(biases, negatives.with_positives(positives))
    (own, listed), (of_own, of_listed) = (t.split([rows, groups * width]) for t in (items, biases))
    grouped = pad(users, (0, 0, 0, groups * negatives.size - rows)).view(groups, negatives.size, d)
    scores = torch.baddbmm(of_listed.view(groups, 1, width), grouped, listed.view(groups, width, d).transpose(1, 2))
    return (users * own).sum(1) + of_own, scores.flatten(0, 1)[:rows]
