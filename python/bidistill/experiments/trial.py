"""What is checked before the first cell is trained: that each can be, and that disk and memory are enough for all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from bidistill.config import Config
from bidistill.data import Split
from bidistill.data.sizes import Sizes, made_up
from bidistill.distill.method import list_sizes
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.experiments.cell import MODELS, pretraining_key
from bidistill.experiments.folder import settings_of
from bidistill.experiments.grid import Cell
from bidistill.training.memory import disk_there, gb, learner, memory, shortage, tables
from bidistill.training.settings import resolve_config
from bidistill.training.trainer import Trainer

USERS, ITEMS, EACH = 40, 200, 12  # of the little data on which cells are tried
ROW, RECORD = 400, 20_000  # bytes of an epoch in a record, and of the rest of it: seen in records of real runs


def check_cells(cells: Sequence[Cell], splits: Mapping[str, Split]) -> None:
    """Raise UserError, which names the cell, where one cannot be trained: its settings do not fit the data or this machine, or
    its method cannot serve its models. For the latter each set of settings is trained for one epoch on little made-up data.
    """
    tried = set()
    for cell in cells:
        key = json.dumps(settings_of(cell.config) | {"run.seed": 0, "data": cell.data}, sort_keys=True)
        if key in tried:
            continue
        tried.add(key)
        try:
            _check_cell(cell.config, splits[cell.data])
        except UserError as error:
            raise UserError(f"{cell.name}: {error}; nothing was trained") from error
        except Exception as error:  # of a method or a model of others
            words = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{cell.name} cannot be trained, as an epoch on little made-up data shows ({type(error).__name__}: {words}):"
                " choose other settings, or leave the run out; nothing was trained"
            ) from error


def _check_cell(config: Config, split: Split) -> None:
    if config.distill.subset == "auto":
        config = config.with_overrides(
            {"distill.subset": 0}
        )  # what it stands for takes a measurement, and is found in the cell
    sizes = Sizes.of_split(split, config)
    partition = Partition.whole(split.n_users, split.n_items)
    resolve_config(partition, config, split, split.fingerprint(), {})
    lists = [max(config.eval.ks), config.distill.samples, config.distill.pool_top, config.train.drawn_negatives]
    items = max(ITEMS, 2 * max(*lists, *list_sizes(config.distill)))
    little = made_up(sizes.at_most(USERS, items, USERS * EACH))
    few = {
        "train.pretrain_epochs": min(1, config.train.pretrain_epochs),
        "train.epochs": min(1, config.train.epochs),
        "train.batch_size": min(USERS * EACH, config.train.batch_size),
        "eval.generator": None,  # it did not make these data up
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(config.with_overrides(few), little).fit()


def check_disk(
    folder: Path, cells: Sequence[Cell], splits: Mapping[str, Split], jobs: int, *, share: bool, keep: bool
) -> int:
    """Bytes that these cells will take, about. Raises UserError where the disk has not so much.

    Args:
        folder: of the experiment.
        cells: those that are to be trained.
        share, keep: `Grid.share_pretraining`, `Grid.keep_models`.
    """
    need, moment, pretrainings = 0, 0, set()
    for data in {cell.data for cell in cells}:
        split = splits[data]
        need += 8 * sum(2 * len(split.part(name)[0]) for name in ("train", "val", "test"))
        need += 16 * (split.n_users + split.n_items)
    for cell in cells:
        config, split = cell.config, splits[cell.data]
        sizes = Sizes.of_split(split, config)
        held_out = len(split.val_users) + len(split.test_users)
        need += 12 * held_out + RECORD + ROW * (2 * config.train.pretrain_epochs + config.train.epochs)
        models = sum(tables(config.model(name), sizes) for name in MODELS)
        checkpoint = 2 * sum(learner(config.model(name), sizes, False) for name in MODELS)
        if keep:
            need += 2 * models + checkpoint
        if share and (key := pretraining_key(config, split.fingerprint())) not in pretrainings:
            pretrainings.add(key)
            need += models
            moment = max(moment, checkpoint + models)
    need += jobs * moment
    free = disk_there(folder.absolute())
    if need > free:
        most = "keep_models is set" if keep else "the most is for pretrainings" if share else "the most is for ranks"
        raise UserError(
            f"{folder}: the {len(cells):,} cells need about {gb(need)}, and the disk has {gb(free)} free ({most}): choose a"
            " folder on another disk, or fewer cells; nothing was trained"
        )
    return need


def check_memory(cells: Sequence[Cell], splits: Mapping[str, Split], jobs: int) -> None:
    """Raise UserError where so many of the largest cells at a time need more memory than there is."""
    found = {}
    for cell in cells:
        parts = memory(cell.config, Sizes.of_split(splits[cell.data], cell.config))
        found[sum(part.bytes for part in parts)] = parts
    if found and (short := shortage([part._replace(bytes=part.bytes * jobs) for part in found[max(found)]])):
        raise UserError(f"{jobs} cells at a time: {short}, or set jobs to fewer; nothing was trained")
