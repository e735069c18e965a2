"""A model in training: its update, its best state so far, and how to save and restore all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bidistill.config import ModelConfig
from bidistill.files.tensors import below
from bidistill.models import Recommender
from bidistill.optimizers import Schedule
from bidistill.runs.growth import Growth
from bidistill.training.strategy import Strategy
from bidistill.training.types import Terms


class Place(NamedTuple):
    """Where in a phase a model is.

    Attributes:
        epochs: the most that the phase has.
        values: the monitored metric after each epoch of the phase so far; None where it was not evaluated.
        joint: whether the model learns in the joint phase, which may have a learning rate and a schedule of its own.
    """

    epochs: int = 1
    values: Sequence[float | None] = ()
    joint: bool = False


class Learner:
    """A model in training.

    Args:
        model: any Recommender.
        config: learning rate, weight decay and optimizer.
        terms: what the model minimises.
        strategy: makes the update.
        fuse: let steps be fused where model and optimizer allow it; False where a negative may be missing.

    Attributes:
        schedule: of the learning rate in the phase.
        best_score, best_epoch: of the phase so far; -inf and 0 before the first evaluation.
        stale: evaluations since the best one.
    """

    def __init__(
        self, model: Recommender, config: ModelConfig, terms: Terms, strategy: Strategy, *, fuse: bool
    ) -> None:
        self.model, self.config, self.terms, self.strategy, self.fuse = model, config, terms, strategy, fuse
        self.restart()

    def restart(self, epochs: int = 1, *, joint: bool = False) -> None:
        """Begin a phase of at most so many epochs: keep the parameters, forget the optimizer's state and the best state.

        joint: with the learning rate and the schedule of the joint phase.
        """
        config = self.config.of_joint_phase() if joint else self.config
        self.update = self.strategy.update(self.model, config, self.terms, fuse=self.fuse)
        self.schedule = Schedule(self.update.optimizer, config.lr_scheduler, config.lr_scheduler_args, epochs)
        self.forget()

    def forget(self) -> None:
        """Forget the best state of the phase so far."""
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch, self.stale = -math.inf, 0, 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.update.optimizer.param_groups[0]["lr"])

    def set_lr(self, value: float) -> None:
        """Learn at another rate from the next step of this phase on."""
        for group in self.update.optimizer.param_groups:
            group["lr"] = value

    def step(self, batch: Any) -> dict[str, Tensor]:
        """Learn from what the strategy gives for a batch. Returns the losses before the step: see `Update`."""
        return self.update(batch)

    def observe(self, score: float, epoch: int) -> None:
        """Take note of an evaluation; keep the state if it is the best so far."""
        self.stale += 1
        if score > self.best_score:
            self.best_score, self.best_epoch, self.stale = score, epoch, 0
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def finite(self) -> bool:
        """Whether every parameter is a finite number."""
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    def restore_best(self) -> None:
        """Put the best state back, if there was an evaluation."""
        if self.best:
            self.model.load_state_dict(self.best)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on bit for bit: tensors by name, and plain values for JSON."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        scalars: dict[str, Any] = {}
        for name, value in self.update.state().items():
            (tensors if isinstance(value, Tensor) else scalars)[f"optimizer.{name}"] = value
        numbers = {"best_epoch": self.best_epoch, "stale": self.stale, "optimizer": scalars}
        return tensors, numbers | {"best_score": self.best_score if self.best else None}

    def load_state(
        self,
        tensors: dict[str, Tensor],
        numbers: dict[str, Any],
        place: Place = Place(),  # noqa: B008 (immutable)
    ) -> None:
        """Restore what `state` gave, at this place.

        Raises:
            KeyError, RuntimeError or ValueError: it belongs to another model.
        """
        self.restart(place.epochs, joint=place.joint)
        for value in place.values:
            self.schedule.step(value)
        self.model.load_state_dict(below("model.", tensors))
        self.best = below("best.", tensors)
        self.best_score = -math.inf if numbers["best_score"] is None else numbers["best_score"]
        self.best_epoch, self.stale = numbers["best_epoch"], numbers["stale"]
        device = next(iter(self.model.parameters())).device
        moved = {name: value.to(device) if value.dim() else value for name, value in tensors.items()}  # numbers stay
        self.update.load_state(below("optimizer.", moved | numbers["optimizer"]))

    def load_grown(
        self,
        tensors: dict[str, Tensor],
        numbers: dict[str, Any],
        growth: Growth,
        place: Place,
    ) -> None:
        """`load_state` of what `state` gave before users or items were added; theirs are the rows that this model has now.

        The best state is forgotten, since its score was that of other data.
        """
        own = growth.kinds(below("model.", tensors), self.model)
        kinds = {f"model.{name}": kind for name, kind in own.items()}
        kinds |= {f"optimizer.{name}": kind for name, kind in self.update.row_kinds(own).items()}
        fresh, grown = self.state()[0], {}
        for name, old in tensors.items():
            kind = next((kind for start, kind in kinds.items() if f"{name}.".startswith(f"{start}.")), None)
            rows = {"users": growth.users, "items": growth.items}.get(kind or "", ())
            by_rows = old.dim() > 0 and len(old) == len(rows)  # what an optimizer keeps may have another shape
            if not name.startswith("best."):
                grown[name] = growth.rows(kind, old, fresh.get(name)) if kind is not None and by_rows else old
        self.load_state(grown, numbers | {"best_score": None, "best_epoch": 0, "stale": 0}, place)
