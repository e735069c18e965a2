"""What is decided before a run begins: that settings, data and machine fit, and what "auto" stands for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch

from bdkernels import rank_error
from bidistill.config import Config, RunConfig
from bidistill.data import Split
from bidistill.data.generator import check_generator
from bidistill.data.sizes import Sizes
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.evaluation.catalog import check_catalog_metrics
from bidistill.logs import log
from bidistill.losses import check_loss, over_catalog
from bidistill.models.checks import check_model, require_trained_factors
from bidistill.registry import MODELS
from bidistill.runs.folder import versions
from bidistill.train_options import MOST_STEPS
from bidistill.training.engine import find_device
from bidistill.training.fitted import settled
from bidistill.training.memory import divided, gpu_memory_there, memory, model_sizes, shortage
from bidistill.training.strategy import strategy_of
from bidistill.training.timing import draw_share

AUTO_ITEMS = 10_000  # estimates are off by at most 1.4 % of the catalog, 19 times in 20


def resolve_config(
    partition: Partition, config: Config, split: Split, fingerprint: str, models: Mapping[str, Any]
) -> Config:
    """The settings of a run, with a number in the place of "auto".

    Args:
        fingerprint: of the split.
        models: the modules that the program gives, by "teacher" or "student".

    Raises:
        UserError: settings that fit neither the data nor the machine, or that contradict each other.
    """
    given = {name: value for name, value in config.values().items() if not name.startswith("data.")}
    partition.require_same("start", given | versions() | {"split": fingerprint})
    strategy_of(partition).check(config)
    config.check_catalog(split.n_items)
    for name, model in models.items():
        check_model(name, model, split.n_users, split.n_items)
    if config.eval.metrics:
        parts = ["val", "test"] if len(split.test_users) else ["val"]
        check_catalog_metrics(config.eval.metrics, split, parts, config.eval.ks, config.eval.users)
    if config.eval.generator is not None:
        check_generator(config.eval.generator, split)
    config = settled(config, model_sizes(config, Sizes.of_split(split, config), models))
    _check_steps(config, split)
    _check_memory(partition, config, split, models)
    check_loss(config.train.loss, config.train.negatives)
    if over_catalog(config.train.loss):
        for name in ("teacher", "student"):
            require_trained_factors(name, models.get(name) or MODELS[config.model(name).kind], config.train.loss)
    if not len(split.val_users):
        raise UserError("the split holds out no val interactions, which pick the best epoch: choose another split")
    auto = config.distill.subset == "auto" and config.distill.method != "none"
    if auto and models:
        raise UserError(
            f"distill.subset auto is measured on models that settings describe, and the {' and '.join(models)} is given: set it"
            " to 0 (exact ranks) or to a number of items"
        )
    return _measured(partition, config, split) if auto else config


def set_threads(run: RunConfig) -> None:
    """Let torch compute with `run.threads` threads. Raises UserError where this machine has far fewer CPUs.

    torch starts any number of threads, and the program ends by a signal where the machine does not give it so many.
    """
    most = 4 * (os.cpu_count() or 1)
    if run.threads > most:
        raise UserError(
            f"run.threads is {run.threads}, but this machine has {most // 4} CPUs: set it to at most {most}, or to 0 for"
            " torch's default"
        )
    if run.threads:
        torch.set_num_threads(run.threads)


def settle(config: Config, split: Split) -> tuple[Config, str]:
    """The settings with a number in the place of `distill.subset` "auto", and a sentence that says which and why.

    Exact while draws take at most `distill.auto_share` of the joint phase's time, measured here and now. The number goes into
    the run's config.toml, so that the run can be repeated.
    """
    sizes = Sizes.of_split(split, config)
    return decided(config, sizes, draw_share(config, sizes))


def decided(config: Config, sizes: Sizes, share: float) -> tuple[Config, str]:
    """`settle` where exact draws take this share of the joint phase's time."""
    exact = share <= config.distill.auto_share or sizes.items <= AUTO_ITEMS
    words = f"distill.subset auto: exact draws would take {share:.0%} of the joint phase"
    if exact:
        return config.with_overrides({"distill.subset": 0}), f"{words}: exact ranks"
    words += f": ranks from {AUTO_ITEMS:,} items, off by at most {rank_error(AUTO_ITEMS):.1%} of the catalog (19 in 20)"
    return config.with_overrides({"distill.subset": AUTO_ITEMS}), words


def _check_steps(config: Config, split: Split) -> None:
    """The sampler takes a step's number in 32 bits, which only draws at every step can use up."""
    steps = config.train.epochs * math.ceil(len(split.train_users) / config.train.batch_size)
    if config.distill.method != "none" and config.distill.resample_every == 0 and steps > MOST_STEPS:
        raise UserError(
            f"train.epochs gives {steps:,} steps of the joint phase, and draws at every step (distill.resample_every 0) end at"
            f" {MOST_STEPS:,}: lower train.epochs, or raise train.batch_size or distill.resample_every"
        )


def _check_memory(partition: Partition, config: Config, split: Split, models: Mapping[str, Any]) -> None:
    """Raise UserError where this machine, or its GPU, has less memory than the run needs."""
    parts = divided(memory(config, Sizes.of_split(split, config), models), partition.ways)
    device = find_device(config.run.device)
    with partition.together("memory"):
        if device.type == "cuda":
            short = shortage([part for part in parts if part.lower], gpu_memory_there(device))
            parts = [part for part in parts if not part.lower]
        else:
            short = ""
        short = short or shortage([part._replace(bytes=part.bytes * partition.neighbours) for part in parts])
        if short:
            raise UserError(short)


def _measured(partition: Partition, config: Config, split: Split) -> Config:
    """With a number for distill.subset "auto"."""
    catalog = 0
    with partition.together("distill.subset auto"):
        if partition.main:
            measured, why = settle(config, split)
            catalog = int(measured.distill.subset)
            if config.run.progress:
                log.info(why)
    return config.with_overrides({"distill.subset": partition.same("catalog", catalog)})
