"""`make gpu-quick` rehearsed, and its promises on planted phases: one clock, a table in the end, no failure stops others."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import graphs
import pytest
import quick
import torch
from apart import python
from phases import machine, pytests, row, stages, table, times
from quick import Phase
from simulation import ROOT, build_simulation

import bdkernels as bd
from bdkernels.tools import cards

LIMIT = 10_000  # characters that a run may print
# A child that does what its rows say, without torch: it starts at once.
CHILD = """
import json, os, signal, sys, time
phase, out, rows = sys.argv[2], sys.argv[4], [each for each in sys.argv[5:] if each != "--rehearse"]
def write(name, **what):
    with open(f"{out}/rows.jsonl", "a") as file:
        file.write(json.dumps({"phase": phase, "row": name, **what}) + "\\n")
def stick(name):
    open(f"{out}/stuck {name}", "w").close()
    time.sleep(3600)
if "unwilling" in phase:
    sys.exit("it cannot start")
for name in rows:
    if "silent" in name:
        stick(name)
    write(name, verdict="begun")
    if "slow" in name:
        stick(name)
    if "dies" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "exits" in name:
        sys.exit("lost the GPU")
    write(name, verdict="failed" if "wrong" in name else "passed", said=name * 50 if "long" in name else "")
"""


class Clock:
    """Stands still until so many children are stuck, and soon after that is a minute later."""

    def __init__(self, out: Path, stuck: int) -> None:
        self.out, self.stuck, self.now, self.calls = out, stuck, 0.0, 0

    def __call__(self) -> float:
        stuck = list(self.out.glob("stuck *"))
        self.calls += len(stuck) >= self.stuck
        if self.calls > 20:  # by then they have been seen
            self.now, self.calls = self.now + 60, 0
            for path in stuck:
                path.unlink()
        return self.now


@pytest.fixture
def planted(tmp_path, monkeypatch, capsys):
    """Runs these phases; returns the exit status, the verdict and the words of each row, and what was printed."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(quick, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(quick, "LOOK_S", 0.01)
    handlers = {each: signal.getsignal(each) for each in quick.STOPPING}

    def run(*phases: Phase, seconds: float = 1000, stuck: int = 1):
        monkeypatch.setattr(quick, "phases", lambda: phases)
        monkeypatch.setattr(quick, "clock", Clock(tmp_path / "out", stuck))
        status = quick.main(["--seconds", str(seconds), "--out", str(tmp_path / "out")])
        return status, verdicts(tmp_path / "out"), capsys.readouterr().out

    yield run
    for each, handler in handlers.items():
        signal.signal(each, handler)


def verdicts(out: Path) -> dict[str, tuple[str, str]]:
    """The last line of each row."""
    rows = map(json.loads, (out / "rows.jsonl").read_text().splitlines())
    return {each["row"]: (each["verdict"], each.get("said", "")) for each in rows}


def phase(*rows: str, name: str = "a phase", row_s: float = 500, limit_s: float = 500, **other) -> Phase:
    return Phase(name, "none", rows, row_s, limit_s, **other)


def test_all_is_well(planted, tmp_path):
    status, found, printed = planted(phase("one", "two"), phase("three", name="another phase"))
    assert status == 0 and set(found.values()) == {("passed", "")} and list(found) == ["one", "two", "three"]
    assert "3 passed, 0 failed, 0 not run" in printed
    assert (tmp_path / "out" / "table.txt").read_text() in printed


def test_a_row_that_fails_and_one_that_dies_stop_no_other(planted):
    status, found, printed = planted(
        phase("wrong", "dies", "one", "exits", "two"), phase("three", name="unwilling"), phase("four", name="last")
    )
    assert status == 1
    assert {name: each[0] for name, each in found.items()} == {
        "wrong": "failed", "dies": "failed", "one": "passed", "exits": "failed", "two": "passed", "three": "failed",
        "four": "passed",
    }  # fmt: skip
    assert found["dies"][1].startswith("its process ended with signal 9")
    assert found["exits"][1] == "its process ended with exit code 1: lost the GPU"
    assert found["three"][1] == "the process ended before it, with exit code 1: it cannot start"
    assert "failed: a phase, wrong; a phase, dies; a phase, exits; unwilling, three" in printed


def test_a_row_that_takes_too_long_is_cut(planted):
    status, found, _ = planted(phase("one", "slow", "two", row_s=30))
    assert status == 0 and found["two"] == ("passed", "")
    assert found["slow"] == ("not run", "no time, cut after 60 s")


def test_a_phase_that_takes_too_long_is_cut(planted):
    _, found, _ = planted(phase("one", "silent", "two", limit_s=30), phase("three", name="another phase"))
    assert found == {
        "one": ("passed", ""), "silent": ("not run", "no time"), "two": ("not run", "no time"), "three": ("passed", ""),
    }  # fmt: skip


def test_one_clock_for_all(planted):
    status, found, printed = planted(phase("one", "slow"), phase("two", name="another phase"), seconds=50)
    assert status == 0
    assert found == {
        "one": ("passed", ""), "slow": ("not run", "no time, cut after 60 s"), "two": ("not run", "no time"),
    }  # fmt: skip
    assert "two" in printed and "1 passed, 0 failed, 2 not run" in printed


def test_without_a_card_nothing_else_is_tried(planted, monkeypatch):
    monkeypatch.setattr(quick, "CARD", ("a phase", "wrong"))
    status, found, _ = planted(phase("wrong", "one"), phase("two", name="another phase"))
    assert status == 1 and found["one"] == ("passed", "") and found["two"] == ("not run", "no GPU that torch can use")


def test_phases_that_join_run_at_the_same_time(planted):
    """Else they would never all be stuck."""
    joined = [phase(f"silent {n}", name=f"{n}", limit_s=30, joins=n > 0) for n in range(3)]
    apart = phase("silent a", "silent b", "silent c", name="apart", limit_s=30, apart=True, joins=True)
    _, found, _ = planted(*joined, apart, stuck=6)
    assert len(found) == 6 and set(found.values()) == {("not run", "no time")}


def test_what_is_printed_is_short(planted):
    """However much the rows have to say, and however many they are."""
    rows = [f"long row number {number}" for number in range(120)]
    _, found, printed = planted(
        *(phase(*rows[n : n + 10], name=f"a phase of a long name, {n}") for n in range(0, 120, 10))
    )
    assert len(found) == 120 and len(printed) < LIMIT and "120 passed" in printed
    many = [{"phase": f"phase {n}", "row": "x" * 40, "verdict": "failed", "said": "y" * 500} for n in range(900)]
    assert len(table.table(many)) <= table.MOST


DRIVER = """
import pathlib, sys
sys.path.insert(0, {here!r})
import quick
quick.CHILD = pathlib.Path({child!r})
phases = {{"a phase": ("one", "slow", "two"), "another": ("three",)}}
quick.phases = lambda: tuple(quick.Phase(name, "none", rows, 60, 60) for name, rows in phases.items())
sys.exit(quick.main(["--out", {out!r}]))
"""


def test_stopped_by_a_signal(tmp_path, heard_signals):
    """The table is printed, and nothing that was started stays behind."""
    child, out = tmp_path / "child.py", tmp_path / "out"
    child.write_text(
        CHILD.replace(
            'if "slow" in name:', 'if "slow" in name:\n        write("pid", verdict="passed", pid=os.getpid())'
        )
    )
    code = DRIVER.format(here=str(Path(quick.__file__).parent), child=str(child), out=str(out))
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    rows = out / "rows.jsonl"
    while not (rows.exists() and '"pid"' in rows.read_text()):
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    printed, _ = run.communicate()
    pid = next(each["pid"] for each in map(json.loads, rows.read_text().splitlines()) if "pid" in each)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    found = verdicts(out)
    assert found["one"] == ("passed", "") and found["slow"][1].startswith("stopped by SIGTERM, cut after")
    assert found["two"] == found["three"] == ("not run", "stopped by SIGTERM")
    assert "1 passed, 0 failed, 3 not run" in printed and run.returncode == 0


# ---- rows ----


def done(tmp_path, **rows) -> dict[str, tuple[str, str]]:
    (tmp_path / "rows.jsonl").write_text("")
    row.do(rows, "a phase", list(rows), row.Setting("", True, tmp_path))
    return verdicts(tmp_path)


def raising(error: BaseException):
    def run(setting):
        raise error

    return run


def test_rows_in_a_process(tmp_path):
    found = done(
        tmp_path,
        wrong=raising(AssertionError("rank: other\nresults\nand much more")),
        absent=raising(row.NotRun("no such tool")),
        large=raising(torch.OutOfMemoryError("Tried to allocate 4 GB")),
        right=lambda setting: {"said": "well"},
    )
    assert found == {
        "wrong": ("failed", "AssertionError: rank: other results"), "absent": ("not run", "no such tool"),
        "large": ("not run", "out of memory: Tried to allocate 4 GB"), "right": ("passed", "well"),
    }  # fmt: skip


def test_a_process_that_has_lost_its_gpu_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "synchronize", raising(RuntimeError("an illegal memory access was encountered")).__call__
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: raising(RuntimeError("an illegal memory access"))(None))
    with pytest.raises(SystemExit, match="the GPU is lost to this process: an illegal memory access"):
        done(tmp_path, wrong=raising(RuntimeError("an illegal memory access")), right=lambda setting: {})
    assert verdicts(tmp_path) == {"wrong": ("failed", "RuntimeError: an illegal memory access")}


def test_a_time_stands_beside_floor_and_prediction(tmp_path, monkeypatch):
    setting = row.Setting("cuda", True, tmp_path)
    best = {"copy": {"gbs": 1000.0}, "fp32 product": {"gflops": 50_000.0}, "tf32 product": {"gflops": 400_000.0}}
    lines = [json.dumps({"phase": "ceilings", "row": name, **found}) + "\n" for name, found in best.items()]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    monkeypatch.setattr(row, "device_seconds", lambda call, calls: 0.004)
    monkeypatch.setattr(row, "predicted", {"rank": 3.0}.get)
    found = row.timed(setting, lambda: None, row.Work(1, 100_000_000_000, 500_000_000), model="rank")
    assert found == pytest.approx(
        {"median_ms": 4, "q25_ms": 4, "q75_ms": 4, "calls": 3, "floor_ms": 2, "times_the_floor": 2, "model_ms": 3}
    )
    assert "model_ms" not in row.timed(setting._replace(backend="triton"), lambda: None, model="rank")
    text = table.table([{"phase": "times", "row": "rank", "verdict": "passed", **found}])
    assert "4 (4-4, 3)" in text and "floor 2 " in text and "x 2 " in text and "model 3" in text


@pytest.fixture
def setting(cuda_device, tmp_path, monkeypatch) -> row.Setting:
    """Of rows of the simulated CUDA backend in this process."""
    if cuda_device.type != "cpu":
        pytest.skip("a GPU is here: the backend is not simulated")
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.setenv("BDKERNELS_BACKEND", "cuda")
    return row.Setting("cuda", True, tmp_path)


def test_another_result_fails_a_stage(setting, monkeypatch):
    assert stages.stage("score")(setting) == {"said": "score of 3 x 71, d = 5"}
    right = stages.STAGES["score"]
    monkeypatch.setitem(
        stages.STAGES, "score", lambda p: (right(p)[0] + 1e-6 * (os.environ["BDKERNELS_BACKEND"] == "cuda"),)
    )
    for name in (stages.stage("score"), stages.variant("one row")):
        with pytest.raises(AssertionError, match="score: Tensor-likes are not equal"):
            name(setting)
    with pytest.raises(RuntimeError, match="simulated"):
        stages.stage("rank")(setting._replace(rehearse=False))


@pytest.mark.parametrize(
    ("name", "operator"), [("rank 64", "rank"), ("topk 64 users", "topk"), ("search alone 64", "count_above_block")]
)
def test_another_result_is_not_timed(setting, monkeypatch, name, operator):
    right = getattr(bd, operator)

    def wrong(*args, backend=None, **kwargs):
        found = right(*args, backend=backend, **kwargs)
        return found if backend == "cpu" else tuple(t + 1 for t in found) if operator == "topk" else found + 1

    monkeypatch.setattr(bd, operator, wrong)
    with pytest.raises(AssertionError, match=f"{operator}: another result than the C\\+\\+ backend's"):
        times.ROWS[name](setting)


REPLAYS = {  # of a graph, and the step of `sample` where it is found to be wrong
    "the call": (lambda graph: graph.replay, None),
    "nothing": (lambda graph: lambda: None, 0),
    "the first call": (lambda graph: partial(first_again, graph.results, [t.clone() for t in graph.results]), 5),
}


def first_again(results, first):
    for mine, old in zip(results, first, strict=True):
        mine.copy_(old)


@pytest.mark.parametrize(("replay", "wrong_at"), REPLAYS.values(), ids=REPLAYS)
def test_a_graph_is_checked_before_it_is_timed(tmp_path, monkeypatch, replay, wrong_at):
    right = graphs.in_its_place

    def in_its_place(call):
        graph = right(call)
        return graph._replace(replay=replay(graph))

    monkeypatch.setattr(graphs, "in_its_place", in_its_place)
    (tmp_path / "rows.jsonl").write_text("")
    setting = row.Setting("cpu", True, tmp_path)
    if wrong_at is None:
        assert times.step_graph(setting)["median_ms"] > 0 and times.sample_graph(setting)["median_ms"] > 0
    else:
        with pytest.raises(AssertionError, match="not close"):
            times.step_graph(setting)
        with pytest.raises(AssertionError, match=f"the graph draws others with seed 0 at step {wrong_at}"):
            times.sample_graph(setting)


def test_libraries_are_built_where_they_do_not_load(monkeypatch, tmp_path):
    """For this card alone; and if they are of no use then, that is a failure."""
    ran, results = [], [0, 0, 0, 1]

    def run(command, **kwargs):
        ran.append((" ".join(command), kwargs["env"]))
        return subprocess.CompletedProcess(command, results.pop(0), "", "still not")

    monkeypatch.setattr(machine, "refused", lambda rehearse: "backend cuda: not built")
    monkeypatch.setattr(machine.subprocess, "run", run)
    monkeypatch.setattr(machine.shutil, "which", lambda program: program)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    setting = row.Setting("", False, tmp_path)
    assert machine.libraries(setting) == {"said": "built here, since backend cuda: not built"}
    assert ran[0][0].endswith("setup.py -q build_kernels") and ran[0][1]["BDKERNELS_CUDA_ARCHS"] == "90"
    assert ran[0][1]["BDKERNELS_STRICT_BUILD"] == ran[0][1]["BDKERNELS_BUILD_CUDA"] == "1"
    with pytest.raises(RuntimeError, match="not built; but still not"):
        machine.libraries(setting)
    monkeypatch.setattr(machine.shutil, "which", lambda program: None)
    with pytest.raises(RuntimeError, match="not built; and nvcc is not on the PATH"):
        machine.libraries(setting)


def test_whether_the_libraries_are_of_use(setting):
    assert machine.refused(rehearse=True) is None


def test_a_card_as_it_is_told(setting, monkeypatch):
    h100 = cards.Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 1_980_000, 2_619_000, 5120)
    monkeypatch.setattr(machine, "card", lambda device: h100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    assert machine.gpu(setting)["said"] == (
        "NVIDIA H100 80GB HBM3, 132 multiprocessors at 1.98 GHz, 80 GiB, 66.9 TFLOP/s, 3.35 TB/s"
    )


@pytest.mark.parametrize(
    ("out", "verdict", "said"),
    [
        ("....\n12 passed, 1 skipped in 3.20s\n", None, "12 passed, 1 skipped in 3.20s"),
        ("== 12 passed in 3.20s ==", None, "12 passed in 3.20s"),
        ("FAILED tests/gpu/test_a.py::test_x[1] - it\n1 failed, 9 passed in 3s", "failed", "1 failed, 9 passed in 3s; test_x[1]"),
        ("3 skipped in 0.10s", "failed", "3 skipped in 0.10s"),
        ("Segmentation fault", "failed", "Segmentation fault"),
        ("", "failed", "it said nothing"),
    ],
)  # fmt: skip
def test_verdict_of_pytest(out, verdict, said):
    found = pytests.verdict(out)
    assert (found.get("verdict"), found["said"]) == (verdict, said)


def test_verdict_of_memcheck():
    passed = "30 passed in 20.00s\n========= ERROR SUMMARY: "
    assert pytests.watched_verdict(passed + "0 errors") == {"said": "30 passed in 20.00s, ERROR SUMMARY: 0 errors"}
    found = pytests.watched_verdict("========= Invalid __global__ read of size 4 bytes\n" + passed + "2 errors")
    assert found == {"verdict": "failed", "said": "ERROR SUMMARY: 2 errors: Invalid __global__ read of size 4 bytes"}
    assert (
        pytests.watched_verdict("1 failed, 29 passed in 20.00s\n========= ERROR SUMMARY: 0 errors")["verdict"]
        == "failed"
    )
    for refused in (
        "========= Error: Device not supported\n3 errors in 1.00s\nERROR SUMMARY: 0 errors",
        "Device not supported",
    ):
        with pytest.raises(row.NotRun, match="Device not supported"):
            pytests.watched_verdict(refused)


def test_a_few_tests_are_watched():
    """One of each function, of every kernel's file."""
    command = [*pytests.PYTEST[1:], "-p", "one_of_each", "--collect-only", *pytests.kernel_tests()]
    path = os.pathsep.join([str(ROOT / "tests" / "gpu"), os.environ.get("PYTHONPATH", "")])
    found = python(*command, PYTHONPATH=path).stdout
    tests = re.findall(r"^tests/gpu/(test_cuda_\w+)\.py::(\w+)", found, re.M)
    assert 30 <= len(tests) == len(set(tests)) <= 100, found
    assert {file for file, _ in tests} >= {f"test_cuda_{noun}" for noun in ("score", "rank", "sample", "topk", "loss")}


def test_every_row_has_its_function():
    for each in quick.phases():
        rows = import_module(f"phases.{each.module}").ROWS
        assert set(each.rows) | set(each.few) <= set(rows), each.name
        assert set(each.few) <= set(each.rows), each.name
    assert sum(each.limit_s for each in quick.phases() if each.name == "cuda: times") <= 465 / 3


# ---- the rehearsal ----


def test_rehearsal(tmp_path):
    """Every phase, on the CPU, without git; a child of it needs no plugin of pytest."""
    pytest.importorskip("triton")
    build_simulation()
    (tmp_path / "git").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "git").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    run = python("tests/gpu/quick.py", "--rehearse", "--out", str(tmp_path), PATH=path, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stdout + (tmp_path / "log.txt").read_text()[-8000:]
    assert len(run.stdout) < LIMIT and "A rehearsal without a GPU" in run.stdout
    found = verdicts(tmp_path)
    wanted = [name for each in quick.phases() for name in each.few]
    assert set(found) == set(wanted)
    left_out = {name: said for name, (verdict, said) in found.items() if verdict == "not run"}
    assert left_out == {"memcheck": "a rehearsal: it watches a GPU"}
    assert "commit no git" in found["versions"][1] and f"torch {torch.__version__}" in found["versions"][1]
