"""Memory and disk of a run, part by part: sizes of arrays that its code holds, not measurements."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from bidistill.config import Config, ModelConfig
from bidistill.plan.sizes import Sizes

STATES = {"adam": 2, "sparse_adam": 2, "adagrad": 1, "sgd": 0}  # of the optimizers, each as large as the tables
DENSE = ("adam", "adagrad", "sgd")  # those whose gradient is as large as the tables, where no fused step stands in
WIDEST = "the widest moment: an epoch's order, or the seen items of the test"
KEPT = 40  # bytes a row: seen in runs of 4 and 20 million rows of CSV
PROGRAM = 400 << 20  # Python, torch and pyarrow, and what their allocators keep


class Part(NamedTuple):
    """What takes memory, and how much."""

    name: str
    bytes: int


def tables(model: ModelConfig, sizes: Sizes) -> int:
    """Bytes of a model's parameters: mf has a vector a user, a vector and a bias an item."""
    return 4 * (sizes.users * model.dim + sizes.items * (model.dim + 1))


def learner(model: ModelConfig, sizes: Sizes, fused: bool) -> int:
    """Parameters, their best state so far, optimizer, and the gradient where it is dense."""
    dense = model.optimizer == "adam" or (not fused and model.optimizer in DENSE)
    return tables(model, sizes) * (2 + STATES[model.optimizer] + dense)


def pool(config: Config, sizes: Sizes) -> int:
    """Of the draws of all users."""
    distill = config.distill
    directions = (distill.lambda_teacher > 0) + (distill.lambda_student > 0)
    on = distill.method != "none" and distill.refresh > 0
    return 4 * sizes.users * directions * distill.pool if on else 0


def checkpoint(config: Config, sizes: Sizes) -> int:
    """Bytes on disk: all that training changes."""
    models = sum(tables(m, sizes) * (2 + STATES[m.optimizer]) for m in (config.teacher, config.student))
    return models + pool(config, sizes)


def memory(config: Config, sizes: Sizes) -> list[Part]:
    """What a run holds in training, and what its widest moment beyond that takes."""
    fused = not config.distill.negatives_from_samples
    rows = 16 * sizes.interactions + 8 * (sizes.users + sizes.items)
    # Each distinct key of 8 bytes is sorted: the keys, the sorted ones, the distinct ones, and the two columns they come from.
    seen = 8 * 5 * (sizes.interactions - (sizes.interactions - sizes.train) // 2)
    order = 24 * sizes.train
    return [
        Part("Python and torch", PROGRAM),
        Part("interactions", rows),
        Part("seen items, to leave out and to draw negatives", 16 * sizes.train + 24 * sizes.users),
        Part("teacher: tables, best state, optimizer", learner(config.teacher, sizes, fused)),
        Part("student: tables, best state, optimizer", learner(config.student, sizes, fused)),
        Part("pool of draws", pool(config, sizes)),
        Part("what reading the data leaves with the allocators", KEPT * sizes.interactions),
        Part(
            "the report's models, before and after", 2 * (tables(config.teacher, sizes) + tables(config.student, sizes))
        ),
        Part(WIDEST, max(seen, order)),
    ]


def memory_there() -> int:
    """Bytes that this machine's memory has, or the container's limit where that is less."""
    found = [_number("/sys/fs/cgroup/memory.max"), _meminfo("MemTotal")]
    return min((value for value in found if value), default=0)


def gpu_memory_there(device: torch.device) -> int:
    """Bytes that the device has."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def disk_there(folder: Path) -> int:
    """Bytes that are free where the folder will be made."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _number(path: str) -> int:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def _meminfo(key: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
