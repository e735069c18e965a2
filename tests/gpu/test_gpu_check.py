"""`make gpu-check` rehearsed: every step that needs no GPU runs on simulated backends, and failures are not hidden."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import check
import pytest
import torch
from apart import python
from simulation import ROOT, build_simulation

PYTHON = sys.executable


def rows(out: Path) -> dict[str, str]:
    """The verdict of each step in the report."""
    return dict(re.findall(r"^\| ([^|]+) \| (passed|failed|left out) \|", (out / "report.md").read_text(), re.M))


REHEARSED = ROOT / "build" / "rehearsal"


def test_rehearsal():
    for package in ("triton", "pytest_benchmark"):
        pytest.importorskip(package)
    build_simulation()
    run = python("tests/gpu/check.py", "--rehearse", "--out", str(REHEARSED), OMP_NUM_THREADS="1")
    logs = "\n".join(path.read_text()[-3000:] for path in sorted((REHEARSED / "logs").glob("*.log")))
    assert run.returncode == 0, run.stdout + logs
    verdicts = rows(REHEARSED)
    here = {"driver": verdicts["driver"], "compiler": verdicts["compiler"]}
    assert "failed" not in here.values()
    assert verdicts == here | {
        "build": "passed",
        "environment": "passed",
        "triton: operators": "passed",
        "triton: on the device": "passed",
        "cuda: operators": "passed",
        "cuda: on the device": "passed",
        "cuda: kernels": "passed",
        "cuda: memcheck": "left out",
        "cuda: racecheck": "left out",
        "cuda: synccheck": "left out",
        "triton: benchmarks": "left out",
        "cuda: benchmarks": "passed",
    }
    report = (REHEARSED / "report.md").read_text()
    assert "A rehearsal without a GPU" in report and "Unfinished" not in report
    assert "## Benchmarks, backend cuda on " in report
    assert re.search(
        r"^\| loss/step \| 30 x 80, 4 \| eager \| [\d.]+ \([\d.]+-[\d.]+\) \| \d+ \| \d+\.\d\d \| +\|", report, re.M
    )
    assert f"torch          {torch.__version__}" in report
    assert "test_waiting_is_noticed: Skipped: no GPU" in report


PLANTED = {
    "right": (PYTHON, "-c", "print('3 passed')"),
    "fails": (PYTHON, "-c", "print('3 passed'); raise SystemExit('a | wrong number')"),
    "does nothing": (PYTHON, "-c", "print('4 skipped')"),
    "is not there": ("no-such-program",),
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Runs these commands in place of the steps; returns the exit status and the verdicts."""

    def run(*names: str) -> tuple[int, dict[str, str]]:
        steps = [check.Step(name, PLANTED[name], says=r"\d passed") for name in names]
        monkeypatch.setattr(check.Plan, "steps", lambda plan: iter([*steps, check.Step("tool", absent="no such tool")]))
        return check.main(["--rehearse", "--out", str(tmp_path)]), rows(tmp_path)

    return run


def test_all_is_well(planted, tmp_path):
    assert planted("right") == (0, {"right": "passed", "tool": "left out"})
    report = (tmp_path / "report.md").read_text()
    assert "**1 passed, 0 failed, 1 left out**" in report and "| tool | left out |  | no such tool |" in report


@pytest.mark.parametrize("wrong", ["fails", "does nothing", "is not there"])
def test_a_failure_is_shown_and_the_rest_still_runs(planted, tmp_path, wrong):
    assert planted(wrong, "right") == (1, {wrong: "failed", "right": "passed", "tool": "left out"})
    assert "**1 passed, 1 failed, 1 left out**" in (tmp_path / "report.md").read_text()


def test_what_failed_says_why(planted, tmp_path):
    planted("fails", "does nothing")
    report = (tmp_path / "report.md").read_text()
    assert "exit code 1: a / wrong number" in report and "says nowhere" in report


def test_no_end(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LIMIT_S", 0.5)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    child = f"import time; holds = open({str(pipe)!r}, 'w'); time.sleep(3600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    monkeypatch.setitem(PLANTED, "hangs", (PYTHON, "-c", code))
    assert planted("hangs")[0] == 1
    assert "no end after 0.5 s" in (tmp_path / "report.md").read_text()
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # the end comes where nobody holds the pipe: what it started ended with it
    os.close(reader)


def test_results_whose_writer_was_ended(planted, tmp_path, monkeypatch):
    """The report is written all the same."""
    path = tmp_path / "results" / "cuda" / "sample.json"
    code = f"import pathlib; p = pathlib.Path({str(path)!r}); p.parent.mkdir(parents=True); p.write_text('{{'); print('1 passed')"
    monkeypatch.setitem(PLANTED, "writes half", (PYTHON, "-c", code))
    assert planted("writes half")[0] == 0
    assert "sample.json: not readable" in (tmp_path / "report.md").read_text()


def test_results_of_an_earlier_run_are_not_shown(planted, tmp_path):
    (tmp_path / "results" / "cuda").mkdir(parents=True)
    (tmp_path / "results" / "cuda" / "sample.json").write_text("stale")
    assert planted("right")[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        check.main(["--out", str(tmp_path)])
    assert ended.value.code not in (0, None)
    assert "there is no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_runs_on_a_gpu(monkeypatch, tmp_path):
    """The real plan, as if everything were there."""
    monkeypatch.setattr(check.shutil, "which", lambda program: program)
    monkeypatch.setattr(check.torch.version, "cuda", "13.0")
    monkeypatch.setattr(check.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(check.Plan, "missing", lambda plan, name: None)
    monkeypatch.delenv("BDKERNELS_CUDA_ARCHS", raising=False)
    steps = {step.name: str(step) for step in check.Plan(tmp_path, rehearse=False).steps()}
    assert "BDKERNELS_STRICT_BUILD=1" in steps["build"] and "BDKERNELS_CUDA_ARCHS=90 " in steps["build"]
    for name in check.BACKENDS:
        for noun in ("score", "rank", "sample", "sample_distribution", "topk", "loss", "update", "errors", "fuzz"):
            operators = steps[f"{name}: operators, test_{noun}"]
            assert f"BDKERNELS_TEST_BACKENDS={name} BDKERNELS_TEST_DEVICE=cuda " in operators
            assert f" tests/test_{noun}.py " in operators and operators.count("tests/test_") == 1
            bounded = (name, noun) == ("triton", "fuzz")
            assert ("FUZZ_EXAMPLES" in operators) == ("--hypothesis-seed 0" in operators) == bounded
        assert "TEST_DEVICE" not in steps[f"{name}: on the device"]
        for case in check.GPU:
            benchmark = steps[f"{name}: benchmarks, {case}"]
            assert f"BENCH_DEVICE=cuda BDKERNELS_BACKEND={name} " in benchmark
            assert f" 'benchmarks/suite.py::test_case[{case}]' --suite gpu " in benchmark
    for each in check.SANITIZERS:
        assert steps[f"cuda: {each}"].startswith("PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool " + each)
    for noun in ("score", "rank", "sample", "topk", "loss"):
        assert f" tests/gpu/test_cuda_{noun}.py " in steps[f"cuda: kernels, test_cuda_{noun}"]
    assert all("--timeout-method thread" in command for command in steps.values() if "pytest" in command)
    assert not any("interpreter" in command or "cusim" in command for command in steps.values())


def test_a_backend_that_is_missing_is_left_out_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(check.Plan, "missing", lambda plan, name: "not built" if name == "cuda" else None)
    steps = [step for step in check.Plan(tmp_path, rehearse=False).steps() if step.name.startswith("cuda")]
    assert len(steps) > 15
    assert all(step.absent for step in steps)


def test_every_file_of_operators_has_tests():
    """Each is a step of its own, and one without a test is no success."""
    env = {**os.environ, "BDKERNELS_TEST_BACKENDS": "cuda"}
    command = [PYTHON, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-k", "cuda or fuzz"]
    out = subprocess.run(
        [*command, *check.operator_tests()], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert set(re.findall(r"^(tests/test_\w+\.py)::", out.stdout, re.M)) == set(check.operator_tests()), out.stdout


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("  --kernel-regex {key1=val1}\n  --kernel-regex-exclude ..", ("--kernel-regex", "kns=bdkernels")),
        ("  --kernel-name arg\n  --kernel-name-exclude arg", ("--kernel-name", "kernel_substring=bdkernels")),
        ("  --kernel-regex-exclude arg", ()),
    ],
)
def test_sanitizers_watch_our_kernels(monkeypatch, tmp_path, says, options):
    """By the name of the option that this release has."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncat <<'end'\n{says}\nend\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert check.kernel_filter() == options


def test_a_build_that_fails_leaves_no_old_library(tmp_path):
    old = tmp_path / "lib.so"
    old.write_text("of yesterday")
    outcome = check.run(check.Step("build", (PYTHON, "-c", "exit(1)"), makes=(old,)), tmp_path / "log")
    assert outcome.verdict == "failed" and not old.exists()


# Runs where torch says that it has a GPU, which an illegal access in the second test takes away.
LOSES_ITS_GPU = """
import torch

lost = False

def synchronize():
    if lost:
        raise RuntimeError("an illegal memory access was encountered\\nand much about it")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = synchronize

def test_good(): pass
def test_wrong_result(): assert 1 == 2
def test_illegal_access():
    global lost
    lost = True
    synchronize()
def test_not_run(): pass
"""


def test_nothing_runs_in_a_process_that_has_lost_its_gpu(tmp_path):
    """Else all further tests fail, and nobody sees which one was at fault."""
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(LOSES_ITS_GPU)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "2 failed, 1 passed" in out.stdout, out.stdout + out.stderr
    assert "no test after test_it.py::test_illegal_access was run" in out.stdout
    assert "(an illegal memory access was encountered)" in out.stdout
