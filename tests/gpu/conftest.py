"""Where the CUDA kernels run in tests: on a GPU if one is there, else their source on the CPU, in the simulator of shim/."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the folders below

from simulation import ROOT, build_simulation

from bdkernels import backends, cuda


@pytest.fixture(scope="session")
def simulated_library() -> Path:
    return build_simulation(ROOT / "build" / "simulation" / "libbdkernels_cusim.so")


@pytest.fixture
def cuda_device(monkeypatch, request) -> torch.device:
    """The device for tensors of backend="cuda"."""
    if backends.missing("cuda") is not None:
        monkeypatch.setenv("BDKERNELS_CUDA_LIBRARY", "simulated")
        monkeypatch.setattr(cuda, "LIBRARY", request.getfixturevalue("simulated_library"))
        monkeypatch.setitem(backends._missing, "cuda", cuda.load())
    assert backends.missing("cuda") is None, backends.missing("cuda")
    return torch.device("cpu" if cuda.simulated() else "cuda")
