"""Checkpoints and models on disk: safetensors and JSON, never pickle, never half-written."""

from __future__ import annotations

import hashlib
import json
import shutil
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
from bidistill.data.files import replacing, require_room
from bidistill.errors import UserError
from bidistill.models import Recommender, build_model
from bidistill.world import World

FORMAT = "bidistill checkpoint 1"
MODEL_FORMAT = "bidistill model 1"
REMEDY = "restore the file from a copy, or start the run again"


def save_checkpoint(
    folder: str | Path, tensors: dict[str, Tensor], state: dict[str, Any], world: World | None = None
) -> None:
    """Write a checkpoint; a crash at any point leaves either the old one or the new one.

    The tensors go into a file of a new name; state.json, which names that file, is then replaced in one step.

    world: the processes, which all call this with their rows of each tensor; the state is the first one's.
    """
    folder, world = Path(folder), world or World()
    with world.together("save"):
        _make(folder)
    if world.size > 1:
        from bidistill.sharded.checkpoint import save_shards  # torch.distributed.checkpoint takes a second to import

        about = save_shards(folder, tensors, world)
    else:
        about = _save_whole(folder, tensors)
    with world.together("save"):
        if world.first:
            with replacing(folder / "state.json") as temporary:
                temporary.write_text(json.dumps({"format": FORMAT} | about | state), encoding="utf-8")
            for old in [*folder.glob("tensors-*.safetensors"), *folder.glob("shards-*")]:
                if old.name not in (about.get("tensors"), about.get("shards")):
                    shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def _save_whole(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    path = folder / f"tensors-{uuid.uuid4().hex[:12]}.safetensors"
    require_room(path, sum(value.numel() * value.element_size() for value in tensors.values()))
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)  # half of it would fill the disk that is full
        raise UserError(f"cannot write {path}: {error}; free some space or choose another folder") from error
    return {"tensors": path.name, "sha256": digest_of(path)}


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a checkpoint. Raises UserError for a missing, truncated or corrupt file."""
    state = read_state(folder)
    return read_tensors(folder, state), state


def read_state(folder: str | Path) -> dict[str, Any]:
    """The state of a checkpoint. Raises UserError for a missing or damaged file."""
    path = Path(folder) / "state.json"
    state = _read_json(path, REMEDY)
    if state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version ({FORMAT}): {REMEDY}")
    return state


def read_tensors(folder: str | Path, state: dict[str, Any], world: World | None = None) -> dict[str, Tensor]:
    """The tensors (on the CPU) that the state of a checkpoint belongs to, however many processes wrote them.

    world: the processes, which all call this; each gets its rows.

    Raises:
        UserError: a missing, truncated or corrupt file.
    """
    folder, world = Path(folder), world or World()
    files = {state["tensors"]: state["sha256"]} if "tensors" in state else {
        f"{state['shards']}/{name}": digest for name, digest in sorted(state["sha256"].items())
    }  # fmt: skip
    with world.together("load"):
        for name in sorted(files)[world.rank :: world.size]:
            try:
                if digest_of(folder / name) != files[name]:
                    raise UserError(f"{folder / name} is damaged (its checksum is not the one in state.json): {REMEDY}")
            except OSError as error:
                raise UserError(f"cannot read {folder / name}: {error.strerror or error}; {REMEDY}") from error
    if "tensors" in state and world.size == 1:
        return load_file(folder / state["tensors"])
    from bidistill.sharded.checkpoint import load_rows, load_shards

    if "tensors" in state:
        return load_rows(folder / state["tensors"], world)
    return load_shards(folder / state["shards"], world)


def save_model(path: str | Path, model: Recommender, *, world: World | None = None, **notes: Any) -> None:
    """Write a model's parameters, and in the file's metadata its `config()` and the notes (plain values).

    world: the processes that have a shard of the model each, and all call this; the first one writes.
    """
    path = Path(path)
    metadata = {"format": MODEL_FORMAT, "model": json.dumps(model.config()), "notes": json.dumps(notes)}
    if world is not None and world.size > 1:
        from bidistill.sharded.models import save_whole

        save_whole(path, model, metadata, world)
        return
    _make(path.parent)
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


def load_rows(path: str | Path, model: Recommender, world: World) -> None:
    """Put what `save_model` wrote into a model of the same configuration, or into this process's shard of one.

    Raises UserError like `load_model`.
    """
    if world.size == 1:
        model.load_state_dict(load_model(path).state_dict())
        return
    with _model_file(path) as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        rows = {name: world.range(piece.get_shape()[0]) for name, piece in tensors.items()}
        model.load_state_dict({name: piece[rows[name].start : rows[name].stop] for name, piece in tensors.items()})


def model_config(path: str | Path) -> dict[str, Any]:
    """The model's `config()`. Raises UserError like `load_model`."""
    with _model_file(path) as file:
        config: dict[str, Any] = json.loads(file.metadata()["model"])
    return config


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


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
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
