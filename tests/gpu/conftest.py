"""Where the CUDA kernels run in tests: on a GPU if one is there, else their source on the CPU, in the simulator of shim/."""

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the folders below

from simulation import ROOT, build_simulation

from bdkernels import backends, cuda


@pytest.fixture(scope="session")
def simulated_library() -> Path:
    return build_simulation(ROOT / "build" / "simulation" / "libbdkernels_cusim.so")


@cache
def start_interpreted() -> subprocess.Popen:
    """The tests of interpreted/, which take minutes: on another core, while others run here."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent / "interpreted"),
    ]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    atexit.register(run.kill)
    return run


def pytest_collection_finish(session) -> None:
    wanted = any("interpreted" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and importlib.util.find_spec("triton"):
        start_interpreted()


@pytest.fixture
def interpreted():
    return start_interpreted


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory) -> Path:
    """What nvcc makes of the CUDA sources, for one target; `make gpu-proof` builds for all."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine")
    out = tmp_path_factory.mktemp("cuda") / "libbdkernels_proof.so"
    command = [sys.executable, "setup.py", "-q", "build_cuda", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, env={"BDKERNELS_CUDA_ARCHS": "80", **os.environ})
    return out


@pytest.fixture
def cuda_device(monkeypatch, request) -> torch.device:
    """The device for tensors of backend="cuda"."""
    if backends.missing("cuda") is not None:
        monkeypatch.setenv("BDKERNELS_CUDA_LIBRARY", "simulated")
        monkeypatch.setattr(cuda, "LIBRARY", request.getfixturevalue("simulated_library"))
        monkeypatch.setitem(backends._missing, "cuda", cuda.load())
    assert backends.missing("cuda") is None, backends.missing("cuda")
    return torch.device("cpu" if cuda.simulated() else "cuda")
