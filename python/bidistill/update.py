"""How a model learns from a batch: by autograd and torch.optim, or in one fused call where that is the same formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bdkernels import SGD, Adagrad, Draws, LazyAdam, NonFiniteLoss, RowOptimizer, StepLoss, bd_step_update, distill_loss
from bidistill.config import ModelConfig
from bidistill.losses import LOSSES
from bidistill.models import Recommender, TableModel
from bidistill.models.base import Tables

if TYPE_CHECKING:
    from bidistill.sharded.rows import ModelRows

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "sparse_adam": torch.optim.SparseAdam,
}
# Those that leave a row without gradient as it is, so that visiting only the rows of a batch is the same formula.
FUSED: dict[str, Any] = {"adagrad": Adagrad, "sgd": SGD, "sparse_adam": LazyAdam}


class Terms(NamedTuple):
    """What a model minimises: cf + lambda_ * distill.

    Attributes:
        cf: "bce" or "bpr".
        lambda_: weight of the distillation loss.
        tau_learner, tau_guide: its temperatures.
    """

    cf: str
    lambda_: float
    tau_learner: float
    tau_guide: float


class Batch(NamedTuple):
    """What one model learns from in a step.

    Attributes:
        users, positives: [B] int64 training interactions.
        negatives: [B, M] item ids; -1 where the mask is False.
        distill: [B, k] item ids likewise; k = 0 where nothing is distilled.
        guide_scores: [B, k] float32, the other model's scores of the distilled items.
        rows: of the items, where they lie on several processes. Then the batch is this process's part of a step: items are
            numbers of these rows, users are numbered from this process's first.
    """

    users: Tensor
    positives: Tensor
    negatives: Draws
    distill: Draws
    guide_scores: Tensor
    rows: ModelRows | None = None

    def listed(self, fused: bool) -> Tensor:
        """[B, 1 + M + k] items that a step touches. What is missing is replaced by the positive in a fused step, whose negatives
        are all there, else by the first item.
        """
        positives, distilled = self.positives[:, None], self.distill
        live = distilled.ids.where(distilled.mask, positives) if fused else distilled.ids.clamp(min=0)
        return torch.cat([positives, self.negatives.ids.clamp(min=0), live], 1)


class Update(Protocol):
    """Changes a model by one step a call, and owns its optimizer's state."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One step. Returns the scalar losses before it: "cf", and "distill" where there is something to distil."""
        ...

    def state(self) -> dict[str, Any]:
        """The optimizer's state: tensors and plain numbers by name."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        ...

    def row_kinds(self) -> dict[str, str]:
        """Which names of `state`, or beginnings of them before a ".", have a row a user ("users") or an item ("items")."""
        ...


class EagerUpdate:
    """Any model and any optimizer."""

    def __init__(self, model: Recommender, config: ModelConfig, terms: Terms) -> None:
        self.model, self.terms = model, terms
        decay = {"weight_decay": config.weight_decay} if config.weight_decay else {}
        self.optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr, **decay)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        cf, lambda_, tau_learner, tau_guide = self.terms
        widths = 1, batch.negatives.ids.shape[1], batch.distill.ids.shape[1]
        scores = self.model.score(batch.users, batch.listed(fused=False)).split(
            widths, dim=1
        )  # one call scores everything
        loss = LOSSES[cf](scores[0][:, 0], scores[1], batch.negatives.mask)
        losses = {"cf": loss.detach()}
        if scores[2].shape[1]:
            distill = distill_loss(scores[2], batch.guide_scores, tau_learner, tau_guide, batch.distill.mask)
            loss, losses["distill"] = loss + lambda_ * distill, distill.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return losses

    def state(self) -> dict[str, Any]:
        states = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, values in states.items() for name, value in values.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        if "step" in state:
            state = to_torch(state, list(self.model.parameters()), self.optimizer)
        states: dict[int, dict[str, Any]] = {}
        for name, value in state.items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})

    def row_kinds(self) -> dict[str, str]:
        kinds = self.model.row_kinds()
        names = [name for name, _ in self.model.named_parameters()]
        return {str(index): kinds[name] for index, name in enumerate(names) if name in kinds}


TABLES = ("user_table", "item_table", "item_bias")  # in the order of a TableModel's parameters


def to_torch(state: dict[str, Any], parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer of FUSED as the one of torch.optim with the same rule has it."""
    tensor = isinstance(optimizer, torch.optim.Adagrad)  # keeps its step in one
    found: dict[str, Any] = {}
    for index, (table, parameter) in enumerate(zip(TABLES, parameters, strict=True)):
        names = [name for name in state if name.startswith(f"{table}.")]
        found |= {f"{index}.{name.partition('.')[2]}": state[name].view(parameter.shape) for name in names}
        if names:
            found[f"{index}.step"] = torch.tensor(float(state["step"])) if tensor else int(state["step"])
    return found


def from_torch(state: dict[str, Any], optimizer: RowOptimizer) -> dict[str, Any]:
    """The other way: what the torch.optim of the rule has, for an optimizer of FUSED."""
    found: dict[str, Any] = {"step": 0}
    for index, (table, like) in enumerate(zip(TABLES, optimizer.tables().values(), strict=True)):
        for name in optimizer.names:
            value = state.get(f"{index}.{name}")  # none before the first step
            found[f"{table}.{name}"] = torch.zeros_like(like) if value is None else value.view(like.shape)
        found["step"] = max(found["step"], int(state.get(f"{index}.step", 0)))
    return found


class FusedUpdate:
    """Tables whose dot product is the whole score, an optimizer of FUSED, and batches without missing negatives."""

    def __init__(self, tables: Tables, config: ModelConfig, terms: Terms) -> None:
        self.terms = terms
        self.optimizer = FUSED[config.optimizer](tables, lr=config.lr)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        try:
            found = bd_step_update(
                self.optimizer,
                batch.users,
                batch.positives,
                batch.negatives.ids,
                batch.distill,
                batch.guide_scores,
                **self.terms._asdict(),
            )
        except NonFiniteLoss:  # as a GPU leaves it: the trainer looks for diverged rows at the end of an epoch
            with torch.no_grad():
                self.optimizer.user_table[batch.users] = torch.nan
            nan = batch.guide_scores.new_full((), torch.nan)
            found = StepLoss(nan, nan, nan)
        return {"cf": found.cf, "distill": found.distill} if batch.distill.ids.shape[1] else {"cf": found.cf}

    def state(self) -> dict[str, Any]:
        return dict(self.optimizer.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def row_kinds(self) -> dict[str, str]:
        return {"user_table": "users", "item_table": "items", "item_bias": "items"}


def make_update(model: Recommender, config: ModelConfig, terms: Terms, *, fuse: bool, sharded: bool = False) -> Update:
    """A fresh update: fused if the caller allows it (no negative is ever missing), and model and optimizer do.

    sharded: the model is this process's shard of one.
    """
    tables = model.tables() if isinstance(model, TableModel) else None
    if sharded:
        from bidistill.sharded.update import ShardedUpdate

        assert tables is not None
        return ShardedUpdate(tables, config, terms, fuse=fuse)
    known = config.optimizer in FUSED and not config.weight_decay
    if fuse and known and tables is not None and tables[0].dtype == torch.float32:
        return FusedUpdate(tables, config, terms)
    return EagerUpdate(model, config, terms)
