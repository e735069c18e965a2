"""`make gpu-check` rehearsed: every step that needs no GPU runs on simulated backends, and failures are not hidden."""

import re
import subprocess
import sys
from pathlib import Path

import check
import pytest
import torch
from simulation import ROOT

PYTHON = sys.executable


def rows(out: Path) -> dict[str, str]:
    """The verdict of each step in the report."""
    return dict(re.findall(r"^\| ([^|]+) \| (passed|failed|left out) \|", (out / "report.md").read_text(), re.M))


def test_rehearsal(tmp_path, simulated_library):
    pytest.importorskip("triton", reason="triton is not installed")
    pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")
    command = [PYTHON, "tests/gpu/check.py", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted((tmp_path / "logs").glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    verdicts = rows(tmp_path)
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
    report = (tmp_path / "report.md").read_text()
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
    monkeypatch.setitem(PLANTED, "hangs", (PYTHON, "-c", "import time; time.sleep(60)"))
    assert planted("hangs")[0] == 1
    assert "no end after 0.5 s" in (tmp_path / "report.md").read_text()


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
    monkeypatch.setattr(check.Plan, "missing", lambda plan, name: None)
    steps = {step.name: str(step) for step in check.Plan(tmp_path, rehearse=False).steps()}
    assert "BDKERNELS_STRICT_BUILD=1" in steps["build"]
    for name in check.BACKENDS:
        operators = steps[f"{name}: operators"]
        assert f"BDKERNELS_TEST_BACKENDS={name} BDKERNELS_TEST_DEVICE=cuda " in operators
        for noun in ("score", "rank", "sample", "sample_distribution", "topk", "loss", "update", "errors", "fuzz"):
            assert f"tests/test_{noun}.py" in operators
        assert "TEST_DEVICE" not in steps[f"{name}: on the device"]
        assert f"BENCH_DEVICE=cuda BDKERNELS_BACKEND={name} " in steps[f"{name}: benchmarks"]
        assert "--suite gpu" in steps[f"{name}: benchmarks"]
    for each in check.SANITIZERS:
        assert steps[f"cuda: {each}"].startswith("PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool " + each)
    assert not any("interpreter" in command or "cusim" in command for command in steps.values())


def test_a_backend_that_is_missing_is_left_out_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(check.Plan, "missing", lambda plan, name: "not built" if name == "cuda" else None)
    steps = [step for step in check.Plan(tmp_path, rehearse=False).steps() if step.name.startswith("cuda")]
    assert len(steps) == 7
    assert all(step.absent for step in steps)
