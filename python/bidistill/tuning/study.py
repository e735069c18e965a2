"""The trials of a search: an Optuna study in the folder, as it is read, asked and told."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidistill.errors import UserError
from bidistill.files.access import unwritable
from bidistill.seeds import seed_of

JOURNAL = "study.log"
NAME = "bidistill"
AT_FIRST = 8  # drawn trials that lie evenly in the space, before the sampler goes by what it has seen
BEFORE_PRUNING = 4  # whole trials before any is given up
KINDS = ("as_is", "control", "drawn")
PRUNERS = ("median", "none")
DONE, PRUNED, FAILED = "done", "pruned", "failed"


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: from 0, in the order of the search.
        kind: "as_is": the settings as they stand; "control": without distillation; "drawn": from the space.
        state: "done", "pruned" (given up) or "failed".
        value: the best of `train.monitor` on validation so far as it was trained; None where it failed before.
        settings: what it changed, {"section.option": value}.
        epochs, kept: how many it was trained, and after which its state was best.
        seconds: that it took.
        reason: why it failed, or what a warning said, or "".
    """

    number: int
    kind: str
    state: str
    value: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    kept: int = 0
    seconds: float = 0.0
    reason: str = ""


def optuna() -> Any:
    """The library. Raises UserError where it is not installed."""
    try:
        import optuna as found
    except ImportError as error:
        raise UserError(
            f"tuning needs optuna, which cannot be imported here ({error}): install it with pip install 'bdkernels[tune]'"
        ) from error
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Optuna tells errors alone."""
    library = optuna()
    before = library.logging.get_verbosity()
    library.logging.set_verbosity(library.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
            yield
    finally:
        library.logging.set_verbosity(before)


class Study:
    """The study in a folder that this process holds.

    A trial depends on the seed, its number and the trials before it alone, so a search that was stopped goes on as if it had not
    been.

    Args:
        seed: of what is drawn.
        prune: one of PRUNERS. warm_up: epochs before a trial may be given up.

    Raises:
        UserError: the study cannot be read or written.
    """

    def __init__(self, folder: Path, seed: int, prune: str, warm_up: int) -> None:
        library, self.seed, self.path = optuna(), seed, folder / JOURNAL
        _mend(self.path)
        pruner = library.pruners.NopPruner()
        if prune == "median":
            pruner = library.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_warmup_steps=warm_up)
        try:
            from optuna.storages.journal import JournalFileBackend

            storage = library.storages.JournalStorage(JournalFileBackend(str(self.path)))
            self.study = library.create_study(
                storage=storage, study_name=NAME, direction="maximize", load_if_exists=True, pruner=pruner
            )
            for trial in self.study.get_trials(states=[library.trial.TrialState.RUNNING]):  # of a process that died
                about = json.loads(trial.user_attrs.get("about", '{"state": "failed", "value": null}'))
                self._end(trial.number, about["state"], about["value"])
        except OSError as error:
            raise unwritable(self.path, error) from error
        except Exception as error:  # a damaged journal fails in a dozen ways: JSON, keys, numbers, ...
            raise UserError(
                f"{self.path} is damaged ({type(error).__name__}: {error}): restore it, or choose another folder"
            ) from error

    def trials(self) -> list[Trial]:
        """Those that came to an end; what was interrupted is left out, and done again."""
        found: list[Trial] = []
        for each in self.study.get_trials(deepcopy=False):
            if "about" in each.user_attrs:
                about = json.loads(each.user_attrs["about"])
                found.append(Trial(number=len(found), **about))
        return found

    def ask(self, number: int, fixed: dict[str, Any]) -> Any:
        """The Optuna trial of this number. fixed: what it takes for entries of the space; the others are drawn."""
        samplers, seed = optuna().samplers, seed_of(self.seed, "tune", number) % 2**32
        sampler = samplers.TPESampler(seed=seed, n_startup_trials=AT_FIRST, multivariate=False, constant_liar=False)
        self.study.sampler = samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler
        with self._written():
            return self.study.ask()

    def tell(self, trial: Any, about: Trial) -> None:
        """Record how a trial ended."""
        values = {name: value for name, value in vars(about).items() if name != "number"}
        with self._written():
            trial.set_user_attr("about", json.dumps(values))
            self._end(trial, about.state, about.value)

    def drop(self, trial: Any) -> None:
        """End a trial that was interrupted: it does not count."""
        with self._written():
            self._end(trial, FAILED, None)

    def _end(self, trial: Any, state: str, value: float | None) -> None:
        states = optuna().trial.TrialState
        if state == DONE:
            self.study.tell(trial, value)
        else:
            self.study.tell(trial, state=states.PRUNED if state == PRUNED else states.FAIL)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Inside, an error of the disk is a UserError."""
        try:
            yield
        except OSError as error:
            raise unwritable(self.path, error) from error

    def importance(self) -> dict[str, float]:
        """How much each entry of the space mattered to be among the best, in shares of 1 (PED-ANOVA, Watanabe et al., IJCAI
        2023). Entries that some trials had no use for are left out; empty where too few trials or entries say something.
        """
        library = optuna()
        done = self.study.get_trials(states=[library.trial.TrialState.COMPLETE])
        trials = [each for each in done if json.loads(each.user_attrs["about"])["kind"] == "drawn"]
        if len(trials) < 2 * AT_FIRST or len(set.intersection(*(set(each.params) for each in trials))) < 2:
            return {}
        study = library.create_study(direction="maximize")
        study.add_trials(trials)
        evaluator = library.importance.PedAnovaImportanceEvaluator()
        found = library.importance.get_param_importances(study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _mend(path: Path) -> None:
    """Take away what a killed process has left: a line that it did not finish, and its lock."""
    try:
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        if not path.exists():
            return
        with path.open("r+b") as file:
            text = file.read()
            whole = text.rfind(b"\n") + 1
            if whole < len(text):
                file.truncate(whole)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error
