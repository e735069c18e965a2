"""bidistill tune: a search for better settings on validation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bidistill.cli.parser import add_command, add_options, overrides
from bidistill.cli.train import load
from bidistill.config import Config, options
from bidistill.errors import UserError
from bidistill.presets import PRESETS
from bidistill.tuning.search import BEST, TABLE, Tuned, show, tune
from bidistill.tuning.study import DONE, FAILED, PRUNED, PRUNERS, optuna

ABOUT = """Search for better settings on validation: learning rate, weight decay, loss and negatives of one model alone, or with
--distill those of its distillation, for models whose own settings stay as they are. First tune alone, then distil: a student
that is weak alone makes any distillation look good. The test is not looked at.

The first trial is the settings as they stand, so what is found is never worse on validation. The folder keeps every trial, and
the same command goes on there, up to --trials in all. The result is FOLDER/best.toml, which `bidistill train` takes.
Needs Optuna: pip install 'bdkernels[tune]'."""
EXAMPLES = """  bidistill tune --data-path ratings.csv --model teacher --trials 40
  bidistill tune runs/ratings-teacher/best.toml --trials 40         then the student, by the teacher's best settings
  bidistill tune runs/ratings-student/best.toml --distill           then what it learns from the teacher
  bidistill train runs/ratings-distill/best.toml --control"""
LEFT_OUT = ("run.out", "run.tensorboard", "run.checkpoint_every", "run.checkpoint_steps", "run.timeout")


def add(subparsers: Any) -> None:
    """Register the command."""
    usage = "[CONFIG.toml] [--model teacher|student | --distill] [--trials N] [--space FILE.toml] [--SECTION-OPTION VALUE ...]"
    parser = add_command(subparsers, "tune", run, "search for better settings on validation", ABOUT, EXAMPLES, usage)
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings; what it leaves out: the preset's")
    parser.add_argument("--preset", choices=list(PRESETS), help="where settings start from (default: default)")
    parser.add_argument("--model", choices=("teacher", "student"), help="which is tuned alone (default: student)")
    parser.add_argument("--distill", action="store_true", help="tune how the student learns from the teacher instead")
    parser.add_argument(
        "--space", metavar="FILE.toml", help="what to search (docs/tuning.md); unset: the usual options"
    )
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="OPTION", help="leave these of the space as they are: train.negatives"
    )
    parser.add_argument("--trials", type=int, default=30, metavar="N", help="trials in all (default: 30)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end after so long, without the running trial")
    parser.add_argument(
        "--prune",
        choices=PRUNERS,
        default="median",
        help="median: give up a trial that is below the median of the earlier ones at its epoch (default: median)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder of the search (default: runs/DATA-student, -teacher or -distill)"
    )
    add_options(parser, {each.name for each in options()} - set(LEFT_OUT))


def run(arguments: argparse.Namespace) -> None:
    """Search as the arguments say."""
    optuna()  # before data are read
    if arguments.distill and arguments.model is not None:
        raise UserError("--distill goes by the metric of the student: leave out --model")
    config = Config.preset(arguments.preset or "default")
    if arguments.config is not None:
        config = Config.from_toml(arguments.config, arguments.preset or "default")
    config = config.with_overrides(overrides(arguments))
    model = arguments.model or "student"
    source = config.data.path or config.data.train_path or "data"
    out = Path(arguments.out or Path("runs", f"{Path(source).stem}-{'distill' if arguments.distill else model}"))
    parts = load(config)
    try:
        found = tune(
            config,
            parts,
            model=model,
            distill=arguments.distill,
            space=arguments.space,
            keep=arguments.keep,
            trials=arguments.trials,
            timeout=arguments.timeout,
            prune=arguments.prune,
            out=out,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on with the search in {out}") from None
    print_result(found, config, model, out)


def print_result(found: Tuned, config: Config, model: str, out: Path) -> None:
    """Print what was found, and how to train by it."""
    stood = "failed" if found.untuned is None else f"{found.untuned:.4f}"
    control = "" if found.control is None else f", without distillation: {found.control:.4f}"
    print(
        f"\nbest {config.train.monitor} of the {model} on validation: {found.value:.4f}"
        f" (settings as they stood: {stood}{control})"
    )
    for name, value in found.settings.items():
        share = f"  (importance {found.importance[name]:.0%})" if name in found.importance else ""
        print(f"  {name:<24} {show(value)}{share}")
    if not found.settings:
        print("  the settings as they stood are the best")
    for name in found.at_edge:
        print(f"{name} is at the edge of its range: search a wider one, in another folder")
    counts = ", ".join(f"{found.count(state)} {state}" for state in (DONE, PRUNED, FAILED))
    print(f"{len(found.trials)} trials: {counts}; all are in {out / TABLE}")
    if found.stopped:
        print(f"{found.stopped}: the same command goes on")
    if found.control is not None and found.control >= found.value:
        print("no distillation that was tried is better than none: keep the student that was trained alone")
    print(f"train by these settings: bidistill train {out / BEST}")
