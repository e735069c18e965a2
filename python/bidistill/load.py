"""From the settings of a run to its split."""

from __future__ import annotations

from collections.abc import Callable

from bidistill.config import DataConfig
from bidistill.data import Split, given_split, read, split
from bidistill.errors import UserError


def load_split(config: DataConfig, tell: Callable[[str], None] | None = None) -> Split:
    """Read and split what the `data` section names.

    Either `data.path`, which is then split by `data.split`, or `data.train_path` with `data.val_path` and `data.test_path`;
    `data.train_path` alone may be an .npz with arrays train, val and test, or a split that `bidistill data split` wrote.
    tell: called with one line about what `data.path` was taken for and the rows that were kept and dropped.

    Raises:
        UserError: nothing to read is named, or it cannot be read or split.
    """
    columns = {name: getattr(config, name) for name in ("user", "item", "rating", "time")}
    options = {**columns, "header": config.header, "min_rating": config.min_rating, "sep": config.sep}
    options |= {"quote": config.quote, "format": config.format}
    if config.path and config.train_path:
        raise UserError("data.path and data.train_path are both set: keep data.path for one file that is to be split")
    if config.path:
        interactions = read(config.path, **options)
        if tell is not None:
            tell(interactions.account())
        return split(
            interactions,
            config.split,
            val=config.val,
            test=config.test,
            seed=config.split_seed,
            min_per_user=config.min_per_user,
        )
    if config.train_path is None:
        raise UserError("there is nothing to train on: set data.path to a file of interactions")
    if config.val_path is None and config.test_path is None and Split.is_saved(config.train_path):
        return Split.load(config.train_path)
    return given_split(config.train_path, config.val_path, config.test_path, **options)
