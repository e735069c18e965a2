"""The benchmark suite at tiny sizes: every kind of case runs and is written down, the report renders, wrong results stop it."""

import json
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bdkernels as bd
from bdkernels import backends
from bdkernels.tools import measure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")
pytest.importorskip("matplotlib", reason="the report's plots need matplotlib")

from benchmarks import cases, evaluate, report, sample, suite, targets, topk  # noqa: E402
from benchmarks.case import Case  # noqa: E402
from benchmarks.floor import Floor, Tile, product  # noqa: E402
from benchmarks.machine import commit  # noqa: E402


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A folder with what the tiny suite wrote."""
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "pytest", "benchmarks/suite.py", "--suite", "tiny", "--results", str(out), "-q"]
    env = os.environ | {
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }  # compiling takes longer than all the rest
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def test_every_case_leaves_rows_with_machine_and_numbers(results):
    rows = [row for path in results.glob("*.json") for row in json.loads(path.read_text())["rows"]]
    assert {row["case"] for row in rows} == set(cases.TINY)
    for row in rows:
        assert {"date", "commit", "torch", "cpu", "threads", "isa", "peak_gflops", "peak_gbs"} <= row.keys()
        if "absent" not in row:
            assert 0 < row["q25_s"] <= row["median_s"] <= row["q75_s"] and row["repeats"] >= 2
    first = next(row for row in rows if (row["case"], row["contender"]) == ("sample/a", "bdkernels"))
    assert first["ns_a_score"] > 0 and first["gflops"] > 0 and first["times_the_floor"] > 0
    assert first["peak_extra_mb"] is not None or not Path("/proc/self/clear_refs").exists()


@pytest.mark.parametrize("left", ["no program", "no history"])
def test_without_git(monkeypatch, tmp_path, left):
    """A copy of the sources on a machine of somebody else is measured all the same."""
    if left == "no program":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert commit() == "no git"


def test_report_renders(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}stale\n{report.END}\nafter\n")
    report.main(["--results", str(results), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    for target in targets.TARGETS:
        assert target.figure in text
    assert "| extra memory at (c) | at most 64 MB | not measured |  |" in text
    assert "dense eager" in text


def test_verdicts():
    low, high = (t for t in targets.TARGETS if t.figure.startswith("sampling at (b), against"))
    assert low.bound == 50 and not low.at_most and high.at_most
    rows = {
        ("sample/b", who): {"median_s": s, "times_the_floor": s}
        for who, s in (("bdkernels", 2.0), ("dense_eager", 90.0))
    }
    assert targets.verdict(low, rows) == ("45", "missed")
    assert targets.verdict(high, rows) == ("2.00", "met")
    assert targets.verdict(low, {}) == ("not measured", "")


@pytest.mark.parametrize("tile", [Tile(4, 7, *flags) for flags in ((0, 0), (0, 1), (1, 0), (1, 1))])
@pytest.mark.usefixtures("two_threads")
def test_floor_makes_the_whole_product(tile):
    f = bd.Factors(torch.randn(10, 3), torch.randn(45, 3))
    out = torch.full((10, 45), torch.nan)
    product(f, tile, out)
    torch.testing.assert_close(out, f.user_factors @ f.item_factors.T)
    floor = Floor(f)
    floor().check()
    assert torch.get_num_threads() == 2 and "users x" in floor.note


def wrong_draws(result):
    return tuple(torch.zeros_like(ids) for ids in result)


@pytest.mark.parametrize(
    ("module", "size", "contender", "spoil"),
    [
        (sample, "a", "dense_eager", wrong_draws),
        (sample, "a", "bdkernels", wrong_draws),
        (evaluate, "e", "bdkernels", lambda ranks: ranks + 9),
        (evaluate, "e", "chunked_64", lambda ranks: ranks.flip(0)),
        (topk, "b", "bdkernels", lambda best: (best[0], best[1].roll(1, 0))),
        (topk, "b", "torch_topk_16384", lambda best: (best[0] + 1, best[1])),
    ],
)
def test_a_wrong_result_is_not_timed(module, size, contender, spoil):
    case = module.build(size, tiny=True)
    case.contenders = {name: call for name, call in case.contenders.items() if name in ("bdkernels", contender)}
    right = case.contenders[contender]
    case._first_calls()
    case.contenders[contender] = partial(lambda call: spoil(call()), right)
    with pytest.raises(AssertionError):
        case._first_calls()


def test_every_timed_call_waits_for_the_device(monkeypatch):
    """A GPU's work is queued: a time that ends before it is done is none."""
    events = []
    monkeypatch.setattr(measure, "_synchronize", lambda: events.append("wait"))
    calls = {name: partial(events.append, name) for name in ("own", "peer")}
    job = Case({}, calls, lambda results: None, None)

    class Benchmark:
        stats = SimpleNamespace(stats=SimpleNamespace(data=[1.0]))

        def pedantic(self, call, setup, rounds, iterations):
            setup()
            call()

    job.measure(Benchmark(), 3, 1.0)
    assert events == [each for name in ("own", "peer", "own", "peer", "own") for each in ("wait", name, "wait")]


class Rounds:
    """pytest-benchmark, as far as a case needs it."""

    def __init__(self) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.extra_info = {}

    def pedantic(self, call, setup, rounds, iterations):
        for _ in range(rounds):
            setup()
            self.stats.stats.data.append(call())


def test_a_first_call_that_compiles_does_not_shorten_the_timing(monkeypatch):
    clock, calls = [0.0], []  # no clock of this machine, which may be busy
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def slow_at_first():
        clock[0] += 0.01 if calls else 300.0
        calls.append(None)

    timing = Case({}, {"own": slow_at_first}, lambda results: None, None).measure(Rounds(), 9, 0.1)["own"]
    assert timing.first_s == 300 and timing.times == [pytest.approx(0.01)] * 9


def test_a_peer_that_runs_out_of_memory_later_is_absent():
    calls = []

    def no_room_at_third():
        calls.append(0)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory\nand much about it")

    job = Case({}, {"own": lambda: 1, "peer": no_room_at_third}, lambda results: None, None)
    assert list(job.measure(Rounds(), 9, 1.0)) == ["own"]
    assert job.absent == {"peer": "out of memory"} and len(calls) == 3


def test_inputs_are_let_go_before_others_are_weighed():
    """A child in a process of its own needs the GPU's memory; the check has the inputs, too."""
    inputs = torch.ones(9)
    seen = weakref.ref(inputs)
    job = Case({}, {"own": partial(torch.sum, inputs)}, partial(lambda inputs, results: None, inputs), None)
    del inputs
    job.measure(Rounds(), 3, 0.1)
    assert seen() is not None
    job.release()
    assert seen() is None


def test_results_are_let_go_before_the_timing():
    """They take memory beside what is timed."""
    alive = []

    def own():
        alive.append(weakref.ref(result := torch.ones(9)))
        assert sum(ref() is not None for ref in alive) == 1 or len(alive) == 1
        return result

    Case({}, {"own": own}, lambda results: None, None).measure(Rounds(), 3, 0.1)
    assert len(alive) == 5


def test_a_peer_that_cannot_be_weighed_keeps_its_times(monkeypatch, tmp_path):
    """Its child may run out of memory; what the library takes has to be known."""

    class Child:
        extra_mb = 1.0

        def __init__(self, name, contender, *, tiny):
            if contender in dies:
                raise RuntimeError(f"{contender} ended with exit code 1")

        __enter__ = __exit__ = lambda self, *rest: self

    monkeypatch.setattr(suite, "Child", Child)
    monkeypatch.setattr(suite, "build", lambda name, tiny, data: cases.build(name, tiny=True))
    options = {"suite": "full", "data": "", "results": tmp_path}
    request = SimpleNamespace(config=SimpleNamespace(getoption=options.get))
    where = {"peak_gflops": 1.0, "peak_gbs": 1.0, "threads": 1}
    for dies in (["eager"], ["bdkernels"]):
        rounds = Rounds()
        with pytest.raises(RuntimeError, match="exit code 1") if "bdkernels" in dies else nullcontext():
            suite.test_case("loss/step", rounds, where, request)
    rows = {row["contender"]: row for row in json.loads((tmp_path / "loss.json").read_text())["rows"]}
    assert rows["eager"]["median_s"] > 0 and rows["eager"]["note"] == "not weighed: eager ended with exit code 1"
    assert rows["eager"]["peak_extra_mb"] is None and rows["bdkernels"]["peak_extra_mb"] == 1.0


def test_products_are_not_of_tf32():
    """Whatever the environment asks for: some images of torch set this."""
    code = "import torch, benchmarks.machine; print(torch.get_float32_matmul_precision())"
    env = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    for module, precision in (("benchmarks.machine", "highest"), ("json", "high")):
        command = [sys.executable, "-c", code.replace("benchmarks.machine", module)]
        out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        assert out.stdout.split() == [precision]


def test_a_peer_for_which_memory_is_too_small_is_absent():
    def no_room():
        raise torch.OutOfMemoryError("out of memory\nand much about it")

    job = Case({}, {"own": lambda: 1, "peer": no_room}, lambda results: None, None)
    assert list(job._first_calls()) == ["own"] and job.absent == {"peer": "out of memory"}
    with pytest.raises(torch.OutOfMemoryError):
        Case({}, {"own": no_room}, lambda results: None, None)._first_calls()


def test_suites_hold_each_other():
    assert set(cases.TINY) <= set(cases.BENCH) < set(cases.FULL)


def test_out_of_memory_is_said_and_not_tried(monkeypatch):
    monkeypatch.setattr(sample, "memory_gb", lambda: 0.0)
    case = sample.build("a", tiny=True)
    assert case.absent["dense_eager"].startswith("out of memory: asks for ")
    assert "dense_compiled" in case.absent and "dense_eager" not in case.contenders
