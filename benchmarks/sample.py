"""Times `sample` against its peers, interleaved in one process, after checking ranks: `python -m benchmarks.sample`.

Writes benchmarks/results/sample.json: one row a workload and contender, medians with quartiles, peak extra memory from a process
of its own. Random factors stand for trained ones: the cost does not depend on the values, but for the number of rounds.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy
import torch

import bdkernels as bd
from benchmarks.peers import CONTENDERS

RESULTS = Path(__file__).parent / "results" / "sample.json"
K = 32
WORKLOADS = {  # users, items, dims of teacher and student, repeats
    "a": (256, 25_187, 50, 5, 7),
    "b": (64, 1_000_000, 64, 16, 3),
}


def inputs(name: str) -> tuple[bd.Factors, bd.Factors, bd.Seen]:
    b, n, d_t, d_s, _ = WORKLOADS[name]
    torch.manual_seed(7)
    teacher = bd.Factors(torch.randn(b, d_t), torch.randn(n, d_t))
    student = bd.Factors(teacher.users[:, :d_s].clone(), teacher.items[:, :d_s] + torch.randn(n, d_s))
    return teacher, student, bd.Seen.from_pairs(torch.arange(b).repeat(25), torch.randint(0, n, (25 * b,)), b)


def check(teacher: bd.Factors, student: bd.Factors, seen: bd.Seen) -> None:
    """Ranks of the drawn items of two users against a float64 sort, and no seen item among the draws."""
    out = bd.sample(teacher, student, K, seen)
    for draws in (out.to_student, out.to_teacher):
        assert draws is not None and draws.mask.all()
        rows = torch.arange(len(draws.ids))[:, None].expand_as(draws.ids)
        assert not set(zip(rows.flatten().tolist(), draws.ids.flatten().tolist(), strict=True)) & set(
            zip(seen.row_of_each().tolist(), seen.indices.tolist(), strict=True)
        )
    for f in (teacher, student):
        few = f._replace(users=f.users[:2])
        ids = out.to_student.ids[:2]
        scores = few.users.double() @ few.items.double().T
        mine = seen.rows(torch.arange(2))
        scores[mine.row_of_each(), mine.indices] = -torch.inf
        want = (scores[:, None] > scores.gather(1, ids)[:, :, None]).sum(2) + 1
        assert (bd.rank(few, ids, mine) - want).abs().max() <= 1  # fp32 may swap neighbours


def peak_mb(workload: str, contender: str) -> float:
    command = [sys.executable, "-m", "benchmarks.sample", "--memory", workload, contender]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(workload: str, contender: str) -> float:
    """MB above the inputs, in this process (Linux: the high-water mark of /proc, set back to now first)."""

    def high_water() -> int:  # KB
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

    arguments = inputs(workload)
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    CONTENDERS[contender](*arguments, K)
    return (high_water() - before) / 1024


def measure(workload: str) -> list[dict]:
    arguments = inputs(workload)
    check(*arguments)
    names = [c for c in CONTENDERS if workload == "a" or c != "per_user_argsort"]  # minutes at a million items
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(WORKLOADS[workload][-1] + 1):  # the first round warms up
        for name in names:
            start = time.perf_counter()
            CONTENDERS[name](*arguments, K)
            if repeat:
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["floor"])
    rows = []
    for name in names:
        q25, median, q75 = numpy.quantile(times[name], [0.25, 0.5, 0.75]).tolist()
        b, n, d_t, d_s, repeats = WORKLOADS[workload]
        rows.append(
            {"workload": workload, "users": b, "items": n, "dims": [d_t, d_s], "draws": K, "contender": name,
             "median_s": median, "q25_s": q25, "q75_s": q75, "repeats": repeats, "times_the_floor": median / base,
             "peak_extra_mb": peak_mb(workload, name)}
        )  # fmt: skip
    return rows


def machine() -> dict:
    """Where and with what: versions, commit, CPU."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git.stdout.strip(),
        "bdkernels": bd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "threads": torch.get_num_threads(),
        "backend": bd.backends.choose(torch.device("cpu")),
        "isa": bd.cpu.isa() if bd.backends.missing("cpu") is None else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument(
        "--memory", nargs=2, metavar=("WORKLOAD", "CONTENDER"), help="print one contender's peak memory"
    )
    args = parser.parse_args()
    if args.memory:
        print(memory(*args.memory))
        return
    rows = [row for workload in args.workloads for row in measure(workload)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"{'workload':<9}{'contender':<18}{'median s':>9}{'quartiles':>17}{'x floor':>9}{'extra MB':>10}")
    for r in rows:
        quartiles = f"{r['q25_s']:.3f}-{r['q75_s']:.3f}"
        print(
            f"{r['workload']:<9}{r['contender']:<18}{r['median_s']:>9.3f}{quartiles:>17}"
            f"{r['times_the_floor']:>9.1f}{r['peak_extra_mb']:>10.1f}"
        )


if __name__ == "__main__":
    main()
