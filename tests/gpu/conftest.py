"""Where the CUDA kernels run in tests: on a GPU if one is there, else their source on the CPU, in the simulator of shim/."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the folders below

from simulation import ROOT, build_simulation, locked

from bdkernels import backends
from bdkernels.backends import choice, cuda


@pytest.fixture(scope="session")
def simulated_library() -> Path:
    return build_simulation()


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory, request) -> Path:
    """What nvcc makes of the CUDA sources, for one target; `make gpu-proof` builds for all."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine")
    temporary = tmp_path_factory.getbasetemp()
    shared = temporary.parent if hasattr(request.config, "workerinput") else temporary  # by the workers of pytest-xdist
    out = shared / "cuda" / "libbdkernels_proof.so"
    command = [sys.executable, "setup.py", "-q", "build_cuda", "--out", str(out)]
    with locked(out.parent):
        if not out.exists():
            subprocess.run(command, cwd=ROOT, check=True, env={"BDKERNELS_CUDA_ARCHS": "80", **os.environ})
    return out


@pytest.fixture
def cuda_device(monkeypatch, request) -> torch.device:
    """The device for tensors of backend="cuda"."""
    if backends.missing("cuda") is not None:
        monkeypatch.setenv("BDKERNELS_CUDA_LIBRARY", "simulated")
        monkeypatch.setattr(cuda, "LIBRARY", request.getfixturevalue("simulated_library"))
        monkeypatch.setitem(choice._missing, "cuda", cuda.load())
    assert backends.missing("cuda") is None, backends.missing("cuda")
    return torch.device("cpu" if cuda.simulated() else "cuda")
