"""Checks and times everything on a machine with a CUDA GPU, and writes one report: `make gpu-check`.

The steps, one after the other, each with a log of its own: the environment; the build; for each of the backends triton and cuda
the operators' own tests with every stage carried to the GPU, what only a GPU can show (test_on_device.py), and for cuda the tests
of its kernels; compute-sanitizer; the benchmarks. A step that cannot run is left out, which is not the same as passed. Each file
of tests has a process of its own: once a kernel has failed, nothing more runs on the GPU there (tests/conftest.py).

`--rehearse` runs the same steps where there is no GPU, a few tests of each: on the CPU, with Triton's interpreter and the CUDA
sources compiled for the CPU in the GPU's place. It shows that this file works, nothing about a GPU.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kernel_tests import SANITIZED, SANITIZERS, kernel_filter, kernel_tests

from benchmarks.cases import GPU
from benchmarks.machine import machine
from benchmarks.report import notes

LIMIT_S = 2 * 3600  # for a step: a kernel that hangs is not waited for
TEST_LIMIT_S = 1800  # and for a test. By a thread, since Python notices no signal while it waits for a GPU
TRITON_EXAMPLES = 25  # of a fuzz test: nearly each has its own shapes, for which Triton compiles and tunes for seconds
BACKENDS = ("triton", "cuda")
FUZZ = ("tests/test_fuzz.py",)
LIBRARIES = tuple(ROOT / "bdkernels" / "lib" / f"libbdkernels_{name}.so" for name in ("cpu", "cuda"))
SIMULATION = ROOT / "build" / "simulation" / "libbdkernels_cusim.so"
SIMULATED = {"triton": {"TRITON_INTERPRET": "1"}, "cuda": {"BDKERNELS_CUDA_LIBRARY": str(SIMULATION)}}
FEW = {  # of a step: which tests there is time for in a rehearsal
    "triton: operators": "triton and test_all_tied",
    "triton: on the device": "(reference_on or wait) and (score or loss) or nan and score",
    "cuda: operators": "cuda and (all_tied or eps_is_alpha or too_few or nan_thresholds)",
    "cuda: on the device": "reference_on or wait or graph_reads or graph_counts or nan and rank or train and sparse",
    "cuda: kernels": "listed_items and float32",
    "cuda: benchmarks": "loss",
}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: what it is called in the report.
        command: the arguments; run in the repository's root.
        env: what the environment has besides this process's own.
        says: a regular expression that the log of a success matches, so that a command which does nothing is no success.
        absent: why it is left out; None to run it.
        makes: files that are removed first: if it fails, nobody takes old ones for its own.
    """

    name: str
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    says: str = ""
    absent: str | None = None
    makes: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """As one types it in the root."""
        words = [*(f"{key}={shlex.quote(value)}" for key, value in self.env.items()), shlex.join(self.command)]
        return " ".join(words).replace(sys.executable, "python").replace(f"{ROOT}/", "")


@dataclass(frozen=True)
class Outcome:
    """What became of a step: "passed", "failed" or "left out", and in a line what it said or why."""

    step: Step
    verdict: str
    said: str
    seconds: float | None = None
    log: Path | None = None


# ---- the steps ----


@dataclass(frozen=True)
class Plan:
    """Every step; they are made one by one, since what can run may depend on what the build left."""

    out: Path
    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def steps(self) -> Iterator[Step]:
        yield tool("driver", "nvidia-smi")
        yield tool("compiler", "nvcc", "--version")
        yield self.build()
        yield Step("environment", (sys.executable, "-m", "bdkernels.env_report"), says="backend cuda")
        missing = {name: self.missing(name) for name in BACKENDS}
        for name in BACKENDS:
            yield from unless(missing[name], self.checks_of(name))
        yield from unless(self.unwatched() or missing["cuda"], self.sanitizers())
        if self.rehearse:
            missing["triton"] = "a rehearsal: the interpreter takes long, and the command is that for cuda"
        for name in BACKENDS:
            yield from unless(missing[name], self.benchmarks(name))

    def build(self) -> Step:
        setup = (sys.executable, "setup.py", "-q")
        if self.rehearse:
            return Step("build", (*setup, "build_simulation", "--out", str(SIMULATION)))
        if torch.version.cuda is None:
            return Step("build", absent="this torch is a build without CUDA")
        if shutil.which("nvcc") is None:
            return Step("build", absent="nvcc is not on the PATH")
        # For this GPU alone: an nvcc that is older than another one does not know it.
        archs = os.environ.get("BDKERNELS_CUDA_ARCHS") or "{}{}".format(*torch.cuda.get_device_capability())
        wanted = {"BDKERNELS_STRICT_BUILD": "1", "BDKERNELS_BUILD_CUDA": "1", "BDKERNELS_CUDA_ARCHS": archs}
        return Step("build", (*setup, "build_kernels"), wanted, makes=LIBRARIES)

    def checks_of(self, name: str) -> Iterator[Step]:
        chosen = {"BDKERNELS_TEST_BACKENDS": name}
        carried = {**chosen, "BDKERNELS_TEST_DEVICE": self.device}
        for part, files in self.parts(operator_tests()):
            bounded = {"FUZZ_EXAMPLES": str(TRITON_EXAMPLES)} if (name, files) == ("triton", FUZZ) else {}
            yield self.tests(f"{name}: operators{part}", name, files, carried | bounded, f"{name} or fuzz")
        yield self.tests(f"{name}: on the device", name, ("tests/gpu/test_on_device.py",), chosen)
        if name == "cuda":
            for part, files in self.parts(kernel_tests()):
                yield self.tests(f"cuda: kernels{part}", name, files, {})

    def parts(self, files: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """One process a file; in a rehearsal one for all."""
        if self.rehearse:
            yield "", files
            return
        for file in files:
            yield f", {Path(file).stem}", (file,)

    def sanitizers(self) -> Iterator[Step]:
        ours = kernel_filter()
        for each, clean in SANITIZERS.items():
            watched = ("compute-sanitizer", "--tool", each, *ours, "--report-api-errors", "no", "--error-exitcode", "9")
            # Without torch's cache every tensor is an allocation of its own, whose end memcheck knows.
            run = self.tests("", "cuda", kernel_tests(), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, SANITIZED)
            yield Step(f"cuda: {each}", (*watched, *run.command), run.env, rf"(?s)\d passed.*{clean}")

    def unwatched(self) -> str | None:
        """Why compute-sanitizer has nothing to do."""
        if self.rehearse:
            return "a rehearsal: it watches a GPU"
        return None if shutil.which("compute-sanitizer") else "compute-sanitizer is not on the PATH"

    def benchmarks(self, name: str) -> Iterator[Step]:
        """Every GPU workload against its peers, by this backend."""
        env = {"BENCH_DEVICE": self.device, "BDKERNELS_BACKEND": name}
        env |= {"TORCH_COMPILE_DISABLE": "1"} if self.rehearse else {}
        suite = ("--suite", "tiny" if self.rehearse else "gpu", "--results", str(self.out / "results" / name), "-s")
        for part, cases in [("", "")] if self.rehearse else [(f", {case}", f"::test_case[{case}]") for case in GPU]:
            yield self.tests(f"{name}: benchmarks{part}", name, (f"benchmarks/suite.py{cases}", *suite), env)

    def tests(self, step: str, backend: str, what: tuple[str, ...], env: dict[str, str], only: str = "") -> Step:
        """pytest; in a rehearsal on the simulated backend, and just a few."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *what]
        command += ["--timeout", str(TEST_LIMIT_S), "--timeout-method", "thread"]
        if "FUZZ_EXAMPLES" in env:
            command += ["--hypothesis-seed", "0"]  # the same examples every time
        if self.rehearse:
            only, env = FEW.get(step, only), env | SIMULATED[backend]
            if backend == "triton":
                command += ["-p", "interpreter"]  # the strict one
                env["PYTHONPATH"] = os.pathsep.join(filter(None, ["tests/gpu", os.environ.get("PYTHONPATH")]))
        return Step(step, (*command, *(["-k", only] if only else [])), env, r"\d passed")

    def missing(self, name: str) -> str | None:
        """Why a backend cannot be had; asked in a process of its own, after the build. One that dies there is for its tests."""
        code = f"from bdkernels import backends; print(backends.missing({name!r}) or '')"
        env = os.environ | (SIMULATED[name] if self.rehearse else {})
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        return out.stdout.strip() or None


def unless(absent: str | None, steps: Iterable[Step]) -> Iterator[Step]:
    """The steps, or just their names and why they are left out."""
    return (Step(step.name, absent=absent) if absent else step for step in steps)


def tool(name: str, *command: str) -> Step:
    """A program that says something about the machine."""
    return Step(name, command, absent=None if shutil.which(command[0]) else f"{command[0]} is not on the PATH")


def operator_tests() -> tuple[str, ...]:
    """The test files that take a backend."""
    takes = re.compile(r"^def test_\w+\([^)]*\bbackend\b|^from chosen import BACKENDS", re.M)
    return tuple(f"tests/{p.name}" for p in sorted(ROOT.glob("tests/test_*.py")) if takes.search(p.read_text()))


# ---- running them ----


def run(step: Step, log: Path) -> Outcome:
    """Run one, with all that it prints in the log."""
    if step.absent:
        return Outcome(step, "left out", step.absent)
    for made in step.makes:
        made.unlink(missing_ok=True)
    start = time.perf_counter()
    with log.open("w") as file:
        print(f"$ {step}", file=file, flush=True)
        try:
            done: int | str = wait(step, file)
        except OSError as error:
            done = str(error)
    lines = log.read_text(errors="replace").splitlines()[1:]
    last = next((line.strip("= ") for line in reversed(lines) if line.strip("= ")), "")
    if isinstance(done, str):
        verdict, said = "failed", done
    elif done:
        verdict, said = "failed", f"exit code {done}: {last}"
    elif not re.search(step.says, "\n".join(lines)):
        verdict, said = "failed", f"ended well, but says nowhere {step.says!r}: {last}"
    else:
        verdict, said = "passed", last
    return Outcome(step, verdict, said, time.perf_counter() - start, log)


def wait(step: Step, log: TextIO) -> int | str:
    """The exit status, or that there was none in time. Nothing that the step started stays behind and keeps the GPU busy."""
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=os.environ | step.env, stdout=log, stderr=log, start_new_session=True
    )
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"no end after {LIMIT_S} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/gpu/check.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: a few tests of each step on the CPU")
    default = ROOT / "benchmarks" / "results" / "gpu"
    parser.add_argument(
        "--out", type=Path, default=default, help="folder of the report (default: benchmarks/results/gpu)"
    )
    args = parser.parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        parser.error(
            f"there is no GPU here that torch {torch.__version__} can use; --rehearse does what can be done without one"
        )
    out = args.out.resolve()
    for part in ("logs", "results"):  # of an earlier run
        shutil.rmtree(out / part, ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    outcomes: list[Outcome] = []
    for step in Plan(out, args.rehearse).steps():
        print(f"gpu-check: {step.name} ...", flush=True)
        name = re.sub(r"\W+", "-", step.name)
        outcomes.append(run(step, out / "logs" / f"{len(outcomes):02}-{name}.log"))
        print(f"gpu-check: {step.name} {outcomes[-1].verdict}: {outcomes[-1].said}", flush=True)
        write(out, outcomes, args.rehearse, finished=False)  # for the case that the machine goes away
    write(out, outcomes, args.rehearse, finished=True)
    print(f"gpu-check: {tally(outcomes)}; the report is {out / 'report.md'}")
    return int(any(o.verdict == "failed" for o in outcomes))


# ---- the report ----


def tally(outcomes: list[Outcome]) -> str:
    verdicts = [o.verdict for o in outcomes]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in ("passed", "failed", "left out"))


def write(out: Path, outcomes: list[Outcome], rehearse: bool, finished: bool) -> None:
    """What is known so far, as <out>/report.md. All numbers in it were measured by its steps."""
    here = machine()
    lines = ["# gpu-check", ""]
    if rehearse:
        lines += [
            "**A rehearsal without a GPU: nothing here says anything about one, and the times mean nothing.**",
            "",
        ]
    lines += [
        f"{here['date']}, commit {here['commit']}, bdkernels {here['bdkernels']}, torch {here['torch']}, CUDA of torch"
        f" {torch.version.cuda or 'none'}, python {here['python']}, CPU {here['cpu']}",
        "",
        f"**{tally(outcomes)}**" if finished else f"**Unfinished: {tally(outcomes)} so far.**",
        "",
        "| step | verdict | seconds | what it said, or why it is left out | log |",
        "|---|---|---|---|---|",
    ]
    for o in outcomes:
        seconds = "" if o.seconds is None else f"{o.seconds:.1f}"
        log = "" if o.log is None else f"[{o.log.stem}]({o.log.relative_to(out)})"
        lines.append(f"| {o.step.name} | {o.verdict} | {seconds} | {o.said.replace('|', '/')} | {log} |")
    lines += ["", "## Machine", ""]
    for o in outcomes:
        if o.step.name in ("environment", "driver", "compiler") and o.log:
            lines += ["```", o.log.read_text(errors="replace").strip(), "```"]
    for name in BACKENDS:
        lines += benchmark_section(name, out / "results" / name)
    if inside := [f"- {o.step.name}: {line}" for o in outcomes if o.log for line in left_out(o.log)]:
        lines += ["", "## Left out inside of the steps", "", *inside]
    lines += ["", "## Commands", "", *(f"- {o.step.name}: `{o.step}`" for o in outcomes if o.log), ""]
    (out / "report.md").write_text("\n".join(lines))


def left_out(log: Path) -> list[str]:
    """What pytest's summary (conftest.py) says was left out."""
    lines = log.read_text(errors="replace").splitlines()
    start = next((i + 1 for i, line in enumerate(lines) if line.strip("= ") == "left out on this machine"), len(lines))
    rest = lines[start:]
    end = next((i for i, line in enumerate(rest) if re.match(r"=+ |\d+ (passed|failed|skipped)", line)), len(rest))
    return rest[:end]


def benchmark_section(name: str, folder: Path) -> list[str]:
    """Every contender of every case, in the order of the suite, beside this library's own row."""
    rows, broken = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            rows += json.loads(path.read_text())["rows"]
        except ValueError:  # its writer was ended
            broken += ["", f"{path.name}: not readable"]
    if not rows:
        return broken
    first = rows[0]
    lines = [
        "",
        f"## Benchmarks, backend {first['backend']} on {first['gpu'] or first['cpu']}",
        "",
        "Contenders take turns in one process; medians with quartiles. / bdkernels: the contender's median to that of this"
        " library, above 1 where the library is faster."
        f" Peaks of torch here: {first['peak_gflops']:.0f} GFLOP/s, {first['peak_gbs']:.0f} GB/s.",
        "",
        "| case | users x items, dims | contender | median s (quartiles) | rounds | / bdkernels | / floor | extra MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    own = {row["case"]: row["median_s"] for row in rows if row["contender"] == "bdkernels" and "absent" not in row}
    return [*lines, *(benchmark_line(row, own) for row in rows), *notes(rows), *broken]


def benchmark_line(row: dict[str, Any], own: dict[str, float]) -> str:
    start = f"| {row['case']} | {row['users']:,} x {row['items']:,}, {'/'.join(map(str, row['dims']))} | {row['contender']} |"
    if "absent" in row:
        return f"{start} {row['absent']} | | | | |"
    time = f"{row['median_s']:.5f} ({row['q25_s']:.5f}-{row['q75_s']:.5f})"
    floor = f"{row['times_the_floor']:.2f}" if row["times_the_floor"] else ""
    memory = "" if row["peak_extra_mb"] is None else f"{row['peak_extra_mb']:.0f}"
    return f"{start} {time} | {row['repeats']} | {row['median_s'] / own[row['case']]:.2f} | {floor} | {memory} |"


if __name__ == "__main__":
    sys.exit(main())
