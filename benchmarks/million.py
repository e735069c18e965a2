"""The whole job at three sizes, up to a million users x a million items: `python -m benchmarks.million [--sizes ...]`.

As a user does it, each command a process of its own: make the data up, ask `bidistill plan`, train; then set what was planned
beside what it took, and NDCG as a share of that of the model which made the data up. Exact full-catalog draws, their pool
refilled in the course of the steps. Writes benchmarks/results/million.json with the log of each run. A million takes about an
hour and 10 GB of disk.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bidistill.data.generator import path_beside
from bidistill.presets import PRESETS
from bidistill.report import open_run
from bidistill.report.comparison import MODELS
from bidistill.training.baselines import CEILING

from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "million.json"
SIZES = {
    "small": (20_000, 20_000, 400_000),
    "middle": (200_000, 200_000, 4_000_000),
    "million": (10**6, 10**6, 2 * 10**7),
}
SETTINGS: dict[str, Any] = PRESETS["large"]  # a pool is refilled once in eight epochs, so an eighth of them in one


def command(arguments: list[str], log: Path) -> dict[str, Any]:
    """Run `bidistill ...`: its wall time and peak resident memory; its output goes to the log."""
    began = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen([sys.executable, "-m", "bidistill", *arguments], stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    if child.returncode:
        raise SystemExit(f"bidistill {arguments[0]} failed:\n{log.read_text()[-2000:]}")
    return {"seconds": round(took, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


def one_size(name: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Generate, plan, train; what each took."""
    users, items, interactions = SIZES[name]
    data, run = folder / f"{name}.csv", folder / name
    sizes = ["--users", str(users), "--items", str(items), "--interactions", str(interactions)]
    flags = [f"--{key.replace('.', '-').replace('_', '-')}={value}" for key, value in settings.items()]
    flags += [f"--run-out={run}"]
    made = command(["data", "generate", *sizes, "--out", str(data)], folder / "generate.log")
    print(f"{name}: made {data.stat().st_size / 1e6:,.0f} MB in {made['seconds']:.0f} s", flush=True)
    command(["plan", *sizes, *flags, "--json"], folder / "plan.json")
    plan = json.loads((folder / "plan.json").read_text())
    print(f"{name}: planned {plan['total_s']:,.0f} s and {plan['peak_bytes'] / 1e9:.2f} GB", flush=True)
    given = ["--overwrite", "--data-path", str(data), "--eval-generator", str(path_beside(data))]
    trained = command(["train", *given, *flags], folder / "train.log")
    print(f"{name}: took {trained['seconds']:,.0f} s and {trained['peak_gb']:.2f} GB", flush=True)
    with (run / "metrics.csv").open(newline="") as file:
        epochs = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    (folder / "train.log").replace(folder / f"{name}.log")
    log = [
        line.replace(str(folder), "...") for line in (folder / f"{name}.log").read_text().splitlines() if line.strip()
    ]
    plan |= {"seconds": round(plan["total_s"], 1), "peak_gb": round(plan["peak_bytes"] / 1e9, 2)}
    return {
        **{"size": name, "users": users, "items": items, "interactions": interactions},
        "train_rows": plan["sizes"]["train"],
        "generate": made,
        "plan": {key: plan[key] for key in ("seconds", "peak_gb", "times", "memory")},
        "train": trained | {"disk_gb": round(disk / 1e9, 2)},
        "quality": quality(run),
        "epochs": epochs,
        "log": log,
    }


def quality(run: Path) -> dict[str, Any]:
    """The monitored metric on the test part: the generating model's own, and the share of it that each model reaches."""
    found = open_run(run)
    metric = found.config.train.monitor
    values = {name: each["test"][metric] for name, each in (found.metrics | found.baselines).items()}
    own = values[CEILING]
    return {"metric": metric, "generator": own} | {
        f"{name}_share": values[name] / own for name in (*MODELS, "popularity")
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="which sizes (default: all three)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write")
    parser.add_argument("--folder", type=Path, help="where data and runs go, and stay (default: a temporary folder)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=1,
        help="of each model alone, and of both together (default: 1, to see what it costs)",
    )
    args = parser.parse_args()
    settings = SETTINGS | {"train.pretrain_epochs": args.epochs, "train.epochs": args.epochs}
    result = {"machine": machine(), "settings": settings, "sizes": []}
    with TemporaryDirectory(prefix="bidistill.") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.sizes:
            result["sizes"].append(one_size(name, folder, settings))  # type: ignore[attr-defined]
            if args.folder is None:
                shutil.rmtree(folder / name)
                for path in (folder / f"{name}.csv", path_beside(folder / f"{name}.csv")):
                    path.unlink()
            args.results.parent.mkdir(exist_ok=True)
            args.results.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
