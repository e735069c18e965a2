"""`python -m bdkernels.profile`: every operator, its trace, and one sentence for what cannot be."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bdkernels.tools import profile
from bdkernels.tools.cards import Card, card, floor_s
from bdkernels.tools.measure import Peaks, Work, device_seconds, extra_mb, peaks, quartiles, rates

SMALL = ["--users", "3", "--items", "50", "--repeats", "2"]
# Operators that the public ones call:
INNER = {"score_forward", "score_backward", "distill_loss_forward", "distill_loss_backward", "fused_gradient"}
INNER |= {"softmax_loss_forward", "softmax_gradient"}


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch):
    monkeypatch.setattr(profile, "peaks", lambda device: Peaks(100.0, 20.0))


@pytest.mark.parametrize("operator", list(profile.OPERATORS))
def test_every_operator_is_timed_and_traced_under_its_own_name(operator, tmp_path, capfd):
    trace = tmp_path / "trace.json"
    profile.main([operator, *SMALL, "--trace", str(trace)])
    out = capfd.readouterr().out
    assert out.startswith(f"{operator}: users 3, items 50")
    for word in ("time ", "a score ", "GFLOP/s", "GB/s", "memory "):
        assert word in out
    events = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert f"bdkernels::{operator}" in events


def test_every_public_operator_is_there():
    operators = set(torch._C._dispatch_get_all_op_names())
    public = {name.split("::")[1] for name in operators if name.startswith("bdkernels::")} - INNER
    assert set(profile.OPERATORS) == public


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_tables(dtype, capsys):
    profile.main(["rank", *SMALL, "--dtype", dtype, "--dims", "5", "--backend", "reference"])
    assert dtype in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rank", "--users", "0"], "at least 1, got '0'"),
        (["rank", "--thresholds", "3"], "unrecognized arguments: --thresholds 3"),
        (["sort"], "invalid choice: 'sort'"),
        ([], "required: OPERATOR"),
        (["topk", *SMALL, "-k", "51"], "k: expected an integer >= 1 and <= 50, got 51"),
        (["rank", *SMALL, "--backend", "nope"], "expected one of reference, cpu"),
        (["rank", *SMALL, "--dtype", "float64"], "got torch.float64"),
        (["rank", *SMALL, "--device", "nope"], "--device: nope cannot be used here"),
        (["rank", *SMALL, "--trace", "no/such/folder/t.json"], "expected a file in a folder that exists"),
        (["distill_loss", *SMALL, "--backend", "nope"], "expected one of reference, cpu"),
    ],
)
def test_errors_are_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        profile.main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_as_a_program():
    run = subprocess.run(
        [sys.executable, "-m", "bdkernels.profile", "score", *SMALL], capture_output=True, text=True, check=True
    )
    assert "ns" in run.stdout


def test_threads_are_honoured(capsys):
    before = torch.get_num_threads()
    try:
        profile.main(["score", *SMALL, "--threads", "2"])
    finally:
        torch.set_num_threads(before)
    assert " 2 threads" in capsys.readouterr().out


def test_rates_are_arithmetic():
    found = rates(Work(scores=10**6, flops=10**9, bytes=10**8), 0.01, Peaks(200.0, 20.0))
    assert found == pytest.approx(
        {"ns_a_score": 10, "gflops": 100, "percent_of_peak_gflops": 50, "gbs": 10, "percent_of_peak_gbs": 50}
    )
    assert rates(Work(1, 0, 1), 1.0, Peaks(1.0, 1.0))["gflops"] is None
    assert quartiles([3.0, 1.0, 2.0]) == {"median_s": 2.0, "q25_s": 1.5, "q75_s": 2.5}
    assert quartiles([4.0])["median_s"] == 4.0


def test_peaks_and_memory_are_measured():
    assert min(peaks(floats=1 << 16, repeats=1)) > 0
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from /proc, which this system does not have")
    assert 60 < extra_mb(lambda: torch.ones(16 << 20)) < 100


def test_memory_of_a_gpu_is_that_of_the_second_call(monkeypatch):
    """The first one may tune kernels, with buffers of its own."""
    peak, calls = [0], []

    def call():
        calls.append(0)
        peak[0] = (300 if len(calls) == 1 else 5) << 20

    fakes = {
        "is_initialized": lambda: True,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: peak.__setitem__(0, 2 << 20),
        "memory_allocated": lambda: 2 << 20,
        "max_memory_allocated": lambda: peak[0],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert extra_mb(call) == 3


H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, clock_rate=1_980_000,
    memory_clock_rate=2_619_000, memory_bus_width=5120,
)  # fmt: skip


def test_floor_of_a_card():
    """By its own description: 132 multiprocessors of 128 multiply-adds a clock, and 640 bytes on both edges of the memory's."""
    found = Card.of(H100)
    assert found.peaks() == pytest.approx((66_908, 3_352), rel=1e-3)
    work = Work(scores=10**9, flops=133_816 * 10**6, bytes=10**6)
    assert floor_s(work, found.peaks()) == pytest.approx(2e-3, rel=1e-3)
    assert floor_s(Work(1, 0, 3_352 * 10**6), found.peaks()) == pytest.approx(1e-3, rel=1e-3)
    line = profile.report([0.008] * 3, work, Peaks(60_000.0, 3_000.0), 1.0, found).splitlines()[4]
    assert line.startswith(
        "floor      2.000 ms by arithmetic, of which 25.0 % was reached (NVIDIA H100 80GB HBM3, 132 multi"
    )
    assert "at 1.98 GHz: 66.9 TFLOP/s of fp32, 3.35 TB/s" in line
    line = profile.report([0.008] * 3, Work(1, 0, 10**9), Peaks(60_000.0, 3_000.0), 1.0, found)
    assert "ms by memory" in line


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"major": 13}, "compute capability 13.0 is not one"),
        ({"clock_rate": 0}, f"torch {torch.__version__} does not say"),
    ],
)
def test_a_card_that_is_not_known(other, why):
    found = Card.of(SimpleNamespace(**vars(H100) | other))
    line = profile.report([0.008], Work(1, 1, 1), Peaks(1.0, 1.0), None, found).splitlines()[4]
    assert line.startswith("floor      not known for NVIDIA H100") and why in line


def test_a_card_of_an_older_torch():
    """Whose description has no clocks."""
    few = SimpleNamespace(name="a card", major=8, minor=0, multi_processor_count=108)
    assert "does not say its clocks" in Card.of(few).unknown
    assert card("cpu") is None


def test_times_on_a_gpu_are_between_two_events(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def synchronize(self):
            order.append("wait")

        def elapsed_time(self, end):
            return 12.0

    for name, fake in {
        "is_initialized": lambda: True,
        "synchronize": lambda: order.append("wait"),
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert device_seconds(lambda: order.append("call"), calls=3) == pytest.approx(0.004)
    assert order == ["wait", "event", "call", "call", "call", "event", "wait"]
