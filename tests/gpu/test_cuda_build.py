"""nvcc takes the CUDA sources, with every warning an error, and no kernel spills or keeps an array in local memory.

BDKERNELS_TORCHES names further interpreters, whose torch has to take the binaries as they are.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from simulation import ROOT

from bdkernels.backends import cpu

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
OTHERS = os.environ.get("BDKERNELS_TORCHES", "").split()
PYTHONS = [sys.executable, *OTHERS]


@needs_nvcc
def test_no_kernel_spills(cuda_library):
    report = (ROOT / "build" / cuda_library.stem / "resources.txt").read_text()
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    # Of kernels, and of functions of CUDA's own that they call, such as the power of a double.
    assert len(frames) == report.count("Function properties for") >= report.count("Compiling entry function") >= 20
    assert set(frames) == {("0", "0", "0")}


@needs_nvcc
def test_no_kernel_flushes_subnormals(cuda_library):
    """nvcc's default, which a flag could change; scores and ranks would then differ from those of a CPU. In the kernels of the
    losses and the update some are part of how a division is rounded, which scales its numbers first.
    """
    pytest.importorskip("triton", reason="its disassembler")
    from compiled import in_library

    kernels = in_library(cuda_library)
    dividing = "step_kernel", "update_kernel", "finish_kernel"
    deciding = [kernel for kernel in kernels if not kernel.name.startswith(dividing)]
    assert len(deciding) >= 15
    assert {kernel.name: dict(kernel.flushing()) for kernel in deciding if kernel.flushing()} == {}


STAGES = {
    "score",
    "score_block",
    "count_above",
    "count_above_block",
    "propose",
    "accept",
    "topk",
    "fused_gradient",
    "fused_step",
}


def seen_by(python: str, cuda_library: Path) -> dict[str, Any]:
    """What other_torch.py says there; in a process of its own, since simulation and library have the same names."""
    env = os.environ | {
        "BDKERNELS_LIBRARY": str(cpu.LIBRARY),
        "BDKERNELS_CUDA_LIBRARY": str(cuda_library),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [python, str(ROOT / "tests/gpu/other_torch.py")]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    seen = json.loads(out.stdout.splitlines()[-1])
    print(f"torch {seen['torch']}: {seen}")
    return seen


def check_registered(seen: dict[str, Any], cuda_key: str) -> None:
    """Every stage for tensors of one kind alone, and what a library tells of itself for any."""
    for library, key, own in (("cpu", "CPU", {"isa"}), ("cuda", cuda_key, {"simulated", "topk_launches"})):
        found = {
            n.split("::")[1]: keys for n, keys in seen["registered"].items() if n.startswith(f"bdkernels_{library}:")
        }
        assert found.keys() >= STAGES | own
        assert all(keys == (["CompositeExplicitAutograd"] if name in own else [key]) for name, keys in found.items())


@needs_nvcc
@pytest.mark.parametrize("python", PYTHONS)
def test_the_one_binary_loads(python, cuda_library):
    """Beside a torch with CUDA or without one. And the C++ library computes there what it should."""
    seen = seen_by(python, cuda_library)
    assert seen["refused"] is None and seen["simulated"] is False
    check_registered(seen, "CUDA")
    assert seen["differences"] == {"cpu": {}}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_binding_of_cuda_computes(python, simulated_library):
    """That of the simulation, which is compiled as one binary too."""
    seen = seen_by(python, simulated_library)
    assert seen["simulated"] is True
    check_registered(seen, "CPU")
    assert seen["differences"] == {"cpu": {}, "cuda": {}}


@pytest.mark.skipif(bool(OTHERS), reason="BDKERNELS_TORCHES is set")
def test_other_torches():
    pytest.skip(
        "BDKERNELS_TORCHES is not set: interpreters, between blanks, with the oldest and the newest torch that are supported"
        " (make gpu-proof TORCHES=...)"
    )


def test_the_oldest_torch_is_named_in_one_way():
    """The ABI that the binaries are built for is that of the oldest release that the package asks for."""
    asked = re.search(r'"torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    abi = int(re.search(r'^ABI = "0x(\w{16})"', (ROOT / "setup.py").read_text(), re.M)[1], 16)
    assert (abi >> 56, abi >> 48 & 0xFF, abi & (1 << 48) - 1) == (int(asked[1]), int(asked[2]), 0)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_it_is_no_backend_of_a_torch_without_cuda(tmp_path, monkeypatch):
    from bdkernels.backends import cuda

    (tmp_path / "lib.so").write_bytes(b"")
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.delenv("BDKERNELS_CUDA_LIBRARY", raising=False)
    assert cuda.load() == "this torch is a build without CUDA"
