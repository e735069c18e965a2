"""Shared fixtures, and the list of what this machine cannot test, printed at the end of every run.

BDKERNELS_TEST_BACKENDS names the backends of the operator tests (default: those of the CPU), BDKERNELS_TEST_DEVICE=cuda carries
their arguments to a GPU and their results back, so that the same tests run there: `make gpu-check` does that.
"""

import importlib
import os
import shutil
import signal
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from chosen import BACKENDS
from modes import flushed

from bdkernels import backends
from bdkernels.backends import choice, cpu

# Files that take a minute or more, longest first: if they started last, one worker would wait for the other.
LONG = (
    "test_cuda_sanitized.py",
    "test_gpu_check.py",
    "test_quick.py",
    "test_sharded_training.py",
    "test_fuzz.py",
    "test_interpreted.py",
    "test_cuda_operators.py",
    "test_million.py",
    "test_experiment.py",
    "test_benchmarks_scale.py",
    "test_distributed.py",
    "test_models_outside.py",
    "test_trainer.py",
    "test_triton_compiled.py",
    "test_derived.py",
    "test_cli.py",
)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# What tests start is no worker of pytest-xdist, though this process may be one.
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]
# Most data here are so small that a second thread only waits, on a busy machine for long; `two_threads` asks for it.
torch.set_num_threads(1)
if "BDKERNELS_TEST_DEVICE" in os.environ:
    from gpu.carry import carry

    carry(torch.device(os.environ["BDKERNELS_TEST_DEVICE"]))


@pytest.fixture(params=[*BACKENDS, *(["cpu, flushed"] if "cpu" in BACKENDS else [])])
def backend(request, monkeypatch) -> str:
    """Every backend that is to be tested; one that is not here is left out, and said so.

    "cpu, flushed" is "cpu" called by a thread whose float mode flushes subnormals to 0, which must change nothing.
    """
    name, *mode = request.param.split(", ")
    if (reason := backends.missing(name)) is not None:
        pytest.skip(f"backend {name}: {reason}")
    if mode:
        monkeypatch.setitem(choice.BACKENDS, "cpu", replace(cpu.BACKEND, stages=flushed(cpu.STEPS)))
    return name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20210419)


@pytest.fixture
def two_threads():
    """Two threads for one test."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def heard_signals():
    """For a test that sends signals, to this process or to one that it starts: they are not ignored.

    nohup and shells start their background jobs with some of them ignored, and what these start inherits that.
    """
    ignored = [each for each in STOPPING if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


@pytest.fixture
def outside(monkeypatch):
    """Imports a file of tests/outside by its name, as a program of a user would; what is registered is gone after the test."""
    from bidistill import registry as registries  # late: tests of the kernels run where bidistill cannot be had

    for registry in (
        registries.MODELS,
        registries.METHODS,
        registries.LOSSES,
        registries.METRICS,
        registries.CATALOG_METRICS,
        registries.OPTIMIZERS,
        registries.SCHEDULERS,
    ):
        list(registry)  # finds the names of the package
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    for name in ("BACKENDS", "_missing"):
        monkeypatch.setattr(choice, name, dict(getattr(choice, name)))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, f"outside.{name}", raising=False)
        return importlib.import_module(f"outside.{name}")

    return load


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)


def lost_gpu() -> str | None:
    """Why this process can do nothing more on the GPU: after an illegal access or an assertion there, every call fails."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the Makefile keeps pytest-xdist from another order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Ends the run where the tests after this one would fail for no reason of their own."""
    report = yield
    if report.failed and (why := lost_gpu()):
        item.session.shouldfail = f"no test after {item.nodeid} was run: this process has lost the GPU ({why})"
    return report


def pytest_terminal_summary(terminalreporter) -> None:
    absent = [f"backend {name}: {backends.missing(name)}" for name in backends.names() if backends.missing(name)]
    if not torch.cuda.is_available():
        absent.append("no GPU: everything ran on the CPU")
    if shutil.which("nvcc") is None:
        absent.append("no nvcc: nothing was compiled for CUDA")
    terminalreporter.section("left out on this machine")
    for line in absent:
        terminalreporter.write_line(line)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"{report.nodeid}: {reason}")
