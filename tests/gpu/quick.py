"""Eight minutes on a bare GPU machine: are the GPU backends right, and how fast are they? `python tests/gpu/quick.py`.

It needs a checkout, and a Python with torch, triton, pytest, hypothesis and scipy; it installs nothing, and needs no git, make or
network. The libraries travel in bdkernels/lib (`make gpu-libs` builds them); they are built here only where they do not load.
Set PYTHONPATH=.:python.

One clock holds for all. Each phase is a process of its own, and does its rows in order; the phases of one group run at the same
time, but whatever is timed runs alone. A row that fails, or that ends its process, stops no other: the process is started again
with the rows that are left. A row that takes too long is cut. Each row is a line of JSON in OUT/rows.jsonl as soon as it is
known; what the processes print is in OUT/log.txt; the table of all rows is printed last, also after SIGTERM, and is in
OUT/table.txt.

`--rehearse` does the same on the CPU, at small sizes and a few rows of each phase: Triton's interpreter and the simulated CUDA
library are in the GPU's place. It shows that this file works, nothing about a GPU. `make gpu-check` is the long check.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "python"), str(ROOT / "tests")]

from kernel_tests import kernel_tests
from phases.table import table

CHILD = Path(__file__)  # what does the rows of a phase: this file, with --phase
SIMULATION = ROOT / "build" / "simulation" / "libbdkernels_cusim.so"
SITE = (
    ROOT / "build" / "gpu-site"
)  # packages of bidistill that travel along, used where the machine has none of its own
CARD = ("machine", "card")  # the row that no other makes sense without
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
clock = time.monotonic  # tests have one of their own
FOR_THE_TABLE_S = 3.0  # of the clock
LOOK_S = 0.05
STAGES = (
    "score",
    "rank",
    "count_above",
    "count_above_block",
    "topk",
    "sample",
    "distill_loss",
    "fused_loss",
    "fused_step",
)
VARIANTS = ("d = 50", "d = 64", "fp16", "bf16", "ties", "one row", "one past a tile")
CUDA_TIMES = (
    "rank 64", "rank 256", "rank 512", "product alone", "search alone 64", "search alone 256", "sample 1,024 x 1M",
    "sample (a)", "sample (a), k = 8", "sample (a), k = 1", "topk 64 users", "topk 1,024 users", "step", "sample (a), graph",
    "step, graph", "epoch of the trainer",
)  # fmt: skip
TRITON_TIMES = ("rank 64", "topk 64 users", "sample (a)", "step", "sample 1,024 x 1M", "topk 1,024 users", "rank 256")
PEERS = (
    "fp32 product in tiles", "tf32 product in tiles", "chunked topk, 64 users", "chunked topk, 1,024 users",
    "dense eager (a)", "dense eager 1,024 x 1M", "dense compiled (a)",
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """Rows that one process does.

    Attributes:
        name: of the phase.
        module: of tests/gpu/phases, which has a function for each row.
        rows: their names, in order.
        row_s, limit_s: seconds after which a row, or the whole phase, is cut.
        backend: which one the rows use; "" where that means nothing.
        apart: each row has a process of its own, all at the same time.
        joins: it runs at the same time as the phase before it.
        few: the rows of a rehearsal; none where it has no time for the phase.
    """

    name: str
    module: str
    rows: tuple[str, ...]
    row_s: float
    limit_s: float
    backend: str = ""
    apart: bool = False
    joins: bool = False
    few: tuple[str, ...] = ()

    def parts(self) -> list[tuple[str, ...]]:
        """The rows of each process."""
        return [(row,) for row in self.rows] if self.apart else [self.rows]

    def rehearsed(self) -> "Phase":
        """As many of its rows as there is time for, and for these more time than a busy machine takes."""
        return replace(self, rows=self.few, row_s=10 * self.row_s, limit_s=10 * self.limit_s)


def phases() -> tuple[Phase, ...]:
    """All, in order. The limits leave time for the rest where one takes longer than expected."""
    tests = tuple(Path(path).stem for path in kernel_tests())
    return (
        Phase("machine", "machine", ("versions", "card", "libraries"), 200, 220, few=("versions", "card", "libraries")),
        Phase("ceilings", "machine", ("copy", "fp32 product", "tf32 product"), 20, 45, few=("copy", "fp32 product")),
        Phase("cuda: stages", "stages", STAGES + VARIANTS, 40, 110, "cuda", few=(*STAGES, "one row")),
        Phase("triton: stages", "stages", STAGES + VARIANTS, 60, 130, "triton", joins=True, few=("score", "rank")),
        Phase("cuda: tests", "pytests", (*tests, "queueing"), 130, 130, "cuda", True, True, few=("test_cuda_score",)),
        Phase("cuda: times", "times", CUDA_TIMES, 25, 150, "cuda", few=("rank 64", "step", "epoch of the trainer")),
        Phase("triton: times", "times", TRITON_TIMES, 45, 110, "triton"),
        Phase("peers", "peers", PEERS, 45, 90, few=(PEERS[0], PEERS[2], PEERS[4])),
        Phase("cuda: memcheck", "pytests", ("memcheck",), 110, 110, "cuda", few=("memcheck",)),
    )  # fmt: skip


@dataclass
class Job:
    """A process that does rows of a phase."""

    phase: Phase
    rows: tuple[str, ...]
    first_start: float
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    known_at_start: int = 0


class Stopped(Exception):
    """SIGTERM or SIGINT."""


@dataclass
class Check:
    """One run of everything.

    Attributes:
        out: the folder for what is written.
        seconds: of the clock.
        rehearse: on the CPU.
        known: what is known of each row, by phase and row.
    """

    out: Path
    seconds: float
    rehearse: bool
    known: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = clock()
        self.deadline = self.start + self.seconds - FOR_THE_TABLE_S
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "rows.jsonl"
        self.path.write_text("")
        self.lines: TextIO = self.path.open()
        self.log = (self.out / "log.txt").open("w")
        self.phases = tuple(each.rehearsed() for each in phases() if each.few) if self.rehearse else phases()
        self.jobs: list[Job] = []
        self.stopped = ""

    def run(self) -> None:
        """All phases, until the clock is over or somebody stops it."""
        try:
            for group in self.groups():
                if clock() < self.deadline:
                    print(f"{clock() - self.start:5.0f} s  {', '.join(each.name for each in group)}", flush=True)
                    self.run_group(group)
                if self.known.get(CARD, {}).get("verdict") == "failed":
                    self.stopped = "no GPU that torch can use"
                    break
        except Stopped as signal_:
            self.stopped = f"stopped by {signal_}"
        finally:
            for each in STOPPING:
                signal.signal(each, signal.SIG_IGN)  # the table is printed whatever comes
            for job in list(self.jobs):
                self.end(job)
                self.close(job)
            self.read()
            self.leave_out((phase.name, row) for phase in self.phases for row in phase.rows)

    def groups(self) -> list[list[Phase]]:
        found: list[list[Phase]] = []
        for phase in self.phases:
            if phase.joins and found:
                found[-1].append(phase)
            else:
                found.append([phase])
        return found

    def run_group(self, group: list[Phase]) -> None:
        for phase in group:
            for rows in phase.parts():
                name = re.sub(r"\W+", "-", f"{phase.name} {rows[0]}")
                job = Job(phase, rows, clock(), self.out / f"{name}.tmp")
                self.jobs.append(job)
                self.begin(job, rows)
        while self.jobs:
            time.sleep(LOOK_S)
            for job in list(self.jobs):
                self.look_after(job)

    # ---- one process ----

    def begin(self, job: Job, rows: tuple[str, ...]) -> None:
        """Start it with these rows."""
        mine = ["--phase", job.phase.name, "--out", str(self.out), *(["--rehearse"] if self.rehearse else []), *rows]
        path = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        path += [str(SITE)] if find_spec("pydantic") is None else []
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
        if self.rehearse and job.phase.backend == "triton":
            env |= {"TRITON_INTERPRET": "1"}
        elif self.rehearse:
            env |= {"BDKERNELS_CUDA_LIBRARY": str(SIMULATION), "TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        with job.log.open("a") as log:
            job.process = subprocess.Popen(
                [sys.executable, str(CHILD), *mine], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )
        job.known_at_start = self.read()

    def look_after(self, job: Job) -> None:
        """Read what it has written; end it where it takes too long; start it again where it ended too early."""
        assert job.process is not None
        self.read()
        now, status = clock(), job.process.poll()
        begun = next((key for key in self.keys(job) if self.known.get(key, {}).get("verdict") == "begun"), None)
        over = now > self.deadline or now > job.first_start + job.phase.limit_s
        late = begun is not None and now > self.known[begun]["since"] + job.phase.row_s
        if status is None and not over and not late:
            return
        self.end(job)
        known = self.read()
        begun = next((key for key in self.keys(job) if self.known.get(key, {}).get("verdict") == "begun"), None)
        if begun is not None and (over or late):
            self.leave_out([begun])
        elif begun is not None:
            self.write(*begun, verdict="failed", said=f"its process ended with {ended(status)}: {last_line(job.log)}")
        rest = tuple(row for phase, row in self.keys(job) if (phase, row) not in self.known)
        if not rest or over:
            self.leave_out((job.phase.name, row) for row in rest)
        elif known > job.known_at_start:
            self.begin(job, rest)
            return
        else:
            for row in rest:
                said = f"the process ended before it, with {ended(status)}: {last_line(job.log)}"
                self.write(job.phase.name, row, verdict="failed", said=said)
        self.close(job)

    def close(self, job: Job) -> None:
        """It is not started again; what it has printed goes into the log."""
        self.jobs.remove(job)
        print(
            f"==== {job.phase.name}: {', '.join(job.rows)}",
            job.log.read_text(errors="replace"),
            file=self.log,
            flush=True,
            sep="\n",
        )
        job.log.unlink()

    def end(self, job: Job) -> None:
        """Nothing that it has started stays behind and keeps the GPU busy."""
        if job.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()

    def keys(self, job: Job) -> Iterator[tuple[str, str]]:
        return ((job.phase.name, row) for row in job.rows)

    # ---- rows ----

    def read(self) -> int:
        """What the processes have written since; returns how many rows are known."""
        while (line := self.lines.readline()).endswith("\n"):
            row = json.loads(line)
            if row["verdict"] == "begun":
                row["since"] = clock()
            self.known[row["phase"], row["row"]] = row
        if line:  # half of one, that is just being written
            self.lines.seek(self.lines.tell() - len(line.encode()))
        return len(self.known)

    def write(self, phase: str, row: str, **what: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"phase": phase, "row": row, **what}) + "\n")
        self.read()

    def leave_out(self, keys: Any) -> None:
        """What is not known yet is not run, for want of time or because somebody stopped it."""
        for phase, row in keys:
            known = self.known.get((phase, row))
            if known is None or known["verdict"] == "begun":
                cut = "" if known is None else f", cut after {clock() - known['since']:.0f} s"
                self.write(phase, row, verdict="not run", said=(self.stopped or "no time") + cut)


def ended(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"exit code {status}"


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def stop(number: int, frame: Any) -> None:
    raise Stopped(signal.Signals(number).name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/gpu/quick.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=465, help="for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-quick", help="folder of rows, log and table")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: a few rows of each phase on the CPU")
    parser.add_argument("--phase", help="do rows of this phase in this process")
    parser.add_argument("rows", nargs="*", help="rows of the phase (default: all)")
    args = parser.parse_args(argv)
    if args.phase:
        from phases import row

        args.out.mkdir(parents=True, exist_ok=True)
        phase = next(each for each in phases() if each.name == args.phase)
        rows = import_module(f"phases.{phase.module}").ROWS
        row.do(rows, phase.name, args.rows or phase.rows, row.Setting(phase.backend, args.rehearse, args.out))
        return 0
    for each in STOPPING:
        signal.signal(each, stop)
    check = Check(args.out.resolve(), args.seconds, args.rehearse)
    try:
        check.run()
    finally:
        text = table([check.known[phase.name, row] for phase in check.phases for row in phase.rows], args.rehearse)
        (check.out / "table.txt").write_text(text)
        print(text, flush=True)
    return int(any(row["verdict"] == "failed" for row in check.known.values()))


if __name__ == "__main__":
    sys.exit(main())
