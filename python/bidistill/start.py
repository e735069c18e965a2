"""What is settled before a run begins: that its processes were given the same, that settings and data fit, and what is "auto"."""

from __future__ import annotations

import math
import os

import torch

from bidistill.config import MOST_STEPS, Config, RunConfig
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.learner import find_device
from bidistill.run_folder import versions
from bidistill.sharded.update import check_shardable
from bidistill.world import World, within


def settled(world: World, config: Config, split: Split, fingerprint: str) -> Config:
    """The settings of the run, the same on every process.

    Args:
        fingerprint: of the split.

    Raises:
        UserError: on every process, naming one, where the processes have other settings, data or software; or settings that do
            not fit the data or several processes.
    """
    if world.size > 1:
        given = {name: value for name, value in config.values().items() if not name.startswith("data.")}
        world.agree("start", settings=given | versions() | {"split": fingerprint})
        check_shardable(config)
    config.check_catalog(split.n_items)
    _check_steps(config, split)
    _check_memory(world, config, split)
    if not len(split.val_users):
        raise UserError("the split holds out no val interactions, which pick the best epoch: choose another split")
    auto = config.distill.catalog == "auto" and config.distill.method != "none"
    return _measured(world, config, split) if auto else config


def set_threads(run: RunConfig) -> None:
    """Let torch compute with `run.threads` threads. Raises UserError where this machine has far fewer CPUs.

    torch starts any number of threads, and the process ends by a signal where the machine does not give it so many.
    """
    most = 4 * (os.cpu_count() or 1)
    if run.threads > most:
        raise UserError(
            f"run.threads is {run.threads}, but this machine has {most // 4} CPUs: set it to at most {most}, or to 0 for"
            " torch's default"
        )
    if run.threads:
        torch.set_num_threads(run.threads)


def _check_steps(config: Config, split: Split) -> None:
    """The sampler takes a step's number in 32 bits, which only draws at every step can use up."""
    steps = config.train.epochs * math.ceil(len(split.train_users) / config.train.batch_size)
    if config.distill.method != "none" and config.distill.refresh == 0 and steps > MOST_STEPS:
        raise UserError(
            f"train.epochs gives {steps:,} steps of the joint phase, and draws at every step (distill.refresh 0) end at"
            f" {MOST_STEPS:,}: lower train.epochs, or raise train.batch_size or distill.refresh"
        )


def _check_memory(world: World, config: Config, split: Split) -> None:
    """Raise UserError where this machine, or its GPU, has less memory than the run needs."""
    from bidistill.plan.memory import gpu_memory_there, memory, shortage
    from bidistill.plan.sizes import Sizes
    from bidistill.plan.world import divided

    parts = divided(memory(config, Sizes.of_split(split, config)), world.size)
    device = find_device(config.run.device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world.size > 1 else 1  # processes that share this machine
    with world.together("memory"):
        if device.type == "cuda":
            short = shortage([part for part in parts if part.lower], gpu_memory_there(device))
            parts = [part for part in parts if not part.lower]
        else:
            short = ""
        short = short or shortage([part._replace(bytes=part.bytes * here) for part in parts])
        if short:
            raise UserError(short)


def _measured(world: World, config: Config, split: Split) -> Config:
    """With a number for distill.catalog "auto", from what the first process measures."""
    from bidistill.plan import settle  # which measures a Trainer

    catalog = 0
    with world.together("distill.catalog auto"), within(World()):
        if world.first:
            measured, why = settle(config, split)
            catalog = int(measured.distill.catalog)
            if config.run.progress:
                print(why)
    return config.with_overrides({"distill.catalog": world.agree("catalog", catalog)[0]})
