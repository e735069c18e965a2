"""The file that has the model which made data up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bidistill.data.splits import KINDS, Split
from bidistill.errors import UserError
from bidistill.files.tensors import opened, save_tensors, seal_of
from bidistill.models.generator import Generator

FORMAT = "bidistill generator 1"
NAMES = ("user_factors", "item_factors")


class GeneratorSize(NamedTuple):
    """Users, items, and the length of their vectors."""

    users: int
    items: int
    width: int


def path_beside(data: str | Path) -> Path:
    """Where the file is that belongs to a file of made-up interactions: made.csv -> made.generator.safetensors."""
    return Path(data).with_suffix(".generator.safetensors")


def write_generator(path: str | Path, user_factors: np.ndarray, item_factors: np.ndarray) -> None:
    """Write what `generate` gives, float32 [n_users, d] and [n_items, d]. Raises UserError where that cannot be done."""
    tables = (torch.from_numpy(each) for each in (user_factors, item_factors))
    save_tensors(Path(path), dict(zip(NAMES, tables, strict=True)), {"format": FORMAT})


def generator_size(path: str | Path) -> GeneratorSize:
    """The sizes of a generator in a file. Raises UserError for a missing, damaged or foreign file."""
    with _tables(path) as tables:
        users, items = (tuple(table.get_shape()) for table in tables)
    return GeneratorSize(users[0], items[0], users[1])


def check_generator(path: str | Path, split: Split) -> None:
    """Raise UserError unless the file is the generator of these data: their ids must be the numbers of its users and items."""
    size = generator_size(path)
    for kind, ids, n in zip(KINDS, (split.user_ids, split.item_ids), size[:2], strict=True):
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= n:
            odd = next((each for each in ids.tolist() if not isinstance(each, int) or not 0 <= each < n), None)
            raise UserError(
                f"the generator {path} has the {n:,} {kind} 0 to {n - 1}, but the data have {odd!r}: give the file that"
                " `bidistill data generate` wrote beside these data, or unset eval.generator"
            )


def read_generator(
    path: str | Path, split: Split, *, users: range | None = None, items: range | None = None
) -> Generator:
    """The generator of these data, with a row for each user and item of the split.

    users, items: those that are here, numbered as in the split; all by default.
    Raises UserError as `check_generator`.
    """
    check_generator(path, split)
    user_ids, item_ids = (
        ids if own is None else ids[own.start : own.stop]
        for ids, own in ((split.user_ids, users), (split.item_ids, items))
    )
    with _tables(path) as tables:
        rows = zip(tables, (user_ids, item_ids), strict=True)
        user_factors, item_factors = (table[:][torch.from_numpy(ids.astype(np.int64))] for table, ids in rows)
    return Generator(user_factors, item_factors, split.n_users, split.n_items)


@contextmanager
def _tables(path: str | Path) -> Iterator[list[Any]]:
    """The users' and the items' table in the file, to be read in part."""
    _, about = seal_of(path)
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} is no generator (its format is {about.get('format')!r}, not {FORMAT!r}): give a file that `bidistill data"
            " generate` wrote beside its data"
        )
    with opened(path) as file:
        yield [file.get_slice(name) for name in NAMES]
