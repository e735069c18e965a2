"""A finished run read back from its folder, with the control that it is measured against."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bidistill.config import Config
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.eval_options import COMPARED
from bidistill.files.access import present
from bidistill.files.records import read_record
from bidistill.models import Recommender
from bidistill.runs.checkpoint import load_model, model_seal
from bidistill.runs.folder import recorded_settings
from bidistill.runs.records import Finished, Metrics
from bidistill.training.control import joint_epochs


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run left in its folder.

    Attributes:
        metrics, pretrained: {"teacher": {"val": {...}, "test": {...}}, "student": ...}: at the end, and after the pretraining.
        baselines: likewise of the models that were fitted for comparison: see `training.baselines`.
        history: one row an epoch, as metrics.csv shows it; a column that an epoch lacks is left out.
        control: the run without distillation from the same start, or None.
        remark: why the run in RUN/control is not used, or "".
        files: the seal of each model file, by its path in the folder.
        stopped: why a callback stopped the run, or "".
        given: modules for the "teacher" or "student", where the run was given some.
    """

    path: Path
    config: Config
    split: Split
    metrics: Metrics
    pretrained: Metrics
    baselines: Metrics
    versions: dict[str, str]
    history: list[dict[str, Any]]
    control: FinishedRun | None = None
    remark: str = ""
    files: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """What results are reported on: "test", or "val" where nothing was held out for a test."""
        return "test" if len(self.split.test_users) else "val"

    def model(self, name: str, *, pretrained: bool = False, mapped: bool = False) -> Recommender:
        """The "teacher" or "student" in its best state, at the end or after its pretraining; `mapped` as for `load_model`.

        Raises:
            UserError: the file is damaged; or the run was given a module, and `open_run` was not.
        """
        own = f"pretrained/{name}.safetensors" if pretrained else f"{name}.safetensors"
        path = self.path / own
        if model_seal(path) != self.files.get(own):
            raise UserError(f"{path} is whole, but not the file that {self.path / 'metrics.json'} names: restore it")
        given = copy.deepcopy(self.given.get(name))
        model = load_model(path, mapped=mapped, name=name, given=given)
        for attribute, n in (("n_users", self.split.n_users), ("n_items", self.split.n_items)):
            if not hasattr(model, attribute):
                setattr(model, attribute, n)
            if getattr(model, attribute) != n:
                raise UserError(f"{path} has other users or items than {self.path / 'split.npz'}: train the run again")
        model.train(False)
        return model

    @cached_property
    def teacher(self) -> Recommender:
        """The teacher in its best state, at the end. Raises UserError as `model`."""
        return self.model("teacher")

    @cached_property
    def student(self) -> Recommender:
        """The student likewise."""
        return self.model("student")


def open_run(
    path: str | Path,
    control: str | Path | None = None,
    *,
    teacher: torch.nn.Module | None = None,
    student: torch.nn.Module | None = None,
) -> FinishedRun:
    """Read a run folder and its control: the folder given, which must match, else RUN/control if it does.

    Args:
        teacher, student: modules of the same classes and sizes, where the run was given some. They stay as they are: copies of
            them take the states of the run.

    Raises:
        UserError: a folder is no run, not finished or damaged, or the given control does not match.
    """
    given = {name: module for name, module in (("teacher", teacher), ("student", student)) if module is not None}
    run = _open(Path(path), given)
    folder = run.path / "control" if control is None else Path(control)
    if control is None and (run.config.distill.method == "none" or not present(folder / "metrics.json")):
        return run
    other = _open(folder, given)
    mismatch = _mismatch(run, other)
    if not mismatch:
        return replace(run, control=other)
    remark = f"{folder} is no control of {run.path}: {mismatch}"
    if control is not None:
        raise UserError(f"{remark}; train a control from the same start, or leave this one out")
    return replace(run, remark=remark)


def _open(path: Path, given: dict[str, Any]) -> FinishedRun:
    if not present(path / "config.toml") and not present(path / "metrics.json"):
        raise UserError(f"{path} is no run folder (it has no config.toml): give the folder of a run")
    if not present(path / "metrics.json"):
        raise UserError(f"{path} is not finished (it has no metrics.json): resume its training first")
    found, split = read_record(path / "metrics.json", Finished), Split.load(path / "split.npz")
    if found.split != split.fingerprint():
        raise UserError(f"{path / 'metrics.json'} belongs to another split than split.npz: train the run again")
    config = recorded_settings(path, found.config, path / "metrics.json")
    about = found.metrics, found.pretrained, found.baselines, found.versions, found.history
    return FinishedRun(path, config, split, *about, files=found.files, stopped=found.stopped, given=given)


def _mismatch(run: FinishedRun, control: FinishedRun) -> str:
    """What makes the comparison unfair, or "". Distillation must be the one thing that differs."""
    if run.config.distill.method == "none":
        return "the run itself is without distillation"
    if control.config.distill.method != "none":
        return "it was trained with distillation"
    if run.split.fingerprint() != control.split.fingerprint():
        return "it was trained on another split"
    trained = joint_epochs(run.history), joint_epochs(control.history)
    if trained[0] != trained[1]:
        return f"its joint phase had {trained[1]} epochs, that of the run {trained[0]}"
    for name in run.config.differences(control.config):
        # They only say when the joint phase may end, and what else is fitted.
        if name in ("train.epochs", "train.patience", *COMPARED):
            continue
        if not name.startswith(("distill.", "data.", "run.")) or name == "run.seed":
            return f"it was trained with {name} = {control.config[name]!r}, the run with {run.config[name]!r}"
    return "" if control.pretrained == run.pretrained else "its models began from another pretraining"
