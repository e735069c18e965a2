"""Memory and disk of a run, part by part: sizes of arrays that its code holds, not measurements."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from bidistill.config import Config, ModelConfig
from bidistill.data.sizes import Sizes
from bidistill.distill.method import GUIDES, list_sizes, make_method
from bidistill.models.kinds import takes
from bidistill.models.sizes import ModelSize, size_of, size_of_kind
from bidistill.optimizers import state_size, wants_sparse
from bidistill.training.baselines import sizes_of
from bidistill.training.fusion import unfused, unfused_settings

WIDEST = "the widest moment: an epoch's order, or the seen items of the test"
WHOLE = ("Python and torch", "interactions", WIDEST)  # what is never divided
STEP_NEGATIVE, STEP_SAMPLE = 55, 80  # bytes of a negative, a distilled item: seen in steps of 50,000 rows x 100 items
KEPT = 40  # bytes a row: seen in runs of 4 and 20 million rows of CSV
FEWER = "the number of items, or"
PROGRAM = 400 << 20  # Python, torch and pyarrow, and what their allocators keep


class Allocation(NamedTuple):
    """What takes memory, how much, and which options make it less."""

    name: str
    bytes: int
    lower: str = ""


def model_sizes(config: Config, sizes: Sizes, given: Mapping[str, Any] | None = None) -> dict[str, ModelSize]:
    """How large the "teacher" and the "student" are.

    given: modules in the place of those that the settings describe.
    """
    given = given or {}
    return {
        name: size_of(given[name]) if name in given else described(config.model(name), sizes)
        for name in ("teacher", "student")
    }


def described(model: ModelConfig, sizes: Sizes) -> ModelSize:
    """How large the model of these settings is."""
    return size_of_kind(model.build_config(sizes.users, sizes.items))


def tables(model: ModelConfig, sizes: Sizes) -> int:
    """Bytes of the parameters and buffers of the model of these settings."""
    return described(model, sizes).state


def learner(model: ModelConfig, sizes: Sizes, fused: bool, size: ModelSize | None = None) -> int:
    """Parameters, their best state so far, optimizer, and the gradient where it is dense; of a model that no gradient trains, its
    state.

    size: that of the model, where it is known.
    """
    size = described(model, sizes) if size is None else size
    if not size.learns:
        return size.state
    fused = fused and size.width is not None and not unfused_settings(model)
    dense = not fused and not wants_sparse(model.optimizer)
    return math.ceil(size.state * (2 + states(model) + dense))


def states(model: ModelConfig) -> float:
    """Tensors as large as the parameters that the optimizer keeps."""
    return state_size(model.optimizer, model.lr, model.weight_decay, model.optimizer_args)


def pool(config: Config, sizes: Sizes) -> int:
    """Of the draws of all users."""
    distill = config.distill
    directions = (distill.lambda_teacher > 0) + (distill.lambda_student > 0)
    return 4 * sizes.users * directions * list_sizes(distill)[0] if distill.resample_every else 0


def _largest_of_pool(config: Config) -> str:
    """The option that makes the pool large."""
    method = make_method(config.distill)
    if method is not None and method.list_size:
        return "distill.args"
    return max(("distill.pool", "distill.pool_top", "distill.pool_uniform"), key=lambda name: cast(int, config[name]))


def copies(config: Config, found: Mapping[str, ModelSize]) -> int:
    """Of the copies of guides, where learners follow such."""
    distill = config.distill
    if distill.method == "none" or distill.guide == "live" or config.train.joint == "student":
        return 0
    return sum(found[guide].state for learner, guide in GUIDES.items() if config[f"distill.lambda_{learner}"])


def step(config: Config, sizes: Sizes, fused: bool, found: Mapping[str, ModelSize]) -> int:
    """What a training step of the joint phase holds at a time: its items, and in an eager step what autograd keeps of them.

    found: the sizes of the "teacher" and the "student".
    """
    negatives, samples = config.train.drawn_negatives, list_sizes(config.distill)[1]
    lists = STEP_NEGATIVE * negatives + STEP_SAMPLE * samples
    eager = []
    for name, size in found.items():
        model = config.model(name)
        if size.learns and (unfused_settings(model) or not fused or size.width is None):
            in_products = config.train.shares_negatives and size.width is not None and not wants_sparse(model.optimizer)
            eager.append(size.listed * (1 + (1 if in_products else negatives) + samples))
    rows = max(eager, default=0)
    return min(config.train.batch_size, sizes.train) * (lists + rows)


def checkpoint(config: Config, sizes: Sizes) -> int:
    """Bytes on disk: all that training changes."""
    found = model_sizes(config, sizes)
    models = sum(
        math.ceil(each.state * (2 + states(config.model(name)))) for name, each in found.items() if each.learns
    )
    return models + pool(config, sizes) + copies(config, found)


def memory(config: Config, sizes: Sizes, given: Mapping[str, Any] | None = None) -> list[Allocation]:
    """What a run holds in training, and what its widest moment beyond that takes.

    given: modules in the place of the "teacher" or the "student" that the settings describe.
    """
    given = given or {}
    found = model_sizes(config, sizes, given)
    fused = not unfused(config)
    rows = 16 * sizes.interactions + 8 * (sizes.users + sizes.items)
    # Each distinct key of 8 bytes is sorted: the keys, the sorted ones, the distinct ones, and the two columns they come from.
    seen = 8 * 5 * (sizes.interactions - (sizes.interactions - sizes.train) // 2)
    order = 24 * sizes.train
    models = {
        name: Allocation(
            f"{name}: tables, best state, optimizer" if found[name].learns else f"{name}: what it is fitted to",
            learner(config.model(name), sizes, fused, found[name]),
            f"{name}.dim" if takes(config.model(name).kind, "dim") else f"the size of the {name}",
        )
        for name in ("teacher", "student")
    }
    fits = [
        Allocation(f"{name}: what its fit takes", each.fit_bytes(sizes.train), f"{FEWER} choose another {name}.kind")
        for name, each in found.items()
        if each.fit_bytes is not None
    ]
    compared = [
        each.state + (each.fit_bytes(sizes.train) if each.fit_bytes is not None else 0)
        for each in sizes_of(config, sizes).values()
    ]
    report = 2 * sum(size.state for size in found.values()) if config.run.out else 0
    return [
        Allocation("Python and torch", PROGRAM),
        Allocation("interactions", rows),
        Allocation("seen items, to leave out and to draw negatives", 16 * sizes.train + 24 * sizes.users),
        *models.values(),
        *fits,
        Allocation("the largest of the baselines", max(compared), f"{FEWER} leave it out of eval.baselines"),
        Allocation("pool of draws", pool(config, sizes), _largest_of_pool(config)),
        Allocation("copies of guides", copies(config, found), "teacher.dim or student.dim"),
        Allocation(
            "a training step", step(config, sizes, fused, found), "train.batch_size, train.negatives or distill.samples"
        ),
        Allocation("what reading the data leaves with the allocators", KEPT * sizes.interactions),
        Allocation("the report's models, before and after", report, "teacher.dim or student.dim"),
        Allocation(WIDEST, max(seen, order)),
    ]


def shortage(parts: list[Allocation], have: int | None = None) -> str:
    """What to say where the parts take more memory than there is; "" where it is enough, or not known.

    have: bytes; this machine's memory by default.
    """
    need, have = sum(part.bytes for part in parts), memory_there() if have is None else have
    if not have or need <= have:
        return ""
    ordered = sorted(parts, key=lambda part: -part.bytes)
    culprits = [part for part in ordered if part.bytes > have] or ordered[:1]
    options = list(dict.fromkeys(part.lower for part in culprits if part.lower))
    remedy = f"lower {', or '.join(options)}" if options else "use a machine with more of it, or fewer data"
    return (
        f"memory: {gb(need)} are needed and {gb(have)} are there; the most, {gb(ordered[0].bytes)}, goes to"
        f" {ordered[0].name}: {remedy}"
    )


def gb(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"


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


def divided(parts: list[Allocation], ways: int) -> list[Allocation]:
    """The same where users and items are divided so many ways: what each share takes."""
    return [part if part.name in WHOLE else part._replace(bytes=math.ceil(part.bytes / ways)) for part in parts]
