"""Options of the suite, and what all its cases share."""

from pathlib import Path
from typing import Any

import pytest

from bdkernels.tools.measure import peaks
from benchmarks.cases import SUITES
from benchmarks.machine import DEVICE, machine


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption("--suite", choices=SUITES, default="bench", help="which cases, and how often (default: bench)")
    group.addoption("--results", type=Path, default=Path("benchmarks/results"), help="folder of the result files")
    group.addoption("--data", default="", help=".npz of interactions for the epoch (default: made up)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", SUITES[metafunc.config.getoption("suite")][0])


@pytest.fixture(scope="session")
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The machine and its peaks, measured before anything else."""
    tiny = request.config.getoption("suite") == "tiny"
    found = peaks(DEVICE, floats=1 << 16, repeats=1) if tiny else peaks(DEVICE)
    return machine() | {"peak_gflops": found.gflops, "peak_gbs": found.gbs}
