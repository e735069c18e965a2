"""Rows that are runs of pytest: the CUDA kernels' own tests, what is queued, and some tests under compute-sanitizer."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from kernel_tests import SANITIZERS, kernel_filter, kernel_tests

from bdkernels import backends
from bdkernels.backends import cuda
from phases.row import NotRun, Row, Setting

ROOT = Path(__file__).resolve().parents[3]
# What pyproject.toml asks of pytest needs plugins that may not be here.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=")
FEW = "listed_items and float32"  # tests of a rehearsal
REFUSED = re.compile(r".*(?:not supported|[Uu]nsupported|[Pp]ermission|[Ff]ailed to initialize|[Uu]nable to).*")


def tests(*arguments: str) -> Row:
    """A row that is one run of pytest."""

    def run(setting: Setting) -> dict[str, Any]:
        there(setting)
        few = ("-k", FEW) if setting.rehearse else ()
        return verdict(said_by((*PYTEST, *arguments, *few), {"BDKERNELS_TEST_BACKENDS": "cuda"}))

    return run


def there(setting: Setting) -> None:
    """The tests take the simulation where the backend is missing, and that would say nothing about a GPU."""
    if (why := backends.missing("cuda")) is not None:
        raise NotRun(f"backend cuda: {why}")
    if cuda.simulated() != setting.rehearse:
        raise RuntimeError("the backend is simulated on the CPU")


def said_by(command: tuple[str, ...], env: dict[str, str]) -> str:
    """All that it prints, which is in the log too."""
    out = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
    print(out, flush=True)
    return out


def verdict(out: str) -> dict[str, Any]:
    """By the last line of pytest's; a run without a test is no success."""
    found = re.findall(r"^=*\s*((?:\d+ \w+, )*\d+ \w+ in [\d.]+s)", out, re.M)
    said = (
        found[-1] if found else next((line for line in reversed(out.splitlines()) if line.strip()), "it said nothing")
    )
    wrong = re.findall(r"^(?:FAILED|ERROR) (?:tests/\S*::)?(\S+)", out, re.M)
    if wrong or not re.search(r"\d passed", said) or re.search(r"failed|error", said):
        return {"verdict": "failed", "said": f"{said}; {', '.join(wrong)}".rstrip("; ")}
    return {"said": said}


def memcheck(setting: Setting) -> dict[str, Any]:
    """One of each of the kernels' tests. Torch's cache is off: every tensor is an allocation of its own, whose end is known."""
    if setting.rehearse:
        raise NotRun("a rehearsal: it watches a GPU")
    if shutil.which("compute-sanitizer") is None:
        raise NotRun("compute-sanitizer is not on the PATH")
    there(setting)
    watched = (
        "compute-sanitizer",
        "--tool",
        "memcheck",
        *kernel_filter(),
        "--report-api-errors",
        "no",
        "--error-exitcode",
        "9",
    )
    command = (*watched, *PYTEST, "-p", "one_of_each", *kernel_tests())
    path = os.pathsep.join([str(ROOT / "tests" / "gpu"), os.environ.get("PYTHONPATH", "")])
    return watched_verdict(said_by(command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": path}))


def watched_verdict(out: str) -> dict[str, Any]:
    """Of memcheck: where it is refused, nothing was checked, and nothing has failed."""
    errors = re.search(r"ERROR SUMMARY: (\d+) error", out)
    if errors is not None and int(errors[1]):
        first = re.search(r"========= (Invalid .*|.*[Ee]rror.*)", out)
        return {"verdict": "failed", "said": f"{errors[0]}s: {first[1] if first else ''}"}
    found, refusal = verdict(out), REFUSED.search(out)
    if errors is None or (found.get("verdict") == "failed" and refusal):
        lines = [line.strip("= ") for line in out.splitlines() if line.strip("= ")]
        raise NotRun(refusal[0].strip("= ") if refusal else lines[-1] if lines else "it said nothing")
    return found | {"said": f"{found['said']}, {SANITIZERS['memcheck']}"}


# Graphs, streams, and that nothing waits: what only a GPU can show.
QUEUEING = ("tests/gpu/test_on_device.py", "-k", "cuda and (cuda_graph or stream_of or nothing_waits or is_noticed)")
ROWS: dict[str, Row] = {Path(file).stem: tests(file) for file in kernel_tests()}
ROWS |= {"queueing": tests(*QUEUEING), "memcheck": memcheck}
