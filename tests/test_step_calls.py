"""What a training step costs around its kernels: Python calls, and answers of the device that it waits for.

This file is also the program that counts them, in a process where no other test has left a profiler or a mode of torch.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from bidistill import Config, generate, split
from bidistill.training.engine import Engine
from torch.profiler import ProfilerActivity, profile

from bdkernels import backends

# Of a joint step before operators were declared once: two fused steps, the guides' scores before them, draws from the pool.
CALLS, READS = 838, 26
READ = ("aten::_local_scalar_dense", "aten::equal")  # what item(), int(), bool() and an `if` ask the device by


def joint_step() -> Callable[[int], dict[str, torch.Tensor]]:
    """A joint step of this number, of a run whose first steps are done: they check shapes."""
    parts = split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)
    both = {"optimizer": "sparse_adam", "lr": 0.01}
    settings = {f"{name}.{key}": value for name in ("teacher", "student") for key, value in both.items()}
    config = Config().with_overrides({**settings, "distill.resample_every": 10, "train.batch_size": 64})
    engine = Engine(config, parts)
    engine.objective.resample(0, 10)
    rows = engine.order("joint", 0)[:64]

    def run(number: int) -> dict[str, torch.Tensor]:
        return engine.step("joint", engine.users[rows], engine.items[rows], number)

    for number in range(3):
        assert set(run(number)) == {f"{m}/loss_{t}" for m in ("teacher", "student") for t in ("cf", "distill")}
    return run


def counted(step: Callable[[int], object]) -> dict[str, Counter[str]]:
    """The Python calls of a step, its tolist(), and the operators that it ran."""
    calls: Counter[str] = Counter()
    lists: Counter[str] = Counter()

    def note(frame, event, function):
        if event == "call":
            calls[f"{frame.f_code.co_filename}: {frame.f_code.co_name}"] += 1
        if event == "c_call" and function.__name__ == "tolist":
            lists[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        step(3)
    finally:
        sys.setprofile(None)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(4)
    return {"calls": calls, "lists": lists, "operators": Counter(event.name for event in seen.events())}


@pytest.fixture(scope="module")
def found() -> dict[str, Counter[str]]:
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: Counter(values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}


def test_python_calls(found):
    assert 0 < found["calls"].total() <= CALLS / 4, found["calls"].most_common(40)


def test_reads(found):
    operators, lists = found["operators"], found["lists"]
    assert operators["bdkernels_cpu::fused_step"] == 2, operators
    assert 0 < sum(operators[name] for name in READ) + lists.total() <= READS / 4, (operators, lists)


if __name__ == "__main__":
    print(json.dumps(counted(joint_step())))
