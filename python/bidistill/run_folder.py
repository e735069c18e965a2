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

from bidistill.checkpoint import (
    load_model,
    load_rows,
    model_config,
    model_notes,
    read_state,
    read_tensors,
    save_checkpoint,
    save_model,
)
from bidistill.config import Config
from bidistill.data import Split
from bidistill.data.files import replacing
from bidistill.errors import UserError
from bidistill.growth import Growth
from bidistill.models import Recommender
from bidistill.world import World, launch

Metrics = dict[str, dict[str, dict[str, float]]]
FILES = (
    "config.toml",
    "split.npz",
    "metrics.csv",
    "metrics.json",
    "teacher.safetensors",
    "student.safetensors",
    "report.html",
    "launch",
)


class RunFolder:
    """config.toml, split.npz, metrics.csv and checkpoint/ while it runs; warmup/*.safetensors after the warm-up;
    teacher.safetensors, student.safetensors (their best states) and metrics.json at the end. `launch` says which torchrun
    began it, if one did.

    world: the processes of the run, which all call the methods; the first one writes what is no shard.
    """

    def __init__(self, path: str | Path, world: World | None = None) -> None:
        self.path, self.world = Path(path), world or World()

    def create(self, config: Config, split: Split, overwrite: bool) -> None:
        """Begin a new run here. Raises UserError where there is a run (unless overwrite) or nothing can be written."""
        with self.world.together("begin the run"):
            if self.world.first:
                self._create(config, split, overwrite)

    def _create(self, config: Config, split: Split, overwrite: bool) -> None:
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
        config.to_toml(self.path / "config.toml")
        if launch():
            (self.path / "launch").write_text(launch(), encoding="utf-8")

    def begun_here(self) -> bool:
        """Whether this torchrun began the run here, perhaps by processes that have failed since."""
        begun = False
        with self.world.together("look for the run"):
            file = self.path / "launch"
            if self.world.first and launch() and file.is_file():
                begun = file.read_text(encoding="utf-8") == launch()
        return bool(self.world.agree("look for the run", int(begun))[0])

    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return bool(
            self.world.agree("look for a checkpoint", int((self.path / "checkpoint" / "state.json").is_file()))[0]
        )

    def split(self) -> Split:
        """What the run trains on."""
        return Split.load(self.path / "split.npz")

    def write_config(self, config: Config) -> None:
        """Write config.toml."""
        with self.world.together("write the settings"):
            if self.world.first:
                config.to_toml(self.path / "config.toml")

    def save(self, config: Config, split: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint. `split` is the fingerprint."""
        notes = {"split": split, "config": config.values(), "versions": versions()}
        save_checkpoint(self.path / "checkpoint", tensors, notes | state, self.world)

    def open(
        self, config: Config | None, split: Split | None, grow: bool = False
    ) -> tuple[Config, Split, dict[str, Any]]:
        """What a run needs to go on, besides its tensors: settings (with the allowed changes), split and state.

        With `grow` the split may be another than the state's.
        """
        state = read_state(self.path / "checkpoint")
        saved = Config().with_overrides(state["config"])
        config = saved if config is None else config
        self._check_config(saved, config)
        split = self.split() if split is None else split
        if not grow and split.fingerprint() != state["split"]:
            raise UserError(
                f"{self.path} was trained on another split ({state['split']}, now {split.fingerprint()}):"
                " give the same data and split settings, let the run grow if rows were added (--grow), or start a new run"
            )
        return config.with_overrides({"run.out": str(self.path)}), split, state

    def tensors(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors that belong to the checkpoint's state: this process's rows."""
        return read_tensors(self.path / "checkpoint", state, self.world)

    def save_warmup(self, name: str, model: Recommender, split: str) -> None:
        """Keep a model as its warm-up left it."""
        save_model(self.path / "warmup" / f"{name}.safetensors", model, world=self.world, split=split)

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
        saved = model_config(path)
        if saved != model.config():
            raise UserError(f"{path} is another model ({saved}, wanted {model.config()}): use the same {name} settings")
        if model_notes(path)["split"] != split:
            raise UserError(f"{path} was trained on another split: give the same data and split settings")
        load_rows(path, model, self.world)

    def finish(self, models: Mapping[str, Recommender], split: str, metrics: Metrics, warmup: Metrics) -> None:
        """Write the models and metrics.json."""
        for name, model in models.items():
            save_model(self.path / f"{name}.safetensors", model, world=self.world, split=split)
        values = {"metrics": metrics, "warmup": warmup, "split": split, "versions": versions()}
        with self.world.together("write the metrics"):
            if self.world.first:
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
