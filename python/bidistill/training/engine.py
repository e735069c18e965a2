"""The teacher and the student in training, and one step of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from bidistill.config import Config, ModelConfig
from bidistill.data import Split
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.evaluation.ranks import seen_items
from bidistill.models import Recommender, build_model
from bidistill.models.base import FittedModel, is_fitted, learns
from bidistill.models.checks import check_apart, check_gradients, check_model
from bidistill.models.given import GIVEN, given_config, missing
from bidistill.seeds import seed_of
from bidistill.training.batches import Objective
from bidistill.training.fitted import FittedLearner, fit_model
from bidistill.training.fusion import obstacle, told
from bidistill.training.learner import Learner
from bidistill.training.phases import STREAMS, learn_in
from bidistill.training.strategy import strategy_of

NAMES = ("teacher", "student")


class Engine:
    """The models of a run, what they learn from, and how.

    Everything random in a step comes from (seed, phase, step) alone, so there is no generator state to save: training goes on bit
    for bit from any step, and a control meets the same batches and negatives as the distilled run.

    Args:
        config: all settings, without a word such as "auto" among them.
        split: what to train on.
        partition: what of the run is here; everything by default.
        given: modules in the place of the "teacher" or the "student" that the settings describe; they are trained in place.

    Attributes:
        users, items: [n] int64, the training interactions, on the device.
        seen: the training items of the users, as CSR rows.
        learners: the "teacher" and the "student" in training.
        objective: what they learn from.
    """

    def __init__(
        self,
        config: Config,
        split: Split,
        partition: Partition | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.given = config, given or {}
        self.partition = partition or Partition.whole(split.n_users, split.n_items)
        self.device = self.partition.device(find_device(config.run.device))
        self.users = torch.from_numpy(split.train_users).to(self.device)
        self.items = torch.from_numpy(split.train_items).to(self.device)
        self.seen = seen_items(split, "val", self.device, only=self.partition.own_users)
        models = {name: self.given[name] if name in self.given else self.new_model(name) for name in NAMES}
        for name, model in models.items():
            if is_fitted(model):
                self.partition.require_whole(f"the {name} {type(model).__name__} is fitted")
            check_model(name, model, split.n_users, split.n_items)
            check_gradients(name, model, config.model(name).optimizer)
            model.to(self.device)
            model.train(True)
        check_apart(models)
        popularity = torch.bincount(self.items, minlength=split.n_items)
        strategy = strategy_of(self.partition)
        strategy.check(config)
        self.objective = Objective(config, models, self.seen, strategy, self.partition, popularity)
        self.learners = {
            name: (Learner if learns(model) else FittedLearner)(
                model, config.model(name), self.objective.terms(name), strategy, fuse=self.objective.fuse
            )
            for name, model in models.items()
        }

    def new_model(self, name: str) -> Recommender:
        """A "teacher" or "student" of its own, on the device: untrained, or a copy of the given one."""
        if name in self.given:
            copied: Recommender = copy.deepcopy(self.given[name])
            return copied
        seed = seed_of(self.config.run.seed, name)
        model: Recommender = new_model(self.config.model(name), self.partition, seed).to(self.device)
        return model

    def learner(self, name: str) -> Learner:
        """The "teacher" or the "student" in training. Raises UserError for another name."""
        if name not in self.learners:
            raise UserError(f"a run trains the teacher and the student, found {name!r}: name one of them")
        return self.learners[name]

    def unfused(self) -> list[str]:
        """Which models train without the fused step, and why: a sentence for each reason."""
        models = {name: each for name, each in self.learners.items() if learns(each.model)}
        return told(
            {name: self.objective.unfused or obstacle(each.model, each.config) for name, each in models.items()}
        )

    def fitted(self, phase: str) -> bool:
        """Whether the phase is the pretraining of a model that is fitted in one call."""
        return phase != "joint" and all(is_fitted(self.learners[name].model) for name in learn_in(phase, self.config))

    def fit(self, name: str) -> None:
        """Fit the "teacher" or the "student", which then is as its pretraining leaves it. Raises UserError as `fit_model`."""
        learner = self.learners[name]
        seed = seed_of(self.config.run.seed, name, "fit")
        fit_model(f"the {name} {type(learner.model).__name__}", cast(FittedModel, learner.model), self.seen, seed)
        learner.forget()

    def order(self, phase: str, epoch: int) -> Tensor:
        """[n] int64: the order of the training interactions in an epoch of a phase, see train.order."""
        generator = self._generator(phase, epoch)
        order = torch.randperm(len(self.users), generator=generator).to(self.device)
        if self.config.train.order == "users":
            places = torch.randperm(self.partition.n_users, generator=generator).to(self.device)
            order = order[places[self.users[order]].argsort(stable=True)]
        return order

    def step(self, phase: str, users: Tensor, positives: Tensor, step: int) -> dict[str, Tensor]:
        """One step of each model that learns in the phase.

        Args:
            users, positives: [B] int64, training interactions.
            step: number of the step in the phase.

        Returns:
            the losses before the step, scalars: "teacher/loss_cf", and "teacher/loss_distill" where the model is distilled.
        """
        generator = self._generator(phase, "step", step)
        seed = generator.initial_seed()
        torch.default_generator.manual_seed(seed)  # for models that draw themselves, such as dropout
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        batches = self.objective.batches(
            learn_in(phase, self.config), users, positives, step, generator, joint=phase == "joint"
        )
        losses: dict[str, Tensor] = {}
        for name, batch in batches.items():
            losses |= {f"{name}/loss_{key}": loss for key, loss in self.learners[name].step(batch).items()}
        return losses

    def _generator(self, phase: str, *key: Any) -> torch.Generator:
        """The random numbers of a part of a phase; on the CPU, so that every device draws alike."""
        return torch.Generator().manual_seed(seed_of(self.config.run.seed, STREAMS[phase], *key))


def new_model(config: ModelConfig, partition: Partition, seed: int) -> Recommender:
    """An untrained model as the options describe it, as far as it is here."""
    return build_model(config.build_config(partition.n_users, partition.n_items), seed=seed, **partition.own_rows)


def with_given(config: Config, given: Mapping[str, Any]) -> Config:
    """The settings of a run with these modules in the place of the models that settings describe.

    Raises:
        UserError: the settings are those of a run with a given module, and it is not given.
    """
    for name, module in given.items():
        config = config.with_overrides({f"{name}.{key}": value for key, value in given_config(module).items()})
    for name in NAMES:
        if config.model(name).kind == GIVEN and name not in given:
            raise missing(name, config.model(name).args.get("module", ""))
    return config


def find_device(name: str) -> torch.device:
    """The torch device of this name, or UserError where this machine lacks it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"run.device {name!r} cannot be used here ({str(error).splitlines()[0]}): try cpu") from error
    return device
