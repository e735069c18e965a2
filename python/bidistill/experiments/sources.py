"""The data of an experiment: files, public data sets that are downloaded, and made-up ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bidistill.config import Config
from bidistill.data import Split, generate, movielens_100k, split
from bidistill.data.load import READING, SPLITTING, load_split
from bidistill.errors import UserError
from bidistill.experiments.grid import DataSet

FETCHED: dict[str, Callable[[str | Path], Path]] = {"movielens-100k": movielens_100k}
NUMBERS = ("zipf", "tastes")
MADE = {
    "users": "n_users",
    "items": "n_items",
    "interactions": "n_interactions",
    "dim": "dim",
    "seed": "seed",
    "zipf": "zipf",
    "tastes": "tastes",
}


def load_data(data: DataSet, cache: str | Path) -> Split:
    """The split of a data set.

    Args:
        cache: folder where downloaded files are kept.

    Raises:
        UserError: it cannot be read, downloaded or made up, or an option does not apply to it.
    """
    try:
        return _loaded(data, cache)
    except UserError as error:
        raise UserError(f"[data.{data.name}]: {error}") from error


def _loaded(data: DataSet, cache: str | Path) -> Split:
    options = {f"data.{name}": value for name, value in data.options.items()}
    if data.generate:
        return _made(data)
    if data.fetch:
        if data.fetch not in FETCHED:
            raise UserError(f"fetch must be one of {', '.join(FETCHED)}, found {data.fetch!r}")
        options["data.path"] = str(FETCHED[data.fetch](cache))
    return load_split(Config().with_overrides(options).data)


def _made(data: DataSet) -> Split:
    """Made-up interactions, split as the options say."""
    for name in data.options:
        if name in READING or name not in SPLITTING:
            raise UserError(f"{name} does not apply to data that generate makes up: leave it out")
    for name in data.generate:
        if name not in MADE:
            raise UserError(f"generate has no {name!r}: it takes {', '.join(MADE)}")
    if missing := [name for name in ("users", "items", "interactions") if name not in data.generate]:
        raise UserError(f"generate needs {missing[0]}, a whole number")
    for name, value in data.generate.items():
        if isinstance(value, bool) or not isinstance(value, (int, float) if name in NUMBERS else int):
            raise UserError(
                f"generate.{name} must be a {'number' if name in NUMBERS else 'whole number'}, found {value!r}"
            )
    config = Config().with_overrides({f"data.{name}": value for name, value in data.options.items()}).data
    made = generate(**{MADE[name]: value for name, value in data.generate.items()})[0]
    return split(
        made, config.split, val=config.val, test=config.test, seed=config.split_seed, min_per_user=config.min_per_user
    )
