"""bidistill experiment: a grid of data sets, runs and seeds, trained cell by cell into one folder."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bidistill.cli.parser import add_command
from bidistill.cli.report import show_experiment
from bidistill.errors import UserError
from bidistill.experiments.grid import Grid
from bidistill.experiments.runner import run_experiment

ABOUT = """Train a grid of data sets, runs (sets of settings) and seeds, each a cell, as a TOML file says: see
docs/experiments.md. Every cell is checked before the first is trained. Cells that are there already are kept, so the same
command goes on after Ctrl-C or a crash, and tries again what failed. A cell that fails does not stop the others, and the exit
status is then 3. Ends with tables of results: report.html, results.md and results.json in the folder."""
EXAMPLES = """  bidistill experiment benchmarks/experiments/smoke.toml
  bidistill experiment study.toml --check                      only check all cells, disk and memory
  bidistill experiment study.toml --only 'movielens/*/0'       one seed of each run on one data set
  bidistill report runs/study                                  the tables again"""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers, "experiment", run, "compare methods over data sets and seeds, with tests", ABOUT, EXAMPLES
    )
    parser.add_argument("file", metavar="FILE.toml", help="the grid")
    parser.add_argument("--folder", metavar="DIR", help="folder of the experiment (default: that of the file)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="cells at a time (default: that of the file, else the cores)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        default=[],
        help="train these cells: DATA/RUN/SEED, with *",
    )
    parser.add_argument("--redo", action="store_true", help="train cells anew whose settings or data have changed")
    parser.add_argument("--check", action="store_true", help="only check; write nothing")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bidistill"
    parser.add_argument(
        "--cache", default=str(cache), metavar="DIR", help=f"where downloads are kept (default: {cache})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train what is missing, and write the report. 3 where cells failed."""
    grid = Grid.read(arguments.file)
    if arguments.folder is not None:
        grid = replace(grid, folder=arguments.folder)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs must be at least 1, found {arguments.jobs}")
    own = {"only": arguments.only, "redo": arguments.redo, "check": arguments.check, "cache": arguments.cache}
    try:
        done = run_experiment(grid, jobs=arguments.jobs or 0, **own)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; go on with: bidistill experiment {arguments.file}") from None
    print(
        f"{grid.name}: {len(done.trained)} cells trained, {len(done.failed)} failed, {len(done.there)} were there,"
        f" {len(done.left)} are still missing"
    )
    if (done.trained or done.there) and not arguments.check:
        show_experiment(grid.folder)
    return 3 if done.failed else 0
