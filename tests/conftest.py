"""Shared fixtures, and the list of what this machine cannot test, printed at the end of every run."""

import shutil

import numpy as np
import pytest
import torch

from bdkernels import backends

# Most data here are so small that a second thread only waits, on a busy machine for long; `two_threads` asks for it.
torch.set_num_threads(1)
CPU_BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=CPU_BACKENDS)
def backend(request) -> str:
    """Every backend that runs on the CPU; the C++ one is left out, and said so, where it is not built."""
    if (reason := backends.missing(request.param)) is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20210419)


@pytest.fixture
def two_threads():
    """Two threads for one test."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter) -> None:
    absent = [f"backend {name}: {backends.missing(name)}" for name in backends.NAMES if backends.missing(name)]
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
