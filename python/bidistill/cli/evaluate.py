"""bidistill evaluate: the metrics of a finished run, at any K and part."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from bidistill.cli.parser import add_command, add_mapped
from bidistill.config import Config
from bidistill.errors import UserError
from bidistill.evaluation.evaluate import compare
from bidistill.evaluation.intervals import LEVEL
from bidistill.evaluation.ranks import MAPPED_USERS
from bidistill.metrics import listed, means, metrics_of, names_of
from bidistill.registry import CATALOG_METRICS
from bidistill.report import open_run, table
from bidistill.report.comparison import MODELS, shared_ceiling, shares, tabulated

ABOUT = """Rank every held-out item of a finished run among the full catalog, without the items that its user already has, and
print {metrics}, each with a 95 % interval over users, and how often the
student ranks better."""
EXAMPLES = """  bidistill evaluate runs/ml
  bidistill evaluate runs/ml --part val --ks 5 20 100
  bidistill evaluate runs/ml --metrics coverage popularity     what everybody together gets, beside accuracy
  bidistill evaluate runs/ml --json | jq .student"""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers, "evaluate", run, "metrics of a finished run, at any K", ABOUT.format(metrics=listed()), EXAMPLES
    )
    parser.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--part", choices=("val", "test"), help="what to evaluate on (default: test, if the run has one)"
    )
    parser.add_argument(
        "--ks", nargs="+", action="extend", metavar="K", help="list lengths (default: those of the run)"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"metrics of the catalog too: {', '.join(CATALOG_METRICS)}; none: without (default: those of the run)",
    )
    parser.add_argument("--users", type=int, metavar="N", help="rank for N users only; 0: all (default: as in the run)")
    add_mapped(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate both models."""
    finished = open_run(arguments.run_folder)
    part, n_items = arguments.part or finished.part, finished.split.n_items
    ks = finished.config.eval.ks if arguments.ks is None else _numbers(arguments.ks)
    if max(ks) > n_items:
        raise UserError(f"--ks must lie between 1 and the catalog's {n_items} items, found {max(ks)}")
    teacher, student = (finished.model(name, mapped=arguments.mapped) for name in MODELS)
    batch = max(finished.config.eval.batch_size, MAPPED_USERS if arguments.mapped else 0)
    most = finished.config.eval.users if arguments.users is None else arguments.users
    metrics = (
        finished.config.eval.metrics if arguments.metrics is None else _metrics(finished.config, arguments.metrics)
    )
    pair = compare(teacher, student, finished.split, part, batch_size=batch, max_users=most, ks=ks, metrics=metrics)
    found = tabulated({"best epoch": pair}, part, n_items, ks)
    known = {*ks} <= {*finished.config.eval.ks} and {*(metrics or ())} <= {*(finished.config.eval.metrics or ())}
    if most == finished.config.eval.users and known:
        kept = {name: parts[part] for name, parts in finished.baselines.items()}
        asked = [*names_of(ks), *pair.teacher_catalog, "users"]
        found = replace(found, baselines={name: {key: each[key] for key in asked} for name, each in kept.items()})
        monitor = finished.config.train.monitor
        found = replace(found, notes=shared_ceiling(found, monitor if monitor in asked else asked[0]))
    better = {"student_better": pair.student_better, "teacher_better": pair.teacher_better}
    if arguments.json:
        of_users = [metrics_of(pair.users, ranks, ks) for ranks in (pair.teacher_ranks, pair.student_ranks)]
        catalogs = pair.teacher_catalog, pair.student_catalog
        plain = {model: means(each) | catalog for model, each, catalog in zip(MODELS, of_users, catalogs, strict=True)}
        ends = {
            model: {line.metric: line.ends[0] for line in found.models[model] if line.metric not in catalogs[0]}
            for model in MODELS
        }
        about = {"part": part, "users": found.users, "items": n_items}
        compared = {"baselines": found.baselines} if found.baselines else {}
        compared |= {"share_of_generator": of_ceiling} if (of_ceiling := shares(found)) else {}
        print(json.dumps({**about, **plain, **compared, "intervals": ends, "level": LEVEL, **better}, indent=2))
        return
    print(f"{finished.path}, each model in its best epoch\n")
    print(table(found))
    print(
        f"\nThe student ranks {pair.student_better:.1%} of the {len(pair.users):,} held-out interactions better than the"
        f" teacher, the teacher {pair.teacher_better:.1%} better than the student."
    )


def _metrics(config: Config, texts: list[str]) -> tuple[str, ...] | None:
    """--metrics coverage popularity or --metrics coverage,popularity; none."""
    names = tuple(dict.fromkeys(part for text in texts for part in text.split(",")))
    checked: tuple[str, ...] | None = config.checked("eval.metrics", None if names == ("none",) else names)
    return checked


def _numbers(texts: list[str]) -> tuple[int, ...]:
    """--ks 10 50 or --ks 10,50."""
    parts = [part for text in texts for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--ks must be whole numbers above 0, such as 10 50, found {' '.join(texts)!r}")
    return tuple(dict.fromkeys(map(int, parts)))
