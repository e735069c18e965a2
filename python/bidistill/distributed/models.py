"""A model whose tables lie on several processes, written to one file as if it lay on one: no process ever holds a whole table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bidistill.distributed.processes import Processes
from bidistill.files.tensors import save_blocks
from bidistill.models import Recommender

ROWS = 1 << 16  # of a table that travel at once


def save_whole(
    path: Path, model: Recommender, metadata: dict[str, str], processes: Processes, *, parents: bool = True
) -> str:
    """Write a safetensors file on the first process, with the rows of all, a block at a time. Returns its seal there."""
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    lengths = torch.tensor([[len(value) for value in tensors.values()]])
    sizes = processes.exchange.gather(lengths, [1] * processes.size)  # [processes, tensors]
    totals = sizes.sum(0).tolist()
    shapes = {
        name: (value.dtype, (total, *value.shape[1:]))
        for (name, value), total in zip(tensors.items(), totals, strict=True)
    }
    blocks, seal = _blocks(list(tensors.values()), sizes.T.tolist(), processes), ""
    with processes.together("save"):
        try:
            if processes.first:
                seal = save_blocks(path, shapes, metadata, blocks, parents=parents)
        finally:
            for _ in blocks:  # the other processes send their rows whether or not they can be written
                pass
    return seal


def _blocks(tensors: list[Tensor], sizes: list[list[int]], processes: Processes) -> Iterator[Tensor]:
    """The rows of all processes, tensor by tensor, on the first process; on the others as many empty blocks.

    sizes: for each tensor how many rows each process has.
    """
    for value, lengths in zip(tensors, sizes, strict=True):
        for place, length in enumerate(lengths):
            for start in range(0, length, ROWS):
                n = min(ROWS, length - start)
                mine = value[start : start + n] if place == processes.rank else value[:0]
                yield _to_first(mine, place, n, processes)


def _to_first(rows: Tensor, place: int, n: int, processes: Processes) -> Tensor:
    """[n, ...] rows of the process `place`, on the first process; nothing elsewhere."""
    send, receive = [0] * processes.size, [0] * processes.size
    if place == processes.rank:
        send[0] = n
    if processes.first:
        receive[place] = n
    return processes.exchange.route(rows, send, receive)
