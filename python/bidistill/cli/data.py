"""bidistill data: describe, split and make up interactions."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from tqdm import tqdm

from bidistill.cli.parser import add_command, add_options, count, overrides, tell
from bidistill.config import Config
from bidistill.data import Interactions, Split, is_split, load, read, write_interactions
from bidistill.data.generator import path_beside, write_generator
from bidistill.data.splits import PARTS
from bidistill.data.synthetic import TASTES, Population
from bidistill.data.write import Block, refuse_format, write_blocks
from bidistill.errors import UserError
from bidistill.files.access import new_folder

FORMATS = """Files: .csv .tsv .txt .inter .dat .data .jsonl .json .parquet .npz, and adjacency lists (each line
is a user and the user's items). Columns of user, item, rating and time are found by their usual names; flags name
others. Prints JSON, and on stderr what was dropped and why. A file that is split already (an .npz with arrays train, val and
test, or a saved split) is taken as it is."""

READING = tuple(f"data.{name}" for name in load.READING)
SPLITTING = tuple(f"data.{name}" for name in (*load.SPLITTING, *load.DROPPING))


def add(subparsers: Any) -> None:
    """Register the command and its three actions."""
    about = "Look at a file of interactions, split it, or make one up."
    parser = subparsers.add_parser("data", help="describe, split or make up interactions", description=about)
    parser.set_defaults(parser=parser)
    actions = parser.add_subparsers(metavar="ACTION", required=True, title="actions")

    describing = add_command(
        actions,
        "describe",
        describe,
        "sizes, density and spread of a file",
        FORMATS,
        "  bidistill data describe ratings.csv\n  bidistill data describe ratings.csv --data-min-rating 4",
    )
    describing.add_argument("file", metavar="FILE", help="file of interactions")

    splitting = add_command(
        actions,
        "split",
        split,
        "hold out interactions and save the parts",
        FORMATS
        + "\n`bidistill train` splits by itself; a saved split is the same for everyone and every program. The parts hold\n"
        "users and items, no times and no ratings.",
        "  bidistill data split ratings.csv --out split.npz\n"
        "  bidistill data split ratings.csv --out parts --data-split ratio --data-test 0.2",
    )
    splitting.add_argument("file", metavar="FILE", help="file of interactions")
    splitting.add_argument(
        "--out", required=True, help="an .npz file, or a new folder for train.csv, val.csv and test.csv"
    )
    add_options(describing, READING)
    add_options(splitting, READING + SPLITTING)

    making = add_command(
        actions,
        "generate",
        make,
        "make up interactions",
        "Make up interactions with times: a long tail of popularity, and tastes that follow latent vectors (docs/data.md has\n"
        "the formula). Any size: the rows are written as they are made, so memory holds the users, the items and a few rows. An\n"
        "item that no user meets has no row, so it is not in the file: a line says how many items are. The vectors go into a\n"
        "file beside it: `bidistill train --eval-generator` shows what they reach, the most that any model can expect.",
        "  bidistill data generate --users 1000 --items 500 --interactions 20000 --out made.csv\n"
        "  bidistill data generate --users 1000000 --items 1000000 --interactions 20000000 --out million.parquet",
    )
    for name, words in (("users", "users"), ("items", "items"), ("interactions", "distinct (user, item) pairs")):
        making.add_argument(f"--{name}", type=count, required=True, metavar="N", help=f"number of {words}")
    making.add_argument("--out", required=True, metavar="FILE", help="file to write: .csv .tsv .parquet or .npz")
    making.add_argument("--dim", type=int, default=16, metavar="N", help="length of the latent vectors (default: 16)")
    making.add_argument("--zipf", type=float, default=1.0, metavar="X", help="0: no long tail (default: 1)")
    making.add_argument(
        "--tastes",
        type=float,
        default=TASTES,
        metavar="X",
        help=f"how much users differ: standard deviation of their tastes; 0: popularity alone (default: {TASTES:g})",
    )
    making.add_argument("--seed", type=int, default=0, metavar="N", help="seed (default: 0)")


def describe(arguments: argparse.Namespace) -> None:
    """Print what is in a file."""
    config = Config().with_overrides(overrides(arguments))
    if is_split(arguments.file):
        parts = load.load_split(config.with_overrides({"data.path": arguments.file}).data)
        print(json.dumps(parts.describe(), indent=2))
        tell(parts, sys.stderr)
        return
    columns: dict[str, Any] = {name.removeprefix("data."): config[name] for name in READING}
    found = read(arguments.file, **columns)
    print(json.dumps(found.describe(), indent=2))
    if found.times is not None:
        print("  the rows have times: split them by time, as --data-split leave_last does", file=sys.stderr)


def split(arguments: argparse.Namespace) -> None:
    """Split a file and write the parts, all or none."""
    out = Path(arguments.out)
    with _tidy_end():
        parts = load.load_split(Config().with_overrides({"data.path": arguments.file} | overrides(arguments)).data)
        if out.suffix == ".npz":
            parts.save(out)
            flags = f"--data-train-path {out}"
        else:
            names = _write_folder(parts, out)
            _tell_missing(parts, out)
            flags = " ".join(f"--data-{name}-path {out / name}.csv" for name in names)
    print(json.dumps(parts.describe(), indent=2))
    tell(parts, sys.stderr)
    print(f"train on it with: bidistill train {flags}", file=sys.stderr)


def make(arguments: argparse.Namespace) -> None:
    """Make up interactions and write them as they are made."""
    if arguments.seed < 0:
        raise UserError(f"--seed must be at least 0, found {arguments.seed}")
    refuse_format(arguments.out)
    users, items, rows = arguments.users, arguments.items, arguments.interactions
    options = {name: getattr(arguments, name) for name in ("dim", "seed", "zipf", "tastes")}
    population = Population.of(users, items, rows, **options)
    beside = path_beside(arguments.out)
    with _tidy_end():
        ids = np.arange(users), np.arange(items)
        written = write_blocks(arguments.out, _shown(population.blocks(), rows), rows, *ids)
        write_generator(beside, population.user_factors, population.item_factors)
    met = "" if written.items == items else f" of the {items:,} asked for; the others met no user"
    print(f"{arguments.out}: {rows:,} interactions of {written.users:,} users with {written.items:,} items{met}")
    print(f"{beside}: the model that made them up; bidistill train --eval-generator {beside} shows what it reaches")


def _shown(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """The blocks, with a bar on stderr, where that is a terminal."""
    with tqdm(total=rows, desc="generate", unit="row", unit_scale=True, disable=None, leave=False) as bar:
        for block in blocks:
            yield block
            bar.update(len(block[0]))


@contextmanager
def _tidy_end() -> Iterator[None]:
    """Inside, signals that ask the process to end do it as Ctrl-C does, so that temporary files are removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        asked = []  # only there Python sees signals
    changed = [number for number in asked if signal.getsignal(number) is signal.SIG_DFL]  # nohup's stays ignored
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _tell_missing(parts: Split, out: Path) -> None:
    """Say which users and items the files of rows cannot hold."""
    for noun, n in (("users", parts.n_users), ("items", parts.n_items)):
        used = np.zeros(n, bool)
        for name in PARTS:
            used[getattr(parts, f"{name}_{noun}")] = True
        if missing := int((~used).sum()):
            print(f"  {missing:,} of {n:,} {noun} have no row, so they are not in the files of {out}", file=sys.stderr)


def _write_folder(parts: Split, out: Path) -> list[str]:
    """Write the parts that are not empty into a new folder, whole or not at all, and return their names."""
    names = [name for name in PARTS if len(parts.part(name)[0])]
    with new_folder(out) as temporary:
        for name in names:
            rows = Interactions(*parts.part(name), None, parts.user_ids, parts.item_ids)
            write_interactions(temporary / f"{name}.csv", rows)
    return names
