"""From the settings of a run to its split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bidistill.config import Config
from bidistill.data import Split, given_split, is_split, read, split
from bidistill.data.origin import Origin
from bidistill.data_options import DataConfig
from bidistill.errors import UserError

SPLITTING = ("split", "val", "test", "split_seed", "min_per_user")
READING = ("user", "item", "rating", "time", "min_rating", "header", "sep", "quote", "format")
DROPPING = ("drop_seen_pairs", "drop_cold_users")


def load_split(config: DataConfig) -> Split:
    """Read and split what the `data` section names.

    Either `data.path`, which is then split by `data.split`, or `data.train_path` with `data.val_path` and `data.test_path`.
    `data.path` or `data.train_path` alone may also be split already: an .npz with arrays train, val and test, or a split that
    `bidistill data split` wrote. It is taken as it is, which a note of the split's origin says.

    Raises:
        UserError: nothing to read is named, it cannot be read or split, or an option is set that does not apply to it.
    """
    held_out = [name for name in ("val_path", "test_path") if getattr(config, name)]
    if config.path and (config.train_path or held_out):
        other = "train_path" if config.train_path else held_out[0]
        raise UserError(f"data.path and data.{other} are both set: keep data.path for one file that is to be split")
    source = config.path or config.train_path
    if source is None:
        where = f"; data.{held_out[0]} is held out only" if held_out else ""
        raise UserError(f"there is nothing to train on: set data.path to a file of interactions{where}")
    options = {name: getattr(config, name) for name in READING}
    whole = not held_out and is_split(source)
    if config.path and not whole:
        _refuse(config, DROPPING, f"data.path {source} is not split yet")
        return split(
            read(source, **options),
            config.split,
            val=config.val,
            test=config.test,
            seed=config.split_seed,
            min_per_user=config.min_per_user,
        )
    _refuse(config, SPLITTING, f"{source} is split already")
    note = (f"{source} is split already and is taken as it is: the data options that split do not apply",)
    if whole and Split.is_saved(source):
        _refuse(config, READING, f"{source} is a saved split")
        saved = Split.load(source)
        rows = sum(len(saved.part(name)[0]) for name in ("train", "val", "test"))
        return replace(saved, origin=Origin(rows, {}, notes=note))
    drops: dict[str, Any] = {name: getattr(config, name) for name in DROPPING}
    given = given_split(source, config.val_path, config.test_path, **drops, **options)
    if whole and given.origin is not None:
        given = replace(given, origin=replace(given.origin, notes=note + given.origin.notes))
    return given


def _refuse(config: DataConfig, names: Sequence[str], why: str) -> None:
    """Raise UserError for the first of these options that is set, since it would be ignored."""
    default = Config().data
    for name in names:
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"{why}, so data.{name} does not apply: unset it, or give another file")
