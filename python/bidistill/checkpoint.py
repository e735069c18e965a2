"""Checkpoints and models on disk: safetensors and JSON, never pickle, never half-written."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bdkernels import open_table
from bidistill.data.files import replacing
from bidistill.errors import UserError
from bidistill.models import Recommender, build_model

FORMAT = "bidistill checkpoint 1"
MODEL_FORMAT = "bidistill model 1"


def save_checkpoint(folder: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash at any point leaves either the old one or the new one.

    The tensors go into a file of a new name; state.json, which names that file, is then replaced in one step.
    """
    folder = Path(folder)
    _make(folder)
    path = folder / f"tensors-{uuid.uuid4().hex[:12]}.safetensors"
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; free some space or choose another folder") from error
    state = {"format": FORMAT, "tensors": path.name, "sha256": _sha256(path)} | state
    with replacing(folder / "state.json") as temporary:
        temporary.write_text(json.dumps(state), encoding="utf-8")
    for old in folder.glob("tensors-*.safetensors"):
        if old != path:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a checkpoint. Raises UserError for a missing, truncated or corrupt file."""
    folder = Path(folder)
    remedy = "restore the file from a copy, or start the run again"
    state = _read_json(folder / "state.json", remedy)
    if state.get("format") != FORMAT:
        raise UserError(f"{folder / 'state.json'} is not a checkpoint of this version ({FORMAT}): {remedy}")
    path = folder / state["tensors"]
    try:
        if _sha256(path) != state["sha256"]:
            raise UserError(f"{path} is damaged (its checksum is not the one in state.json): {remedy}")
        return load_file(path), state
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error


def save_model(path: str | Path, model: Recommender, **notes: Any) -> None:
    """Write a model's parameters, and in the file's metadata its `config()` and the notes (plain values)."""
    path = Path(path)
    _make(path.parent)
    metadata = {"format": MODEL_FORMAT, "model": json.dumps(model.config()), "notes": json.dumps(notes)}
    with replacing(path) as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary, metadata)


def load_model(path: str | Path, *, mapped: bool = False) -> Recommender:
    """The model that `save_model` wrote, on the CPU. Raises UserError for a missing, damaged or foreign file.

    Args:
        mapped: leave the tables in the file, whatever their size, for `bdkernels.open_table` to read; to evaluate and recommend
            with, not to train. Each call of an operator reads the item table, so let it serve many users.
    """
    with _model_file(path) as file:
        config, names = json.loads(file.metadata()["model"]), list(file.keys())
        tensors = {} if mapped else {name: file.get_tensor(name) for name in names}
    with torch.device("meta") if mapped else nullcontext():  # no memory for tables that stay in the file
        model = build_model(config)
    if mapped:
        model.requires_grad_(False)
        try:
            tensors = {name: open_table(path, name) for name in names}
        except ValueError as error:
            raise UserError(f"cannot map the tables of the model ({error}); load it without mapping them") from error
    try:
        model.load_state_dict(tensors, assign=mapped)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the tensors of its model; train or copy the model again") from error
    return model


def model_notes(path: str | Path) -> dict[str, Any]:
    """The notes that `save_model` was given. Raises UserError like `load_model`."""
    with _model_file(path) as file:
        notes: dict[str, Any] = json.loads(file.metadata()["notes"])
    return notes


@contextmanager
def _model_file(path: str | Path) -> Iterator[Any]:
    """The open file of a model, whose tensors are read when they are asked for."""
    remedy = "give a model file that bidistill wrote, such as teacher.safetensors in the folder of a finished run"
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != MODEL_FORMAT:
                raise UserError(f"{path} is not a model of bidistill; {remedy}")
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the model {path}: {error}; {remedy}") from error


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}: {remedy}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: {remedy}")
    return value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}; choose another one") from error
