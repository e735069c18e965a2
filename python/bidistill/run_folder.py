"""The folder of a run: what lies where, and who may write or continue it."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bidistill.checkpoint import load_checkpoint, load_model, model_notes, save_checkpoint, save_model
from bidistill.config import Config
from bidistill.data import Split
from bidistill.data.files import replacing
from bidistill.errors import UserError
from bidistill.growth import Growth
from bidistill.models import Recommender

Metrics = dict[str, dict[str, dict[str, float]]]
FILES = (
    "config.toml",
    "split.npz",
    "metrics.csv",
    "metrics.json",
    "teacher.safetensors",
    "student.safetensors",
    "report.html",
)


class RunFolder:
    """config.toml, split.npz, metrics.csv and checkpoint/ while it runs; warmup/*.safetensors after the warm-up;
    teacher.safetensors, student.safetensors (their best states) and metrics.json at the end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def create(self, config: Config, split: Split, overwrite: bool) -> None:
        """Begin a new run here. Raises UserError where there is a run (unless overwrite) or nothing can be written."""
        holds = [name for name in (*FILES, "checkpoint") if (self.path / name).exists()]
        if holds and not overwrite:
            raise UserError(
                f"run.out: {self.path} holds a run already ({holds[0]}): resume it, overwrite it,"
                " or choose another folder"
            )
        try:
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            for name in ("checkpoint", "warmup", "tensorboard"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        except OSError as error:
            raise UserError(f"run.out: cannot write to {self.path}: {error.strerror}; choose another folder") from error
        split.save(self.path / "split.npz")
        self.write_config(config)

    def split(self) -> Split:
        """What the run trains on."""
        return Split.load(self.path / "split.npz")

    def write_config(self, config: Config) -> None:
        """Write config.toml."""
        config.to_toml(self.path / "config.toml")

    def save(self, config: Config, split: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint. `split` is the fingerprint."""
        notes = {"split": split, "config": config.values(), "versions": versions()}
        save_checkpoint(self.path / "checkpoint", tensors, notes | state)

    def open(
        self, config: Config | None, split: Split | None, grow: bool = False
    ) -> tuple[Config, Split, dict[str, Tensor], dict[str, Any]]:
        """What a run needs to go on: its settings (with the allowed changes), split, tensors and state.

        With `grow` the split may be another than the state's.
        """
        tensors, state = load_checkpoint(self.path / "checkpoint")
        saved = Config().with_overrides(state["config"])
        config = saved if config is None else config
        self._check_config(saved, config)
        split = self.split() if split is None else split
        if not grow and split.fingerprint() != state["split"]:
            raise UserError(
                f"{self.path} was trained on another split ({state['split']}, now {split.fingerprint()}):"
                " give the same data and split settings, let the run grow if rows were added (--grow), or start a new run"
            )
        return config.with_overrides({"run.out": str(self.path)}), split, tensors, state

    def save_warmup(self, name: str, model: Recommender, split: str) -> None:
        """Keep a model as its warm-up left it."""
        save_model(self.path / "warmup" / f"{name}.safetensors", model, split=split)

    def grow_warmup(self, name: str, model: Recommender, growth: Growth, split: str) -> None:
        """Put a warm-up that this folder keeps into a fresh model of grown data, and keep that instead."""
        path = self.path / "warmup" / f"{name}.safetensors"
        if model_notes(path)["split"] == split:  # it has grown already, before a crash
            model.load_state_dict(load_model(path).state_dict())
            return
        kinds, fresh, old = model.row_kinds(), model.state_dict(), load_model(path).state_dict()
        model.load_state_dict(
            {key: growth.rows(kinds[key], value, fresh[key]) if key in kinds else value for key, value in old.items()}
        )
        self.save_warmup(name, model, split)

    def load_warmup(self, name: str, model: Recommender, split: str) -> None:
        """Put a warm-up that this folder keeps into a model of the same kind and sizes."""
        path = self.path / "warmup" / f"{name}.safetensors"
        saved = load_model(path)
        if saved.config() != model.config():
            raise UserError(
                f"{path} is another model ({saved.config()}, wanted {model.config()}): use the same {name} settings"
            )
        if model_notes(path)["split"] != split:
            raise UserError(f"{path} was trained on another split: give the same data and split settings")
        model.load_state_dict(saved.state_dict())

    def finish(self, models: Mapping[str, Recommender], split: str, metrics: Metrics, warmup: Metrics) -> None:
        """Write the models and metrics.json."""
        for name, model in models.items():
            save_model(self.path / f"{name}.safetensors", model, split=split)
        values = {"metrics": metrics, "warmup": warmup, "split": split, "versions": versions()}
        with replacing(self.path / "metrics.json") as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _check_config(self, saved: Config, config: Config) -> None:
        """Raise UserError where the settings differ in more than a resumed run may change."""
        for name in saved.differences(config):
            free = name.startswith(("data.", "run.")) and name != "run.seed"
            if not free and not (name == "train.epochs" and config[name] > saved[name]):
                raise UserError(
                    f"{self.path} was trained with {name} = {saved[name]!r}, not {config[name]!r}:"
                    " resume it with the old value, or start a new run"
                )


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("bdkernels")
    except PackageNotFoundError:
        own = "not installed"
    return {"bdkernels": own, "torch": torch.__version__, "python": platform.python_version()}
