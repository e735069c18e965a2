"""Checkpoints and models on disk: safetensors and JSON, never pickle, never half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdkernels import open_memmap
from bidistill.distributed.processes import Processes
from bidistill.errors import UserError
from bidistill.files.access import digest_of, present
from bidistill.files.records import read_record, write_record
from bidistill.files.tensors import opened, remove, save_tensors, seal_of
from bidistill.models import Recommender, build_model
from bidistill.models.base import tables_of
from bidistill.models.given import GIVEN, missing
from bidistill.models.kinds import config_of
from bidistill.runs.records import Checkpoint

MODEL_FORMAT = "bidistill model 2"
NAMES = ("tensors-a.safetensors", "tensors-b.safetensors", "shards-a", "shards-b")
REMEDY = Checkpoint.REMEDY


def save_checkpoint(
    folder: str | Path, tensors: dict[str, Tensor], state: dict[str, Any], processes: Processes | None = None
) -> None:
    """Write a checkpoint; a crash or a power cut at any point leaves either the old one or the new one.

    The tensors go into the one of two files that state.json does not name; when the disk has them, state.json, which then names
    that file, is replaced in one step; when the disk has that too, the old tensors are removed.

    processes: the processes, which all call this with their rows of each tensor; the state is the first one's.

    Raises:
        UserError: nothing can be written, or the folder that holds this one is not there.
    """
    folder, processes = Path(folder), processes or Processes()
    name = ""
    with processes.together("save"):
        if processes.first:
            _make(folder)
            name = _free_name(folder, "shards-a" if processes.size > 1 else "tensors-a.safetensors")
    name = processes.texts("save", name)[0]
    if processes.size > 1:
        from bidistill.distributed.checkpoint import (
            save_shards,  # torch.distributed.checkpoint takes a second to import
        )

        record = Checkpoint(
            files=save_shards(folder / name, tensors, processes), folder=name, processes=processes.size, state=state
        )
    else:
        record = Checkpoint(
            files={name: save_tensors(folder / name, tensors, {}, parents=False)}, processes=1, state=state
        )
    with processes.together("save"):
        if processes.first:
            write_record(folder / "state.json", record, parents=False)
            for old in NAMES:
                if old != name:
                    remove(folder / old)


def _free_name(folder: Path, name: str) -> str:
    """This name or its twin: the one that the checkpoint which is there does not need. What it has left is removed."""
    twin = name.replace("-a", "-b")
    try:
        old = read_record(folder / "state.json", Checkpoint) if present(folder / "state.json") else None
    except UserError:  # it is damaged, and will be replaced
        old = None
    if old is not None and (old.folder == name or name in old.files):
        name = twin
    if name.startswith("shards"):
        remove(folder / name)
    return name


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a checkpoint. Raises UserError for a missing, truncated or corrupt file."""
    record = read_state(folder)
    return read_tensors(folder, record), record.state


def read_state(folder: str | Path) -> Checkpoint:
    """What state.json holds. Raises UserError for a missing or damaged file."""
    path = Path(folder) / "state.json"
    if not present(path):
        raise UserError(f"there is no checkpoint at {path}: {REMEDY}")
    return read_record(path, Checkpoint)


def read_tensors(folder: str | Path, record: Checkpoint, processes: Processes | None = None) -> dict[str, Tensor]:
    """The tensors (on the CPU) that belong to what `read_state` gave, however many processes wrote them.

    processes: the processes, which all call this; each gets its rows.

    Raises:
        UserError: a missing, truncated or corrupt file.
    """
    folder, processes = Path(folder), processes or Processes()
    with processes.together("load"):
        for name in sorted(record.files)[processes.rank :: processes.size]:
            try:
                found = seal_of(folder / name)[0] if record.folder is None else digest_of(folder / name)
            except UserError as error:
                raise UserError(f"{error}; {REMEDY}") from error
            if found != record.files[name]:
                raise UserError(f"{folder / name} is damaged (its checksum is not the one in state.json): {REMEDY}")
        if record.folder is not None:
            for file in (folder / record.folder).glob("*.safetensors"):
                if f"{record.folder}/{file.name}" not in record.files:
                    raise UserError(f"{file} is no part of the checkpoint that lies there: remove it")
    if record.folder is not None:
        from bidistill.distributed.checkpoint import load_shards

        return load_shards(folder / record.folder, processes)
    (name,) = record.files
    if processes.size > 1:
        from bidistill.distributed.checkpoint import load_shard

        return load_shard(folder / name, processes)
    with opened(folder / name) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def save_model(
    path: str | Path, model: Recommender, *, processes: Processes | None = None, parents: bool = True, **notes: Any
) -> str:
    """Write a model's parameters, and in the file's metadata its `config_of` and the notes (plain values).

    processes: the processes that have a shard of the model each, and all call this; the first one writes.

    Returns:
        the file's seal, on the first process; "" on the others.
    """
    path = Path(path)
    metadata = {"format": MODEL_FORMAT, "model": json.dumps(config_of(model)), "notes": json.dumps(notes)}
    if processes is not None and processes.size > 1:
        from bidistill.distributed.models import save_whole

        return save_whole(path, model, metadata, processes, parents=parents)
    return save_tensors(path, model.state_dict(), metadata, parents=parents)


def load_model(
    path: str | Path, *, mapped: bool = False, name: str = "model", given: Recommender | None = None
) -> Recommender:
    """The model that `save_model` wrote, on the CPU. Raises UserError for a missing, damaged or foreign file.

    The whole file is read once to check it, a block at a time.

    Args:
        mapped: leave the tables in the file, whatever their size, for `bdkernels.open_memmap` to read; to evaluate and recommend
            with, not to train. Each call of an operator reads the item table, so let it serve many users. For a `TableModel`.
        name: what messages call the model, such as "teacher".
        given: a module to put the tensors into, instead of the one that the file describes.
    """
    config = model_config(path)
    if given is None and config["kind"] == GIVEN:
        raise missing(name, config["args"]["module"])
    if not mapped:
        return _filled(path, build_model(config) if given is None else given, stored_tensors(path))
    with torch.device("meta"):  # no memory for tables that stay in the file
        model = build_model(config) if given is None else given
    if tables_of(model) is None:
        raise UserError(f"{path}: a {type(model).__name__} has no tables to map: load it without mapping them")
    model.requires_grad_(False)
    with opened(path) as file:
        names = list(file.keys())
    try:
        tensors = {name: open_memmap(path, name) for name in names}
    except ValueError as error:
        raise UserError(f"cannot map the tables of the model ({error}); load it without mapping them") from error
    return _filled(path, model, tensors, assign=True)


def stored_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model's file, by their names in its `state_dict`. Raises UserError like `load_model`."""
    model_config(path)
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _filled(path: str | Path, model: Recommender, tensors: dict[str, Tensor], *, assign: bool = False) -> Recommender:
    """The model, with these tensors of a file in it."""
    try:
        model.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} does not hold the tensors of its model, a {type(model).__name__} ({reason}); train or copy the model again,"
            " or give a module of the same class and sizes"
        ) from error
    return model


def load_into(path: str | Path, model: Recommender, processes: Processes) -> None:
    """Put what `save_model` wrote into a model of the same configuration, or into this process's shard of one.

    Raises UserError like `load_model`.
    """
    if processes.size == 1:
        _filled(path, model, stored_tensors(path))
        return
    model_config(path)
    with opened(path) as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        rows = {name: processes.range(piece.get_shape()[0]) for name, piece in tensors.items()}
        model.load_state_dict({name: piece[rows[name].start : rows[name].stop] for name, piece in tensors.items()})


def model_config(path: str | Path) -> dict[str, Any]:
    """The model's `config_of`. Raises UserError like `load_model`."""
    config: dict[str, Any] = _about(path)[1]
    return config


def model_notes(path: str | Path) -> dict[str, Any]:
    """The notes that `save_model` was given. Raises UserError like `load_model`."""
    notes: dict[str, Any] = _about(path)[2]
    return notes


def model_seal(path: str | Path) -> str:
    """What tells the file of a model from every other one. Raises UserError like `load_model`."""
    return _about(path)[0]


def _about(path: str | Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Seal, configuration and notes of a model, whose file is whole."""
    remedy = "give a model file that this version wrote, such as teacher.safetensors in the folder of a finished run"
    try:
        seal, about = seal_of(path)
        if about.get("format") != MODEL_FORMAT:
            raise UserError(f"it is of the format {about.get('format')!r}, not {MODEL_FORMAT!r}")
    except UserError as error:
        raise UserError(f"cannot read the model {path}: {error}; {remedy}") from error
    return seal, json.loads(about["model"]), json.loads(about["notes"])


def _make(folder: Path) -> None:
    """Make the folder of checkpoints; the one that it lies in has to be there, unless it is the first of a path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}; choose another one") from error
