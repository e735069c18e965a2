"""The training loop: each model alone, then both together."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bidistill.config import Config
from bidistill.data import Split
from bidistill.distill import Distiller
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError, enough_memory
from bidistill.evaluation.evaluate import evaluate
from bidistill.logs import log
from bidistill.models import Recommender
from bidistill.runs.folder import RunFolder
from bidistill.runs.growth import Growth
from bidistill.runs.records import Metrics
from bidistill.training.baselines import baseline_models
from bidistill.training.callbacks import Callback, standard_callbacks
from bidistill.training.engine import Engine, with_given
from bidistill.training.interrupt import Interrupt
from bidistill.training.phases import PHASES, Progress, Row, learn_in, problems
from bidistill.training.resuming import Resumed
from bidistill.training.settings import resolve_config, set_threads
from bidistill.training.steering import ELSEWHERE


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        teacher, student: in their best state of the joint phase, by the monitored validation metric.
        history: one row an epoch; see `Callback`.
        metrics: {"teacher": {"val": {...}, "test": {...}}, "student": ...}, as `evaluate` gives them.
        pretrained: the same for the best states of the pretraining, where the joint phase began.
        baselines: {"popularity": {"val": {...}, "test": {...}}, ...}, the same for what `eval.baselines`
            and `eval.generator` ask for.
        stopped: why a callback stopped the run, or "".
    """

    teacher: Recommender
    student: Recommender
    history: list[Row]
    metrics: Metrics
    pretrained: Metrics
    baselines: Metrics
    stopped: str = ""


class Trainer(Resumed):
    """Trains a teacher and a student.

    Args:
        config: all settings.
        split: what to train and evaluate on.
        callbacks: besides the ones that `config.run` asks for, which come after these and see what these have logged.
        warm_start: the folder of another run, whose pretraining this run takes over instead of making its own.
        overwrite: replace the run that the folder `config.run.out` may hold.
        teacher, student: modules to train in place of the models that `config` describes, from the state that they are in; see
            `Recommender` for what they must have.

    Raises:
        UserError: settings that do not fit the data, a pretraining of other models or data, or a module that lacks a method.

    Attributes:
        engine: the models in training, and one step of them.
        progress, history: how far the run is, and its rows.
        partition: what of the users and items is here: everything, unless torchrun started this program (see `Partition`).
    """

    @enough_memory()
    def __init__(
        self,
        config: Config,
        split: Split,
        *,
        callbacks: Sequence[Callback] = (),
        warm_start: str | Path | None = None,
        overwrite: bool = False,
        teacher: torch.nn.Module | None = None,
        student: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.partition = Partition.find(config.run, split.n_users, split.n_items)
        self.fingerprint = split.fingerprint()
        given = _given(teacher, student)
        config = resolve_config(self.partition, with_given(config, given), split, self.fingerprint, given)
        self.config, self.split, self.overwrite = config, split, overwrite
        set_threads(config.run)
        self.folder = RunFolder(config.run.out, self.partition) if config.run.out else None
        self.engine = Engine(config, split, self.partition, given)
        self.progress = Progress()
        self.history: list[Row] = []
        self._holding = ExitStack()  # of the folder, from resume to the end of fit
        self.pretrained: Metrics = {}
        self.sums: dict[str, float | Tensor] = {}  # of the losses in the steps of the running epoch
        self.seconds: dict[str, float] = {}  # of the parts of the running epoch, here
        self.callbacks = [*callbacks, *(standard_callbacks(config.run) if self.partition.main else [])]
        if warm_start is not None:
            for name, learner in self.engine.learners.items():
                RunFolder(warm_start, self.partition).load_pretrained(name, learner.model, self.fingerprint)
            self.progress = Progress("joint")

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        *,
        config: Config | None = None,
        split: Split | None = None,
        callbacks: Sequence[Callback] = (),
        grow: bool = False,
        teacher: torch.nn.Module | None = None,
        student: torch.nn.Module | None = None,
    ) -> Trainer:
        """A Trainer that goes on where the run in this folder stands: its `fit()` gives what an undisturbed run gives.

        Args:
            config: settings, where not the run's: `run` (not its seed), `data` and a larger `train.epochs` may differ.
            split: the run's split, if it is at hand; else it is read from the folder.
            grow: allow a split with users or items besides the run's: they get fresh rows, everybody else keeps theirs, and the
                run goes on from the beginning of its epoch. The best states so far are forgotten, since their scores were those
                of other data, the metrics of the pretraining are taken again, and the folder is changed at once.
            teacher, student: modules of the same classes and sizes (with `grow`: of the new ones), where the run was given some;
                their states are replaced by those of the run.

        Raises:
            UserError: no checkpoint, a damaged file, other settings than the run's, or another split (with `grow`: one that
                lacks users or items of the run's).
        """
        home = RunFolder(folder)
        config = None if config is None else with_given(config, _given(teacher, student))
        config, split, state = home.open(config, split, grow)
        trainer = cls(config, split, callbacks=callbacks, teacher=teacher, student=student)
        if grow:
            trainer.partition.require_whole("a run grows")
        assert trainer.folder is not None
        home = trainer.folder
        with ExitStack() as stack:
            stack.enter_context(home.held())
            if home.state() != state:
                raise UserError(f"{folder} was changed by another process just now: try again")
            if trainer.fingerprint == state.split:
                trainer._load(home.tensors(), state)
            else:
                home.unfinish()
                trainer._load_grown(home.tensors(), state, Growth.between(home.split(), split))
            if grow:
                split.save(home.path / "split.npz")  # after the checkpoint: until then the folder tells the old numbers
            trainer._holding = stack.pop_all()
        return trainer

    @enough_memory()
    def fit(self) -> Result:
        """Run what is left of the pretraining and the joint phase. Ctrl-C finishes the step and saves a checkpoint.

        Raises:
            UserError: the folder holds another run or cannot be written (before training), or the training diverged.
            KeyboardInterrupt: Ctrl-C.
        """
        with self._holding:
            if self.folder is None:
                return self._fit()
            self.folder.make()
            with self.folder.held():
                self._open(self.folder)
                return self._fit()

    @enough_memory()
    def pretrain(self, name: str) -> float:
        """Train the "teacher" or the "student" alone, as its pretraining does, and nothing else. It ends in its best state.

        Returns:
            the best value of `train.monitor` on validation.

        Raises:
            UserError: another name, the training diverged, or the settings name a run folder, which holds whole runs.
            KeyboardInterrupt: Ctrl-C.
        """
        self.engine.learner(name)
        if self.folder is not None:
            raise UserError(f"run.out is {self.folder.path}, but the {name} alone is no whole run: unset run.out")
        self.progress = Progress(f"pretrain_{name}")
        with self._training() as interrupt:
            self._run_phase(self.progress.phase, interrupt)
        return self.engine.learner(name).best_score

    def _fit(self) -> Result:
        if self.progress == Progress("joint"):  # a warm start
            for name in self.engine.learners:
                self._end_pretraining(name)
        with self._training() as interrupt:
            for phase in PHASES[PHASES.index(self.progress.phase) :]:
                self._run_phase(phase, interrupt)
            learned = learn_in("joint", self.config)
            metrics = {
                name: self._metrics(learner.model) if name in learned else self.pretrained[name]
                for name, learner in self.engine.learners.items()
            }
            compared = {name: self._metrics(model) for name, model in baseline_models(self.engine, self.split)}
        models = {name: learner.model for name, learner in self.engine.learners.items()}
        if self.folder is not None:
            outcome = metrics, self.pretrained, compared, self.history, self.stopped
            self.folder.finish(self.config, models, self.fingerprint, *outcome)
        pair = models["teacher"], models["student"]
        return Result(*pair, self.history, metrics, self.pretrained, compared, self.stopped)

    @contextmanager
    def _training(self) -> Iterator[Interrupt]:
        """Inside, Ctrl-C waits for the end of a step, torch's random numbers are the run's own, and what diverges says so."""
        with (
            Interrupt(launched=self.partition.launched) as interrupt,
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
        ):
            self.partition.stop_when(lambda: interrupt.asked or bool(self.stopped or self.progress.ended))
            try:
                self._tell_unfused()
                yield interrupt
            except UserError:
                raise
            except ValueError as error:
                self._check_finite()  # the operators refuse scores that are not numbers; say why they are not
                if "finite" in str(error):
                    raise self._diverged(learn_in(self.progress.phase, self.config)) from error
                raise
            finally:
                self._tell("on_end")

    def _tell_unfused(self) -> None:
        """Say which models train without the fused step, and why."""
        if self.config.run.progress and self.partition.main:
            for sentence in self.engine.unfused():
                log.info(sentence)

    def _open(self, folder: RunFolder) -> None:
        """Begin the run in its folder, or go on there."""
        mine = folder.restarted() and not self.progress.started  # begun here, before a launcher had to start it again
        if mine and folder.has_checkpoint():
            _, _, state = folder.open(self.config, self.split)
            self._load(folder.tensors(), state)
        if self.progress.started:
            folder.write_config(self.config)
        else:
            folder.create(self.config, self.split, self.overwrite or mine)

    def _run_phase(self, phase: str, interrupt: Interrupt) -> None:
        """Start or continue a phase until it is over; restore the best states."""
        names, train, epochs = learn_in(phase, self.config), self.config.train, self._most_epochs(phase)
        steps = math.ceil(self.interactions / train.batch_size)
        if self.progress.phase != phase:
            self.progress, self.sums, self.notes = Progress(phase), {}, {}
        if not self.progress.started:
            for name in names:
                self.engine.learners[name].restart(epochs, joint=phase == "joint")
        self._tell("on_phase", phase, epochs, steps)
        if not self.progress.started:
            self.progress.started = True
            self._end_epoch(evaluated=not self.engine.fitted(phase))
        while self.progress.epoch < epochs and not self._over(names) and self._run_epoch(steps, interrupt):
            self.progress.epoch, self.progress.step = self.progress.epoch + 1, 0
            self._end_epoch(evaluated=self.progress.epoch % train.eval_every == 0 or self.progress.epoch == epochs)
        if self.progress.step or self.progress.epoch % self.config.run.checkpoint_every:
            self.save()
        if self.partition.main:
            for name in names:
                for problem in problems(self.history, self.config, phase, name):
                    warnings.warn(problem, stacklevel=4)
        for name in names:
            self.engine.learners[name].restore_best()
            if phase != "joint":
                self._end_pretraining(name)

    def _run_epoch(self, steps: int, interrupt: Interrupt) -> bool:
        """The steps of an epoch that are not done yet. Whether the epoch is whole: a callback may end it."""
        if self.engine.fitted(self.progress.phase):
            return self._fit_models()
        progress, every, distilling = self.progress, self.config.run.checkpoint_steps, self._distilling() is not None
        size = self.config.train.batch_size
        with self._timed("steps"):
            order = self.engine.order(progress.phase, progress.epoch)
            batches = zip(self.engine.users[order].split(size), self.engine.items[order].split(size), strict=True)
        for step, (users, positives) in islice(enumerate(batches), progress.step, None):
            if distilling:
                with self._timed("resample"):
                    self.engine.objective.resample(progress.epoch * steps + step, steps)
            with self._timed("steps"):
                self.step(users, positives, progress.epoch * steps + step)
            progress.step = step + 1
            self._tell("on_step")
            stop = self.partition.stopping
            if stop and self.partition.all("go on", not interrupt.asked):
                return progress.step == steps
            if stop or (every and progress.step % every == 0 and progress.step < steps):
                self.save()
            if stop:
                raise KeyboardInterrupt
        return True

    def _fit_models(self) -> bool:
        """The one epoch of a phase in which a model is fitted."""
        with self._timed("fit"):
            for name in learn_in(self.progress.phase, self.config):
                self.engine.fit(name)
        return True

    def step(self, users: Tensor, positives: Tensor, step: int) -> None:
        """One step of each model that learns in the phase, on these training interactions: ids, int64 [B] each.

        step: its number in the phase. `fit` does all of this; to time a step, or for a loop of your own.
        """
        for column, loss in self.engine.step(self.progress.phase, users, positives, step).items():
            self.sums[column] = self.sums.get(column, 0.0) + loss.double() * len(users)

    def _end_epoch(self, evaluated: bool = True) -> None:
        """Evaluate, write the history's row, save a checkpoint if it is due."""
        self._check_finite()
        progress, config = self.progress, self.config
        row: Row = {}
        totals = self.partition.sums("losses", [float(total) for total in self.sums.values()])
        for name, total in zip(self.sums, totals, strict=True):
            row[name] = total / self.interactions
        self.sums = {}
        names = learn_in(progress.phase, config)
        for name in names if evaluated else ():
            learner = self.engine.learners[name]
            with self._timed("evaluate"):
                found = self._evaluate(learner.model, "val")
            learner.observe(found[config.train.monitor], progress.epoch)
            row |= {f"{name}/{metric}": value for metric, value in found.items() if metric != "users"}
        for name in names:
            learner = self.engine.learners[name]
            row[f"{name}/best_epoch"] = learner.best_epoch if learner.best else progress.epoch
            if learner.schedule.lr is not None:
                row[f"{name}/lr"] = learner.schedule.lr
            if progress.epoch:
                learner.schedule.step(row.get(f"{name}/{config.train.monitor}"))
        if (distiller := self._distilling()) is not None and progress.step == 0:
            row |= distiller.numbers(*self.engine.objective.pair, progress.epoch)
        times = {f"{part}_seconds": round(seconds, 3) for part, seconds in self.seconds.items()}
        about = {"phase": progress.phase, "epoch": progress.epoch, "interactions": self.interactions}
        about["seconds"] = round(sum(self.seconds.values()), 3)
        self.history.append(row := self._noted(about | times | row))
        self.seconds, self._row = {}, row
        self._tell("on_epoch", row)
        self._row = None
        if progress.epoch % config.run.checkpoint_every == 0:
            self.save()

    def _distilling(self) -> Distiller | None:
        """What this phase distils by, if it does."""
        return self.distiller if self.progress.phase == "joint" else None

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.engine.device

    @property
    def interactions(self) -> int:
        """Training interactions of an epoch."""
        return len(self.engine.users)

    @property
    def done(self) -> int:
        """Training interactions that the running phase has learned from, those of every epoch."""
        size, n = self.config.train.batch_size, self.interactions
        return self.progress.epoch * n + min(self.progress.step * size, n)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Adds what runs inside to the seconds of this part of the epoch."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def _check_finite(self) -> None:
        learners = self.engine.learners.items()
        bad = [name for name, learner in learners if not self.partition.all("finite", learner.finite())]
        if bad:
            raise self._diverged(bad)

    def _diverged(self, names: Sequence[str]) -> UserError:
        """What to say where numbers of these models are no longer finite."""
        progress = f"after {self.progress.epoch} epochs of {self.progress.phase}"
        remedy = f"lower {' or '.join(f'{name}.lr' for name in names)}"
        if self.progress.phase == "joint" and self.config.distill.method != "none":
            remedy += f" or {' or '.join(f'distill.lambda_{name}' for name in names)}, or raise distill.tau_learner"
        return UserError(f"{' and '.join(names)} diverged {progress}: {remedy}")

    def _over(self, names: Sequence[str]) -> bool:
        """Whether a phase ends before its last epoch: no model gets better, or a callback has asked for it."""
        if not self.partition.all("the run", not self.stopped):
            self.stopped = self.stopped or ELSEWHERE
        if not self.partition.all("the phase", not self.progress.ended):
            self.progress.ended = self.progress.ended or ELSEWHERE
        if self.stopped or self.progress.ended:
            return True
        patience = self.config.train.patience
        return patience > 0 and all(self.engine.learners[name].stale >= patience for name in names)

    def _evaluate(self, model: Recommender, part: str) -> dict[str, float]:
        config, seen = self.config.eval, self.engine.seen if part == "val" else None
        model.train(False)
        found = evaluate(
            model,
            self.split,
            part,
            config.ks,
            config.batch_size,
            seen=seen,
            max_users=config.users,
            partition=self.partition,
            metrics=config.metrics,
        )
        model.train(True)
        return found

    def _metrics(self, model: Recommender) -> dict[str, dict[str, float]]:
        parts = ["val", "test"] if len(self.split.test_users) else ["val"]
        return {part: self._evaluate(model, part) for part in parts}

    def _end_pretraining(self, name: str) -> None:
        self.pretrained[name] = self._metrics(self.engine.learners[name].model)
        if self.folder is not None:
            self.folder.save_pretrained(name, self.engine.learners[name].model, self.fingerprint)

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)


def _given(teacher: torch.nn.Module | None, student: torch.nn.Module | None) -> Mapping[str, Any]:
    """The modules that were given, by name."""
    return {name: module for name, module in (("teacher", teacher), ("student", student)) if module is not None}
