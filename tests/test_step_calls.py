"""What a training step costs around its kernels: Python calls, and answers of the device that it waits for."""

import sys
from collections import Counter

import pytest
import torch
from bidistill import Config, generate, split
from bidistill.training.engine import Engine
from torch.profiler import ProfilerActivity, profile

from bdkernels import backends

# Of a joint step before operators were declared once: two fused steps, the guides' scores before them, draws from the pool.
CALLS, READS = 838, 26
READ = ("aten::_local_scalar_dense", "aten::equal")  # what item(), int(), bool() and an `if` ask the device by


@pytest.fixture(scope="module")
def step():
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    parts = split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)
    both = {"optimizer": "sparse_adam", "lr": 0.01}
    settings = {f"{name}.{key}": value for name in ("teacher", "student") for key, value in both.items()}
    config = Config().with_overrides({**settings, "distill.resample_every": 10, "train.batch_size": 64})
    engine = Engine(config, parts)
    engine.objective.resample(0, 10)
    rows = engine.order("joint", 0)[:64]

    def run(number: int) -> dict[str, torch.Tensor]:
        return engine.step("joint", engine.users[rows], engine.items[rows], number)

    for number in range(3):  # the first ones check shapes
        assert set(run(number)) == {f"{m}/loss_{t}" for m in ("teacher", "student") for t in ("cf", "distill")}
    return run


def test_python_calls(step):
    calls: Counter[str] = Counter()

    def note(frame, event, _):
        if event == "call":
            calls[f"{frame.f_code.co_filename}: {frame.f_code.co_name}"] += 1

    sys.setprofile(note)
    try:
        step(3)
    finally:
        sys.setprofile(None)
    assert 0 < calls.total() <= CALLS / 4, calls.most_common(40)


def test_reads(step):
    lists = Counter()

    def note(frame, event, function):
        if event == "c_call" and function.__name__ == "tolist":
            lists[frame.f_code.co_name] += 1

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        sys.setprofile(note)
        try:
            step(4)
        finally:
            sys.setprofile(None)
    asked = Counter(event.name for event in seen.events())
    assert asked["bdkernels_cpu::fused_step"] == 2, asked
    assert 0 < sum(asked[name] for name in READ) + lists.total() <= READS / 4, (asked, lists)
