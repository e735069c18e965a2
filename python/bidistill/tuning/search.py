"""The search itself: trials one after the other, in a folder where it can go on, with its best settings as a file."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bidistill.config import Config
from bidistill.data import Split
from bidistill.data.sizes import Sizes
from bidistill.distill.method import list_sizes
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.eval_options import COMPARED
from bidistill.files.access import present, replacing
from bidistill.files.records import read_record, write_record
from bidistill.logs import log
from bidistill.losses import FULL_SOFTMAX, over_catalog
from bidistill.models.checks import require_trained_factors
from bidistill.registry import MODELS
from bidistill.runs.folder import RunFolder, recorded_settings, versions
from bidistill.training.memory import model_sizes
from bidistill.tuning.records import Search
from bidistill.tuning.space import OWN, Choices, Range, Space, SpaceLike, read_space, space_values, spread
from bidistill.tuning.study import AT_FIRST, DONE, FAILED, PRUNED, PRUNERS, Study, Trial, optuna, quiet
from bidistill.tuning.training import OTHER, Outcome, TimeUp, Work, without_test

SEARCH, TABLE, BEST = "tune.json", "trials.csv", "best.toml"
MANY_ITEMS = 100_000  # beyond, losses over the whole catalog take too long
WARM_UP = 5, 10  # a trial may be given up after so many epochs, or the tenth part of the most
FIXED_BY_TRAIN = ("train.monitor", "train.eval_every")  # they say what is compared


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        config: the settings with the best values.
        value: of `train.monitor` on validation, of the best trial. The best of many is better than it will be on a test.
        untuned: the same of the settings as they stood; None where that trial failed.
        control: with `distill`: the same without distillation; else None.
        settings: what the best trial changed, {"section.option": value}; nothing where the settings were the best as they stood.
        trials: all that came to an end.
        importance: how much each entry of the space mattered, in shares of 1; empty where too few trials tell.
        stopped: why the search ended before its last trial, or "".
        at_edge: options whose best value lies at an end of its range, so that a wider one may have a better value.
    """

    config: Config
    value: float
    untuned: float | None
    control: float | None
    settings: dict[str, Any]
    trials: list[Trial] = field(repr=False)
    importance: dict[str, float] = field(default_factory=dict)
    stopped: str = ""
    at_edge: tuple[str, ...] = ()

    def count(self, state: str) -> int:
        """How many trials were "done", "pruned" or "failed"."""
        return sum(trial.state == state for trial in self.trials)


def tune(
    config: Config,
    split: Split,
    *,
    model: str = "student",
    distill: bool = False,
    space: SpaceLike | None = None,
    keep: Iterable[str] = (),
    trials: int = 30,
    timeout: float | None = None,
    prune: str = "median",
    out: str | Path | None = None,
) -> Tuned:
    """Search for better settings of one model alone, or of its distillation, by `train.monitor` on validation.

    The test is taken out of the data before anything else. The first trial is the settings as they stand, so what is found is
    never worse than they are; with `distill` the second one is the control, which is trained without distillation from the same
    pretraining. The next ones lie evenly in the space, and later ones are drawn by Optuna's TPE sampler; all by `run.seed`.

    Args:
        config: the settings as they stand; `run.out` is unset in those that are returned.
        split: the data.
        model: "teacher" or "student": which one is tuned alone. The other is not trained.
        distill: tune how the student learns in the joint phase instead. Both models keep their settings, and are pretrained once.
        space: what to search, as a TOML file or a mapping of the same form: see docs/tuning.md. None: the space of this package.
        keep: names of entries of the space that are left out of it.
        trials: how many in all, those of earlier calls in the folder included.
        timeout: seconds after which this call ends; a trial that is running then is dropped. None: no limit.
        prune: "median": give up a trial that is below the median of the earlier ones at the same epoch; or "none".
        out: folder of the search, where a later call goes on; None: nothing is kept.

    Raises:
        UserError: Optuna is not installed, a wrong argument or space, a folder with another search, or no trial came to an end.
        KeyboardInterrupt: Ctrl-C. What was finished is kept.
    """
    optuna()
    Partition.find(config.run, split.n_users, split.n_items).require_whole("a search runs")
    _check_arguments(config, model, distill, trials, timeout, prune)
    config, split = config.with_overrides({"run.out": None}), without_test(split)
    found = _space(config, split, model, distill, space, tuple(keep))
    if out is None:
        with TemporaryDirectory() as folder:
            return _Search(config, split, model, distill, found, prune, Path(folder)).run(trials, timeout)
    home = RunFolder(out)
    home.make()
    with home.held():
        return _Search(config, split, model, distill, found, prune, Path(out)).run(trials, timeout)


class _Search:
    """A search in a folder that this process holds. Arguments: see `tune`."""

    def __init__(
        self, config: Config, split: Split, model: str, distill: bool, space: Space, prune: str, folder: Path
    ) -> None:
        self.config, self.distill, self.space, self.folder = config, distill, space, folder
        self.model = model
        self.record = Search(
            model=model,
            distill=distill,
            prune=prune,
            space=space_values(space),
            config=config.values(),
            split=split.fingerprint(),
            versions=versions(),
        )
        self.work = Work(config, split, model, distill, folder)

    def run(self, trials: int, timeout: float | None) -> Tuned:
        """Begin or go on, until there are so many trials."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if present(self.folder / SEARCH):
            self._check_same()
        else:
            self._check_free()
            self.work.check()
            write_record(self.folder / SEARCH, self.record)
        with quiet():
            epochs = self.config.train.epochs if self.distill else self.config.train.pretrain_epochs
            done: list[Trial] = []
            with suppress(TimeUp):
                self.work.prepare(deadline)
            study = Study(self.folder, self.config.run.seed, self.record.prune, max(WARM_UP[0], epochs // WARM_UP[1]))
            done = study.trials()
            self._say_start(done, trials)
            with suppress(TimeUp):
                while len(done) < trials and time.monotonic() < deadline:
                    done.append(self._trial(study, done, deadline))
                    self._write(done)
                    self._tell(done)
            over = f"the time of {timeout} seconds was over after {len(done)} of {trials} trials"
            return self._result(done, study.importance(), over if len(done) < trials else "")

    def _trial(self, study: Study, done: list[Trial], deadline: float) -> Trial:
        """Do the trial that comes next; settings that were trained already give the same again."""
        number = len(done)
        kind = "as_is" if number == 0 else "control" if self.distill and number == 1 else "drawn"
        standing = {each.name: value for each in self.space if (value := each.standing(self.config)) is not None}
        first = sum(trial.kind == "drawn" for trial in done)
        even = spread(self.space, first, self.config.run.seed) if first < AT_FIRST else {}
        asked = study.ask(number, even if kind == "drawn" else standing)
        settings = {"distill.method": "none"} if kind == "control" else self._draw(asked, kind, standing)
        began = time.monotonic()
        about = Trial(number, kind, FAILED, None, settings)
        if (twin := next((each for each in done if self._same(each, about)), None)) is not None:
            reason = f"as trial {twin.number}" + (f": {twin.reason}" if twin.state == FAILED else "")
            about = replace(twin, number=number, kind=kind, settings=settings, seconds=0.0, reason=reason)
            study.tell(asked, about)
            return about
        try:
            outcome = self.work.train(settings, asked, kind == "drawn", deadline)
        except (TimeUp, KeyboardInterrupt):
            study.drop(asked)
            raise
        except Exception as error:  # whatever a model of the user's own does with these settings
            words = " ".join(str(error).split())
            about = replace(about, reason=words if isinstance(error, UserError) else f"{type(error).__name__}: {words}")
        else:
            about = _with_outcome(about, outcome)
        about = replace(about, seconds=round(time.monotonic() - began, 3))
        study.tell(asked, about)
        return about

    def _same(self, one: Trial, other: Trial) -> bool:
        """Whether two trials are trained by the same settings."""
        return self._whole(one) == self._whole(other)

    def _whole(self, trial: Trial) -> dict[str, Any]:
        return self.config.values() | trial.settings

    def _draw(self, asked: Any, kind: str, standing: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a trial, choices first, since they make some ranges idle."""
        settings: dict[str, Any] = {}
        for each in sorted(self.space, key=lambda each: isinstance(each, Range)):
            idle = isinstance(each, Range) and self._idle(each.name, settings)
            if not idle and (kind == "drawn" or each.name in standing):
                settings |= each.draw(asked)
        return settings if kind == "drawn" else {}

    def _idle(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether a loss over the whole catalog has no use for an option."""
        if name == "train.negatives":
            return over_catalog(settings.get("train.loss", self.config.train.loss))
        return name == "distill.tau_learner" and settings.get("distill.loss", self.config.distill.loss) == FULL_SOFTMAX

    def _check_same(self) -> None:
        """Raise UserError where the folder holds another search than this one."""
        path, now = self.folder / SEARCH, self.record
        before = read_record(path, Search)
        advice = "choose another folder for this search, or go back to that"
        for name in ("model", "distill", "prune"):
            if getattr(before, name) != getattr(now, name):
                raise UserError(
                    f"{self.folder} holds a search with {name} = {getattr(before, name)!r}, now {getattr(now, name)!r}: {advice}"
                )
        if before.split != now.split:
            raise UserError(f"{self.folder} holds a search on other data: {advice}")
        for name in dict.fromkeys((*before.space, *now.space)):
            was, becomes = before.space.get(name, "nothing"), now.space.get(name, "nothing")
            if was != becomes:
                raise UserError(
                    f"{self.folder} holds a search in which {name} was {was}, now it is {becomes}: {advice}"
                )
        config = recorded_settings(self.folder, before.config, path)
        for name in config.differences(self.config):
            if not name.startswith(("data.", "run.", *COMPARED)) or name in ("run.seed", "run.device"):
                raise UserError(
                    f"{self.folder} holds a search with {name} = {config[name]!r}, now {self.config[name]!r}: {advice}"
                )

    def _check_free(self) -> None:
        """Raise UserError where the folder of a new search has files of others."""
        for name in ("config.toml", TABLE, BEST, "study.log"):
            if present(self.folder / name):
                raise UserError(
                    f"{self.folder / name} is there, and no {SEARCH} beside it, so it belongs to something else: choose another"
                    " folder"
                )

    def _write(self, trials: list[Trial]) -> None:
        """The table, and the best settings so far."""
        names = list(dict.fromkeys(name for each in self.space for name in each.names))
        with replacing(self.folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            about = ["number", "kind", "state", "value", "epochs", "kept", "seconds"]
            writer = csv.writer(file)
            writer.writerow([*about, *names, "reason"])
            for trial in trials:
                own = [trial.settings.get(name, "") for name in names]
                writer.writerow([*(getattr(trial, name) for name in about), *own, trial.reason])
        if (best := best_of(trials)) is not None:
            self._with(best).to_toml(self.folder / BEST)

    def _with(self, trial: Trial) -> Config:
        return self.config.with_overrides(trial.settings)

    def _say_start(self, done: list[Trial], trials: int) -> None:
        """What the lines of the trials are."""
        if self.config.run.progress and len(done) < trials:
            what = "distillation" if self.distill else f"{self.model} alone"
            log.info(
                f"search for the {what}, {trials} trials, {len(done)} of them are there: {self.config.train.monitor} on"
            )
            log.info("validation (* the best so far), epochs that were trained, time, settings; the space:")
            for each in self.space:
                log.info(f"  {each.name}: {each}")
            log.info(f"{'trial':>5} {'state':<6} {'value':>7}  {'epochs':>6} {'time':>8}")

    def _tell(self, trials: list[Trial]) -> None:
        """A line about the last trial."""
        if not self.config.run.progress:
            return
        last, best = trials[-1], best_of(trials)
        value = "" if last.value is None else f"{last.value:.4f}"
        what = {"as_is": "settings as they stand", "control": "without distillation"}.get(last.kind) or shown(
            last.settings
        )
        mark = "*" if last is best else " "
        reason = f": {last.reason}" if last.state == FAILED else ""
        log.info(
            f"{last.number:>5} {last.state:<6} {value:>7}{mark} {last.epochs:>6} {last.seconds:>6.1f} s  {what}{reason}"
        )

    def _result(self, trials: list[Trial], importance: dict[str, float], stopped: str) -> Tuned:
        best = best_of(trials)
        if best is None or best.value is None:
            if not trials:
                raise UserError(f"{stopped or 'there was no trial'}: give the search more time")
            reasons = [trial.reason for trial in trials if trial.state == FAILED]
            raise UserError(f"none of {len(trials)} trials came to an end; the first one says: {reasons[0]}")
        by_kind = {trial.kind: trial.value for trial in trials if trial.kind != "drawn"}
        config = self._with(best)
        untuned, control = by_kind.get("as_is"), by_kind.get("control")
        ranges = [each for each in self.space if isinstance(each, Range) and each.name in best.settings]
        at_edge = tuple(each.name for each in ranges if each.at_edge(best.settings[each.name]))
        return Tuned(config, best.value, untuned, control, best.settings, trials, importance, stopped, at_edge)


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The whole trial of the best value, the first of equals; the control is none of the settings that are searched."""
    done = [trial for trial in trials if trial.state == DONE and trial.kind != "control" and trial.value is not None]
    return max(done, key=lambda trial: (trial.value, -trial.number), default=None)


def shown(settings: Mapping[str, Any]) -> str:
    """Settings in a line, without their sections."""
    return ", ".join(f"{name.rpartition('.')[2]} {show(value)}" for name, value in settings.items())


def show(value: Any) -> str:
    """A value in words, a number in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _with_outcome(about: Trial, outcome: Outcome) -> Trial:
    state = PRUNED if outcome.pruned else DONE
    if not math.isfinite(outcome.value):
        return replace(about, reason=f"the metric is {outcome.value}")
    return replace(
        about, state=state, value=outcome.value, epochs=outcome.epochs, kept=outcome.kept, reason=outcome.reason
    )


def _check_arguments(config: Config, model: str, distill: bool, trials: int, timeout: float | None, prune: str) -> None:
    if model not in OTHER:
        raise UserError(f"model must be teacher or student, found {model!r}")
    if prune not in PRUNERS:
        raise UserError(f"prune must be one of {', '.join(PRUNERS)}, found {prune!r}")
    least = 2 if distill else 1
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < least:
        own = "the settings as they stand and the control" if distill else "the settings as they stand"
        raise UserError(f"trials must be at least {least}, which {own} take, found {trials!r}")
    if timeout is not None and not 0 < timeout < math.inf:
        raise UserError(f"timeout must be a number of seconds above 0, found {timeout!r}")
    if not distill:
        return
    if model == "teacher":
        raise UserError("a search for distillation goes by the student's metric: leave out the model teacher")
    if config.distill.method == "none":
        raise UserError("distill.method is none, so there is no distillation to tune: set distill.method to a method")
    if not config.distill.lambda_student:
        raise UserError("distill.lambda_student is 0, so the student does not learn from the teacher: raise it")
    list_sizes(config.distill)  # refuses what its method does not take


def _space(
    config: Config, split: Split, model: str, distill: bool, space: SpaceLike | None, keep: tuple[str, ...]
) -> Space:
    """The space, in which everything may be trained: what may not is left out of that of this package, and else refused."""
    sizes = model_sizes(config, Sizes.of_split(split, config))
    learns = sizes[model].learns
    if space is None and not learns and not distill:
        raise UserError(
            f"the {model} ({config.model(model).kind}) is fitted in one call, so it has neither rate nor loss: give a space of"
            f" its own settings, {model}.args"
        )
    found = read_space(OWN / ("distill.toml" if distill else "alone.toml") if space is None else space, model)
    known = {name for each in found for name in (each.name, *each.names)}
    for name in keep:
        if name not in known:
            raise UserError(f"keep names {name}, which the space does not search: it has {', '.join(sorted(known))}")
    found = tuple(each for each in found if not {each.name, *each.names} & set(keep))
    if not found:
        raise UserError("keep leaves nothing to search: leave some of it out")
    for each in found:
        for name in each.names:
            _check_name(name, model, distill, learns)
    if space is None:
        if distill and not sizes["teacher"].learns:  # it stays as it is in any case
            found = tuple(each for each in found if "train.joint" not in each.names)
        return tuple(left for each in found if (left := _allowed(each, config, split)) is not None)
    for each in found:
        for settings in each.each():
            if refusal := _refusal(config, split, settings):
                raise UserError(
                    f"space: cannot search {refusal}: leave that out, or set what belongs together in one table of choices"
                )
    return found


def _check_name(name: str, model: str, distill: bool, learns: bool) -> None:
    """Raise UserError for an option that the search cannot change."""
    section = name.partition(".")[0]
    joint = section in OTHER and name.partition(".")[2].startswith("joint_")
    if distill:
        if section != "distill" and not joint and name not in ("train.joint", "train.epochs", "train.patience"):
            raise UserError(
                f"space: {name} is no option of the joint phase, which starts from one pretraining: tune the models alone first"
            )
        return
    if section == OTHER[model]:
        raise UserError(f"space: {name} is of the {section}, but the search is for the {model} alone: leave it out")
    if section not in (model, "train") or joint or name in (*FIXED_BY_TRAIN, "train.joint", "train.epochs"):
        raise UserError(f"space: {name} changes nothing that a model alone is compared by: leave it out")
    if not learns and not name.startswith((f"{model}.args", f"{model}.dim", f"{model}.kind")):
        raise UserError(f"space: {name} changes nothing, since the {model} is fitted in one call: leave it out")


def _refusal(config: Config, split: Split, settings: Mapping[str, Any]) -> str:
    """Why these settings in the place of those that stand cannot be trained, or ""."""
    try:
        changed = config.with_overrides(settings)
        changed.check_catalog(split.n_items)
        if over_catalog(changed.train.loss):
            for name in OTHER:
                require_trained_factors(name, MODELS[changed.model(name).kind], changed.train.loss)
        if any(name.startswith("distill.") for name in settings):
            list_sizes(changed.distill)
    except UserError as error:
        values = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
        return f"{values} with the other settings as they stand ({error})"
    return ""


def _allowed(each: Range | Choices, config: Config, split: Split) -> Range | Choices | None:
    """An entry of this package's space without what cannot be trained here; None where nothing is left to choose."""
    if isinstance(each, Range):
        most = min(each.hi, split.n_items) if each.name == "train.negatives" else each.hi
        each = replace(each, hi=most)
        for settings in each.each():
            if refusal := _refusal(config, split, settings):
                _say_left_out(config, refusal)
                return None
        return each if each.lo < most else None
    left = []
    for settings in each.sets:
        if refusal := _refusal(config, split, settings):
            _say_left_out(config, refusal)
        elif split.n_items <= MANY_ITEMS or not over_catalog(settings.get("train.loss", config.train.loss)):
            left.append(settings)
    return replace(each, sets=tuple(left)) if len(left) > 1 else None


def _say_left_out(config: Config, refusal: str) -> None:
    if config.run.progress:
        log.info(f"left out of the search: {refusal}")
