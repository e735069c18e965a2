"""The tensors of a checkpoint in shards: torch.distributed.checkpoint on DTensors, in its safetensors format, so never pickle.

Each process writes its rows into a file of its own, in a folder that all of them see. Any number of processes can read them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DeviceMesh, DTensor, Shard

from bidistill.distributed.processes import Processes
from bidistill.errors import UserError
from bidistill.files.access import digest_of, sync, sync_folder
from bidistill.files.tensors import remove


def save_shards(path: Path, tensors: dict[str, Tensor], processes: Processes) -> dict[str, str]:
    """Write this process's rows of every tensor into a new folder, as all processes do together.

    Returns:
        the sha256 of each file, by its path from the folder that this one lies in. The disk has all of them.
    """
    lengths = torch.tensor([[len(value) for value in tensors.values()]])
    totals = processes.exchange.gather(lengths, [1] * processes.size).sum(0).tolist()
    values = {
        name: _shard(value.detach().cpu().contiguous(), total, processes)
        for (name, value), total in zip(tensors.items(), totals, strict=True)
    }
    writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        dcp.save(values, storage_writer=writer, process_group=processes.exchange.group)
    except CheckpointException as error:
        if processes.first:
            remove(path)  # half of it would fill the disk that is full
        rank, (reason, _) = next(iter(error.failures.items()))
        said = str(reason).splitlines()[0]
        raise UserError(
            f"cannot write {path} on rank {rank}: {said}; free some space or choose another folder"
        ) from error
    except RuntimeError as error:
        raise processes.exchange.lost("save", error) from error
    with processes.together("save"):
        own = list(path.glob(f"shard-{processes.rank + 1:05d}-*.safetensors"))
        for file in own:
            sync(file)
        sync_folder(path)
        sync_folder(path.parent)
        lines = [f"{path.name}/{file.name} {digest_of(file)}" for file in own]
    return dict(line.split() for text in processes.texts("save", "\n".join(lines)) for line in text.splitlines())


def load_shards(path: Path, processes: Processes) -> dict[str, Tensor]:
    """This process's rows of every tensor that `save_shards` wrote, whoever wrote them: all rows in one process."""
    sizes: dict[str, Any] = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    values: dict[str, Any] = {}
    for name, about in sorted(sizes.items()):
        rows = processes.range(about.size[0])
        values[name] = torch.empty((len(rows), *about.size[1:]), dtype=about.properties.dtype)
        if processes.size > 1:
            values[name] = _shard(values[name], about.size[0], processes)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "torch.distributed is disabled"
        )  # each process reads its rows without the others
        dcp.load(values, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in values.items()}


def load_shard(path: Path, processes: Processes) -> dict[str, Tensor]:
    """This process's rows of every tensor in a safetensors file of whole ones."""
    with safe_open(path, framework="pt") as file:
        found = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            piece = file.get_slice(name)
            rows = processes.range(piece.get_shape()[0]) if piece.get_shape() else None
            found[name] = file.get_tensor(name) if rows is None else piece[rows.start : rows.stop]
        return found


def _shard(local: Tensor, n: int, processes: Processes) -> DTensor:
    """The rows of this process as its shard of a tensor of n rows."""
    mesh = DeviceMesh.from_group(processes.exchange.group, "cpu")
    shape = torch.Size((n, *local.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
