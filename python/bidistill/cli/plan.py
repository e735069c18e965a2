"""bidistill plan: memory and time of a run before it is started."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from bidistill.cli.parser import add_command, add_options, count, overrides, tell
from bidistill.config import Config
from bidistill.data.load import load_split
from bidistill.errors import UserError
from bidistill.plan import Plan, Sizes, make_plan, measure
from bidistill.plan.cluster import Network, world_plan
from bidistill.presets import PRESETS
from bidistill.training.memory import gb, memory_there
from bidistill.training.settings import set_threads

ABOUT = """Tell what `bidistill train` with the same settings will take: memory part by part, time part by part, and what does not
fit. Measures this machine for ten to twenty seconds. Sizes are numbers that you give, or those of the data that the settings
name. Times are those of a run whose phases go to their last epoch, on a machine that does nothing else."""
EXAMPLES = """  bidistill plan --users 1000000 --items 1000000 --interactions 20000000 --teacher-dim 64 --student-dim 8
  bidistill plan runs/ml/config.toml                     the data that the settings name
  bidistill plan --preset large --users 1e7 --items 1e6 --interactions 3e8 --json
  bidistill plan --world 64 --users 1e8 --items 1e9 --interactions 1e10 --gbs 12.5    on paper"""


def add(subparsers: Any) -> None:
    """Register the command."""
    usage = "[CONFIG.toml] [--users N --items N --interactions N] [--json] [--SECTION-OPTION VALUE ...]"
    parser = add_command(subparsers, "plan", run, "what a run will take: memory and time", ABOUT, EXAMPLES, usage)
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings; what it leaves out: the preset's")
    parser.add_argument("--preset", choices=list(PRESETS), help="where settings start from (default: default)")
    for name in ("users", "items", "interactions"):
        parser.add_argument(f"--{name}", type=count, metavar="N", help=f"number of {name}, such as 1000000 or 1e6")
    parser.add_argument(
        "--world",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the work: derived, not measured (default: 1)",
    )
    parser.add_argument(
        "--gbs", type=float, metavar="X", help="with --world: GB/s that a process can send (default: 1.25)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: bytes and seconds")
    add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, plan, print."""
    config = Config.preset(arguments.preset or "default")
    if arguments.config is not None:
        config = Config.from_toml(arguments.config, arguments.preset or "default")
    config = config.with_overrides(overrides(arguments))
    if not config.run.out:
        config = config.with_overrides({"run.out": "runs/planned"})  # `train` saves in a folder there, too
    given = (arguments.users, arguments.items, arguments.interactions)
    if any(given) and not all(given):
        arguments.parser.error("--users, --items and --interactions go together")
    if all(given):
        sizes = Sizes.of(*given, config)
    else:
        parts = load_split(config.data)
        tell(parts, sys.stderr)
        sizes = Sizes.of_split(parts, config)
    set_threads(config.run)
    costs = measure(config, sizes)
    network = Network() if arguments.gbs is None else Network(arguments.gbs)
    if arguments.world < 1 or not network.gbs > 0:
        raise UserError(f"--world must be at least 1 and --gbs above 0, found {arguments.world} and {network.gbs:g}")
    plan = make_plan(config, sizes, costs)
    if arguments.world > 1:
        plan = world_plan(config, sizes, costs, arguments.world, network)
    if arguments.json:
        print(json.dumps(plan.values() | {"threads": torch.get_num_threads(), "measured_s": costs.took}, indent=2))
    else:
        show(plan, config, costs.took)
        if arguments.world > 1:
            print(
                f"\nof each of {arguments.world} processes, derived: each computes as this machine does, sends"
                f" {network.gbs:g} GB/s, and waits {network.latency * 1e6:.0f} us for an exchange"
            )


def show(plan: Plan, config: Config, took: float) -> None:
    """Print the plan for people."""
    s = plan.sizes
    print(
        f"{s.users:,} users x {s.items:,} items, {s.train:,} of {s.interactions:,} interactions train;"
        f" teacher {config.teacher.dim}, student {config.student.dim}, batch {config.train.batch_size:,}\n"
        f"measured in {took:.0f} s, {torch.get_num_threads()} threads\n\nmemory"
    )
    for part in plan.memory:
        print(f"  {part.name:<68}{gb(part.bytes):>12}")
    print(f"  {'peak':<68}{gb(plan.peak):>12}   of {gb(memory_there())} here")
    print(f"  {'disk, at most':<68}{gb(plan.disk):>12}\n\ntime{'each':>48}{'times':>12}{'total':>14}")
    for job in plan.times:
        if job.total:
            print(f"  {job.name:<38}{_time(job.seconds):>12}{job.times:>12,.4g}{_time(job.total):>14}")
    print(f"  {'run, if no phase ends early':<62}{_time(plan.seconds):>14}")
    for remark in plan.remarks:
        print(f"\n{remark}")
    for problem in plan.problems:
        print(f"\ndoes not fit: {problem}")


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
