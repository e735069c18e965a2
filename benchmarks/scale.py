"""What does and does not grow with the catalog, the cores and the processes: `python -m benchmarks.scale`.

Step: a training step, batch 1,024, by the number of items: `fused_step` with SparseAdam, `fused_loss` with torch's
SparseAdam, and eager autograd with SparseAdam, the sizes taking turns. Refill: `sample` for 256 users, in scores a second, with
one thread and with all. ShardedCatalog: bytes that each process hands to collectives in a call of `rank` and of `sample`, for
one to four processes and two sizes of the catalog: counted, not timed, since they share this machine. Writes
benchmarks/results/scale.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bdkernels as bd
from bdkernels.tools.measure import quartiles, seconds
from benchmarks import loss, sample
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "scale.json"
ITEMS, USERS, DIM, BATCH = (100_000, 1_000_000, 10_000_000), 100_000, 64, 1024
BATCHES, ROUNDS, WARM = 64, 60, 8
REFILL = (256, 1_000_000, (64, 8))  # users, items, dims
SHARDED = (64, (50_000, 400_000), 64, 32)  # users of a process, items, listed ids, draws


def step(kind: str, items: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Median times of one contender over growing catalogs, interleaved; each batch is another, so that no row is at hand."""
    calls = {}
    for n in items:
        torch.manual_seed(11)
        tables = [torch.empty(rows, DIM).uniform_(-0.1, 0.1) for rows in (USERS, n)]
        draw = partial(torch.randint, 0, n)
        batches = [
            (
                torch.randint(0, USERS, (BATCH,)),
                draw((BATCH,)),
                draw((BATCH, loss.NEGATIVES)),
                draw((BATCH, loss.DISTILLED)),
            )
            for _ in range(BATCHES)
        ]
        calls[n] = loss.CONTENDERS[kind](tables, batches, torch.randn(BATCH, loss.DISTILLED))
        del tables
    times: dict[int, list[float]] = {n: [] for n in items}
    for turn in range(WARM + rounds):
        for n, call in calls.items():
            took = seconds(call)
            if turn >= WARM:
                times[n].append(took)
    return [{"contender": kind, "items": n, **quartiles(found), "repeats": rounds} for n, found in times.items()]


def refill(threads: list[int], size: tuple[int, int, tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """Scores a second of the sampler, the numbers of threads taking turns."""
    users, items, dims = size
    teacher, student, seen = sample.inputs(users, items, dims)
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {n: [] for n in threads}
    for turn in range(rounds + 1):
        for n in threads:
            torch.set_num_threads(n)
            took = seconds(
                lambda t=turn: bd.sample(teacher, student, sample.K, seen, user_ids=torch.arange(users), step=t)
            )
            times[n] += [took] if turn else []
    torch.set_num_threads(before)
    scores = 2 * users * items
    return [
        {"threads": n, "users": users, "items": items, "dims": list(dims), **quartiles(found),
         "scores_a_second": scores / statistics.median(found), "repeats": rounds}
        for n, found in times.items()
    ]  # fmt: skip


def shards(world: int, items: int) -> dict[str, Any]:
    """The largest traffic of a process in one call of each operator, in bytes, and whether results equal one process's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    run = subprocess.run(
        [*command, "-m", "benchmarks.traffic", str(items)], capture_output=True, text=True, check=False, timeout=600
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=ITEMS, help="catalogs of the training step")
    parser.add_argument("--refill-items", type=int, default=REFILL[1])
    parser.add_argument("--shard-items", type=int, nargs="+", default=SHARDED[1])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "step": [], "refill": [], "shards": []}
    for kind in loss.CONTENDERS:
        result["step"] += step(kind, tuple(args.items), args.rounds)
        for row in result["step"][-len(args.items) :]:
            print(f"{kind:<20}{row['items']:>12,} items: {row['median_s'] * 1e3:.2f} ms", flush=True)
    threads = sorted({1, torch.get_num_threads()})
    result["refill"] = refill(threads, (REFILL[0], args.refill_items, REFILL[2]), max(2, args.rounds // 10))
    for row in result["refill"]:
        print(f"refill, {row['threads']} threads: {row['scores_a_second'] / 1e6:,.0f} M scores/s", flush=True)
    for world in args.worlds:
        for items in args.shard_items:
            result["shards"].append(shards(world, items))
            print(result["shards"][-1], flush=True)
    args.results.parent.mkdir(exist_ok=True)
    args.results.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
