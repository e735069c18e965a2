"""The folder of an experiment: whose it is, which cells it has, and what may be written there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bidistill.config import Config
from bidistill.errors import UserError
from bidistill.experiments.grid import Cell, Grid
from bidistill.experiments.records import CellRecord, Experiment
from bidistill.files.access import digest_of, load_npz, present, replacing, unwritable
from bidistill.files.records import read_record, write_record
from bidistill.runs.folder import LOCK, RunFolder

RECORD = "experiment.json"
COUNTED = ("run.seed", "run.device")  # of the section [run], what counts for a result
WRITTEN = (RECORD, "cells", "data", "pretrained", "models", "report.html", "results.md", "results.json")


class ExperimentFolder:
    """experiment.json; data/NAME.npz, the splits; cells/DATA/VARIANT/SEED.json with what a cell gave, and SEED.npz with its
    ranks; pretrained/KEY, pretrainings that cells share; models/DATA/VARIANT/SEED, run folders where `keep_models` asks for them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Inside, no other process works in the folder, which is made if it is not there.

        Raises:
            UserError: another process works there, or it is the folder of a run, of another experiment or of others.
        """
        self.check(name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        with RunFolder(self.path).held():
            self.check(name)
            yield

    def check(self, name: str) -> None:
        """Raise UserError where the folder is not free for the experiment of this name."""
        if not present(self.path):
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is no folder: choose another one")
        if present(self.path / RECORD):
            other = self.record().name
            if other != name:
                raise UserError(
                    f"{self.path} belongs to the experiment {other!r}, this one is {name!r}: choose another folder, or give the"
                    " file the same name if it is the same experiment"
                )
            return
        others = [each for each in sorted(os.listdir(self.path)) if each != LOCK and not each.startswith(".")]
        if others:
            raise UserError(
                f"{self.path} holds files that are no experiment's ({others[0]}): choose another folder, or empty this one"
            )

    def record(self) -> Experiment:
        """Whose folder it is. Raises UserError where it is none of an experiment."""
        if not present(self.path / RECORD):
            raise UserError(f"{self.path} is no folder of an experiment (it has no {RECORD})")
        return read_record(self.path / RECORD, Experiment)

    def grid(self) -> Grid:
        """The grid of the last call."""
        found = self.record()
        return Grid.of(found.grid, found.name)

    def write(self, grid: Grid, splits: Mapping[str, str]) -> None:
        """Write down whose folder it is. splits: fingerprints by data set; those of other data sets stay."""
        kept = self.record().splits if present(self.path / RECORD) else {}
        known = {name: each for name, each in kept.items() if name in grid.data}
        write_record(self.path / RECORD, Experiment(name=grid.name, grid=grid.source, splits=known | dict(splits)))

    def split_path(self, data: str) -> Path:
        """Where a data set's split lies."""
        return self.path / "data" / f"{data}.npz"

    def cell_path(self, cell: Cell) -> Path:
        """Where a cell's record lies."""
        return self.path / "cells" / cell.data / cell.variant / f"{cell.seed}.json"

    def ranks_path(self, cell: Cell) -> Path:
        """Where the ranks lie that it gave."""
        return self.path / "cells" / cell.data / cell.variant / f"{cell.seed}.npz"

    def models_path(self, cell: Cell) -> Path:
        """The run folder of a cell, where models are kept."""
        return self.path / "models" / cell.data / cell.variant / str(cell.seed)

    def pretrained_path(self, key: str) -> Path:
        """The run folder of a pretraining that cells share."""
        return self.path / "pretrained" / key

    def cell(self, cell: Cell) -> CellRecord | None:
        """What a cell gave, or None. Raises UserError for a damaged file."""
        path = self.cell_path(cell)
        if not present(path):
            return None
        found = read_record(path, CellRecord)
        if (found.data, found.variant, found.seed) != (cell.data, cell.variant, cell.seed):
            raise UserError(
                f"{path} is the record of another cell ({found.data}/{found.variant}/{found.seed}): delete it"
            )
        return found

    def write_cell(self, cell: Cell, record: CellRecord, ranks: Mapping[str, np.ndarray] | None = None) -> None:
        """Write what a cell gave: the ranks, then the record that names their checksum."""
        path = self.ranks_path(cell)
        if ranks is None:
            path.unlink(missing_ok=True)
        else:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **ranks)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
            record = record.model_copy(update={"ranks": digest_of(path)})
        write_record(self.cell_path(cell), record)

    def ranks(self, cell: Cell, record: CellRecord) -> dict[str, np.ndarray]:
        """The ranks that a cell gave. Raises UserError where they are not those of its record."""
        path = self.ranks_path(cell)
        if digest_of(path) != record.ranks:
            raise UserError(f"{path} is not the file that {self.cell_path(cell)} names: {CellRecord.REMEDY}")
        return load_npz(path)


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that count for a result, JSON-ready: all but data, whose fingerprint stands for them, and how it runs."""
    found = {
        name: value
        for name, value in config.values().items()
        if name in COUNTED or not name.startswith(("data.", "run.", "eval.batch_size"))
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def difference(record: CellRecord, cell: Cell, fingerprint: str) -> str:
    """What of a recorded cell is other than the grid and the data are now, in words; "" where nothing is."""
    if record.split != fingerprint:
        return f"other data (their fingerprint was {record.split}, now it is {fingerprint})"
    try:
        before = settings_of(Config().with_overrides(record.settings))
    except UserError as error:
        return f"settings that this version does not have ({error})"
    for name, value in settings_of(cell.config).items():
        if before[name] != value:
            return f"{name} = {before[name]!r}, now {value!r}"
    return ""
