"""What a run keeps in its checkpoints, and how it takes that back: after it was stopped, or when its data have grown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from bidistill.distill import Distiller
from bidistill.errors import UserError
from bidistill.files.tensors import below
from bidistill.models import Recommender
from bidistill.models.base import learns
from bidistill.runs.folder import RunFolder
from bidistill.runs.growth import Growth
from bidistill.runs.records import Metrics, State
from bidistill.training.learner import Place
from bidistill.training.phases import Progress, learn_in, rows_of
from bidistill.training.steering import Steered


class Resumed(Steered):
    """The part of a `Trainer` that saves and restores."""

    folder: RunFolder | None
    fingerprint: str
    pretrained: Metrics
    sums: dict[str, float | Tensor]

    @property
    def distiller(self) -> Distiller | None:
        """Draws the items on which the models follow each other; None where they do not."""
        return self.engine.objective.distiller

    def _metrics(self, model: Recommender) -> dict[str, dict[str, float]]:
        """Of a model, on what is held out."""
        raise NotImplementedError

    def _most_epochs(self, phase: str) -> int:
        """How many a phase has, if it does not end early."""
        if self.engine.fitted(phase):
            return 1
        return self.config.train.epochs if phase == "joint" else self.config.train.pretrain_epochs

    def _place(self, name: str, state: State) -> Place:
        """Where a model was in the checkpoint of this state."""
        phase = state.progress.phase
        learned = name in learn_in(phase, self.config)
        rows = [row for row in rows_of(state.history, phase) if row["epoch"] and learned]
        values = [row.get(f"{name}/{self.config.train.monitor}") for row in rows]
        return Place(self._most_epochs(phase), values, joint=learned and phase == "joint")

    def save(self) -> None:
        """Write a checkpoint into the run folder, if there is one."""
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {}
        state: dict[str, Any] = {
            "progress": asdict(self.progress),
            "history": self.history,
            "pretrained": self.pretrained,
        }
        columns = self.partition.columns("save", [float(total) for total in self.sums.values()])
        state |= {"stopped": self.stopped, "notes": self.notes}
        state["sums"] = dict(zip(self.sums, columns, strict=True))
        for name, learner in self.engine.learners.items():
            own, state[name] = learner.state()
            tensors |= {f"{name}.{key}": value for key, value in own.items()}
        if self.distiller is not None:
            tensors |= {f"method.{key}": value for key, value in self.distiller.tensors().items()}
        with self.folder.held():
            self.folder.save(self.config, self.fingerprint, tensors, state)

    def _load_grown(self, tensors: dict[str, Tensor], state: State, growth: Growth) -> None:
        """`_load` of a state from before users or items were added. Saves what comes of it."""
        assert self.folder is not None
        with self._fitting():
            for name, learner in self.engine.learners.items():
                learner.load_grown(
                    below(f"{name}.", tensors), getattr(state, name).model_dump(), growth, self._place(name, state)
                )
            if self.distiller is not None:
                models = {name: learner.model for name, learner in self.engine.learners.items()}
                self.distiller.load_grown(below("method.", tensors), growth, models)
        self.progress, self.history = Progress(**state.progress.model_dump() | {"step": 0}), state.history
        self.stopped = state.stopped
        for name in state.pretrained:
            if learns(self.engine.learners[name].model):
                model = self.engine.new_model(name)
                self.folder.grow_pretrained(name, model, growth, self.fingerprint)
            else:
                self.engine.fit(name)
                model = self.engine.learners[name].model
                self.folder.save_pretrained(name, model, self.fingerprint)
            self.pretrained[name] = self._metrics(model)
        for name in self.engine.learners:
            if self._fitted_just_now(name, state):
                self.engine.fit(name)
        self.save()

    def _load(self, tensors: dict[str, Tensor], state: State) -> None:
        with self._fitting():
            for name, learner in self.engine.learners.items():
                numbers = getattr(state, name).model_dump()
                learner.load_state(below(f"{name}.", tensors), numbers, self._place(name, state))
                if name in state.pretrained and not learns(learner.model):
                    assert self.folder is not None
                    self.folder.load_pretrained(name, learner.model, self.fingerprint)
                elif self._fitted_just_now(name, state):
                    self.engine.fit(name)
            if self.distiller is not None:
                self.distiller.load_tensors(below("method.", tensors))
        self.progress = Progress(**state.progress.model_dump())
        self.history, self.pretrained = state.history, state.pretrained
        self.stopped, self.notes = state.stopped, {**state.notes}
        for name, sums in state.sums.items():
            self.sums[name] = self.partition.own(sums)

    def _fitted_just_now(self, name: str, state: State) -> bool:
        """Whether the model was fitted when the checkpoint was written, and not yet kept as its pretraining left it."""
        phase = state.progress.phase
        mine = (
            name in learn_in(phase, self.config)
            and self.engine.fitted(phase)
            and not learns(self.engine.learners[name].model)
        )
        return mine and state.progress.epoch > 0 and name not in state.pretrained

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Inside, tensors or numbers of another model than the settings describe are a UserError."""
        try:
            yield
        except UserError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the checkpoint does not hold the tensors of this run ({reason}): restore it, or start again"
            ) from error
