"""bidistill train: pretraining, joint phase, control, table and report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bdkernels.backends import choose
from bidistill.cli.parser import add_command, add_options, overrides, tell
from bidistill.config import Config
from bidistill.data import Split
from bidistill.data.load import load_split
from bidistill.distributed.partition import Partition
from bidistill.distributed.processes import Processes
from bidistill.errors import UserError
from bidistill.files.access import present
from bidistill.presets import PRESETS
from bidistill.report import open_run, results, table, write_report
from bidistill.runs.folder import RunFolder
from bidistill.training.control import check_matchable, matched
from bidistill.training.trainer import Trainer

ABOUT = """Train a teacher and a student: first each alone (pretraining), then together, each learning from the other the
items on which their rankings differ (joint phase). Ends with a table of results and RUN/report.html.

Settings come from a preset, then a TOML file, then flags; the last word wins. The run folder keeps all of them in
config.toml, and training from that file repeats the run exactly. Ctrl-C saves a checkpoint.

Under torchrun the same command trains on several processes: each holds a part of the users and of the items, and the results
are those of one process, but for rounding. All see the same files. With --max-restarts the run goes on from its last checkpoint
when a process is lost."""
EXAMPLES = """  bidistill train --data-path ratings.csv --control
  bidistill train --data-path ml-100k.inter --data-min-rating 4 --run-out runs/ml --distill-lambda-student 1
  bidistill train --resume runs/ml                           go on after Ctrl-C or a crash
  bidistill train --resume runs/ml --grow --data-path new.csv  ... with users and items that have come since
  bidistill train runs/ml/config.toml --run-out runs/again   the same again, bit for bit
  torchrun --nproc-per-node 4 --max-restarts 3 -m bidistill train --data-path ratings.csv \\
      --teacher-optimizer sparse_adam --student-optimizer sparse_adam"""

USAGE = """[CONFIG.toml] [--preset NAME] [--control] [--overwrite] [--SECTION-OPTION VALUE ...]
       bidistill train --resume RUN [--grow] [--control] [--SECTION-OPTION VALUE ...]"""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(subparsers, "train", run, "train a teacher and a student on your data", ABOUT, EXAMPLES, USAGE)
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings; what it leaves out: the preset's")
    parser.add_argument("--preset", choices=list(PRESETS), help="where settings start from (default: default)")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument(
        "--grow",
        action="store_true",
        help="with --resume: read the data again, and let users and items have been added",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that the folder may hold")
    parser.add_argument(
        "--control",
        action="store_true",
        help="also train both models for the same number of epochs without distillation from the same pretraining, and compare",
    )
    add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train as the arguments say."""
    if arguments.resume is not None:
        resume(arguments)
        return
    if arguments.grow:
        raise UserError("--grow goes with --resume: it lets a run's users and items have been added to")
    config = Config.preset(arguments.preset or "default")
    if arguments.config is not None:
        config = Config.from_toml(arguments.config, arguments.preset or "default")
    config = config.with_overrides(overrides(arguments))
    source = config.data.path or config.data.train_path
    if not config.run.out and source:
        config = config.with_overrides({"run.out": str(Path("runs", Path(source).stem))})
    train(Trainer(config, load(config), overwrite=arguments.overwrite), control=arguments.control)


def load(config: Config) -> Split:
    """The data, which every process reads, with a line on stdout about their size."""
    processes = Processes.find(config.run)
    with processes.together("read the data"):
        parts = load_split(config.data)
    if processes.first:
        sizes = parts.describe()
        print(
            f"{config.data.path or config.data.train_path}: {parts.n_users:,} users, {parts.n_items:,} items, "
            f"{sizes['train']:,} interactions to train, {sizes['val']:,} to validate, {sizes['test']:,} to test"
        )
        tell(parts, sys.stdout)
    return parts


def resume(arguments: argparse.Namespace) -> None:
    """Go on with a run, with the changes that flags ask for."""
    if arguments.config is not None or arguments.preset is not None or arguments.overwrite:
        raise UserError("--resume takes its settings from the run: leave out CONFIG.toml, --preset and --overwrite")
    changes = overrides(arguments)
    if "run.out" in changes:
        raise UserError("--resume goes on in the run's own folder: leave out --run-out")
    config = RunFolder(arguments.resume).settings().with_overrides(changes) if changes else None
    split = None
    if arguments.grow or any(name.startswith("data.") for name in changes):
        split = load(config or RunFolder(arguments.resume).settings())
    trainer = Trainer.resume(arguments.resume, config=config, split=split, grow=arguments.grow)
    train(trainer, control=arguments.control, resumed=True)


def train(trainer: Trainer, *, control: bool, resumed: bool = False) -> None:
    """Fit, then fit the control if wanted; print the table and write the report."""
    folder = Path(str(trainer.config.run.out))
    choose(trainer.device)  # an impossible BDKERNELS_BACKEND is refused before anything is written
    if control and trainer.partition.main:
        RunFolder(folder / "control").check(overwrite=True)  # before the run, not after it
    try:
        control = control and trainer.config.distill.method != "none"
        if control:
            check_matchable(trainer)
        trainer.fit()
        if control:
            config = matched(trainer)
            if trainer.partition.main:
                epochs = config.train.epochs
                print(f"control: from the same pretraining, without distillation, the same number of epochs: {epochs}")
            control_of(config, trainer.split, folder, resumed).fit()
    except KeyboardInterrupt:
        if not trainer.partition.main:
            raise SystemExit(130) from None
        raise KeyboardInterrupt(_way_on(folder, control, trainer.partition)) from None
    if trainer.partition.main:
        show(folder)


def control_of(config: Config, split: Split, folder: Path, resumed: bool) -> Trainer:
    """A Trainer of the control in RUN/control, with settings of `matched`; in a resumed run it goes on where it was stopped."""
    own = folder / "control"
    config = config.with_overrides({"run.out": str(own)})
    if resumed and present(own / "checkpoint" / "state.json"):
        before = RunFolder(own).settings()
        free = [name for name in before.differences(config) if name.startswith("run.") and name != "run.seed"]
        longer = ["train.epochs"] if config.train.epochs > before.train.epochs else []
        if not {*before.differences(config)} - {*free, *longer}:
            return Trainer.resume(own, config=config, split=split)
    return Trainer(config, split, warm_start=folder, overwrite=True)


def show(folder: Path) -> None:
    """Print the results of a finished run and write its report."""
    report = write_report(folder)
    print(f"\n{table(results(open_run(folder)))}\n")
    print(f"run folder: {folder}\nreport:     {report} (learning curves, and where the student beats the teacher)")


def _way_on(folder: Path, control: bool, partition: Partition) -> str:
    """What to say after Ctrl-C."""
    if not present(folder / "checkpoint" / "state.json"):
        return "stopped before the first checkpoint; start again with the same command and --overwrite"
    start = "torchrun ... -m " if partition.shards is not None else ""
    return f"stopped; go on with: {start}bidistill train --resume {folder}{' --control' if control else ''}"
