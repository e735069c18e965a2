"""A model that is fitted in one call: see `models.base.FittedModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bdkernels import Seen
from bidistill.config import Config
from bidistill.errors import UserError
from bidistill.models.base import FittedModel
from bidistill.models.checks import check_scores
from bidistill.models.sizes import ModelSize
from bidistill.optimizers import Schedule
from bidistill.runs.growth import Growth
from bidistill.training.learner import Learner, Place


class FittedLearner(Learner):
    """A model that no gradient trains. It has no optimizer, its best state is the one that it has, and checkpoints leave it out:
    its file in the folder `pretrained` has it.
    """

    def restart(self, epochs: int = 1, *, joint: bool = False) -> None:
        """Begin a phase."""
        self.update = Untrained(type(self.model).__name__)
        self.schedule = Schedule(self.update.optimizer, None, {}, epochs)
        self.forget()

    def set_lr(self, value: float) -> None:
        """Raise UserError: there is none."""
        raise UserError(f"set_lr: {type(self.model).__name__} is fitted in one call, and has no learning rate")

    def observe(self, score: float, epoch: int) -> None:
        """Take note of an evaluation."""
        self.best_score, self.best_epoch, self.stale = score, epoch, 0

    def finite(self) -> bool:
        """What `fit_model` has made sure of."""
        return True

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors: see the class."""
        return {}, super().state()[1]

    def load_state(
        self,
        tensors: dict[str, Tensor],
        numbers: dict[str, Any],
        place: Place = Place(),  # noqa: B008 (immutable)
    ) -> None:
        """Restore what `state` gave; not the model."""
        self.restart(place.epochs, joint=place.joint)
        self.best_epoch = numbers["best_epoch"]

    def load_grown(
        self,
        tensors: dict[str, Tensor],
        numbers: dict[str, Any],
        growth: Growth,
        place: Place,
    ) -> None:
        """Likewise: the model is to be fitted to the grown data."""
        self.load_state(tensors, numbers, place)


class Untrained:
    """The `Update` of a model that takes no steps. name: of its class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD([torch.zeros(0)], lr=0.0)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        raise UserError(f"{self.name} is fitted in one call, and takes no training step")

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """There is none."""

    def row_kinds(self, model: Mapping[str, str]) -> dict[str, str]:
        return {}


def fit_model(title: str, model: FittedModel, train: Seen, seed: int, *, whole: bool = True) -> None:
    """Fit a model, and look whether it can be used.

    Args:
        title: what messages call it.
        train: the training items of all users.
        seed: of whatever is random in it, torch's default generator included.
        whole: whether the model has all rows of its tables here.

    Raises:
        UserError: it has numbers that are not finite, or its ways to score contradict each other.
    """
    torch.default_generator.manual_seed(seed)
    with torch.no_grad():
        model.fit(train, seed)
    for name, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{title}: after fit, {name} has numbers that are not finite: choose other settings of it")
    if whole:
        check_scores(title, model, model.n_users, model.n_items)


def settled(config: Config, found: Mapping[str, ModelSize]) -> Config:
    """The settings of a run some of whose models no gradient trains: such a teacher stays as it is in the joint phase, and with
    such a student there is none.

    Args:
        found: the sizes of the "teacher" and the "student".

    Raises:
        UserError: the settings ask such a model to learn.
    """
    distilling = config.distill.method != "none"
    if not found["student"].learns:
        if distilling:
            raise UserError(
                f"the student ({config.student.kind}) is fitted in one call, so it cannot learn from a teacher: choose a"
                " student.kind that gradients train, such as mf, or set distill.method to none"
            )
        config = config.with_overrides({"train.epochs": 0})
    if not found["teacher"].learns:
        if distilling and config.distill.lambda_teacher:
            raise UserError(
                f"the teacher ({config.teacher.kind}) is fitted in one call, so it cannot learn from the student, but"
                f" distill.lambda_teacher is {config.distill.lambda_teacher:g}: set distill.lambda_teacher to 0"
            )
        config = config.with_overrides({"train.joint": "student"})
    return config
