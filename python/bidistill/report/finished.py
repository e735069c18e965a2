"""A finished run read back from its folder, with the control that it is measured against."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bidistill.checkpoint import load_model, model_notes
from bidistill.config import Config
from bidistill.control import joint_epochs
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.models import Recommender
from bidistill.run_folder import Metrics


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run left in its folder.

    Attributes:
        metrics, warmup: {"teacher": {"val": {...}, "test": {...}}, "student": ...}: at the end, and after the warm-up.
        history: one row an epoch, as in metrics.csv; a column that an epoch lacks is left out.
        control: the run without distillation from the same start, or None.
        remark: why the run in RUN/control is not used, or "".
    """

    path: Path
    config: Config
    split: Split
    metrics: Metrics
    warmup: Metrics
    versions: dict[str, str]
    history: list[dict[str, Any]]
    control: FinishedRun | None = None
    remark: str = ""

    @property
    def part(self) -> str:
        """What results are reported on: "test", or "val" where nothing was held out for a test."""
        return "test" if len(self.split.test_users) else "val"

    def model(self, name: str, *, warmup: bool = False, mapped: bool = False) -> Recommender:
        """The "teacher" or "student" in its best state, at the end or as its warm-up left it; `mapped` as for `load_model`."""
        path = (self.path / "warmup" if warmup else self.path) / f"{name}.safetensors"
        model = load_model(path, mapped=mapped)
        if model_notes(path)["split"] != self.split.fingerprint():
            raise UserError(f"{path} was trained on another split than {self.path / 'split.npz'}: train the run again")
        model.train(False)
        return model


def open_run(path: str | Path, control: str | Path | None = None) -> FinishedRun:
    """Read a run folder and its control: the folder given, which must match, else RUN/control if it does.

    Raises UserError where a folder is no run, not finished or damaged, or the given control does not match.
    """
    run = _open(Path(path))
    folder = run.path / "control" if control is None else Path(control)
    if control is None and (run.config.distill.method == "none" or not (folder / "metrics.json").is_file()):
        return run
    other = _open(folder)
    mismatch = _mismatch(run, other)
    if not mismatch:
        return replace(run, control=other)
    remark = f"{folder} is no control of {run.path}: {mismatch}"
    if control is not None:
        raise UserError(f"{remark}; train a control from the same start, or leave this one out")
    return replace(run, remark=remark)


def _open(path: Path) -> FinishedRun:
    if not (path / "config.toml").is_file():
        raise UserError(f"{path} is no run folder (it has no config.toml): give the folder of a run")
    if not (path / "metrics.json").is_file():
        raise UserError(f"{path} is not finished (it has no metrics.json): resume its training first")
    config, split = Config.from_toml(path / "config.toml"), Split.load(path / "split.npz")
    values = _read_json(path / "metrics.json")
    if values["split"] != split.fingerprint():
        raise UserError(f"{path / 'metrics.json'} belongs to another split than split.npz: train the run again")
    return FinishedRun(path, config, split, values["metrics"], values["warmup"], values["versions"], _history(path))


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
        if name in ("train.epochs", "train.patience"):  # which only say when the joint phase may end
            continue
        if not name.startswith(("distill.", "data.", "run.")) or name == "run.seed":
            return f"it was trained with {name} = {control.config[name]!r}, the run with {run.config[name]!r}"
    return "" if control.warmup == run.warmup else "its models began from another warm-up"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; train the run again") from error
    if not isinstance(values, dict) or not {"metrics", "warmup", "split", "versions"} <= values.keys():
        raise UserError(f"{path} is damaged or of another version: train the run again")
    return values


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        with (path / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{key: _value(key, text) for key, text in row.items() if text} for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path / 'metrics.csv'}: {error}; train the run again") from error


def _value(column: str, text: str) -> Any:
    return text if column == "phase" else float(text)
