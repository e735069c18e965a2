"""nvcc takes the CUDA sources, with every warning an error, and no kernel spills or keeps an array in local memory."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from simulation import ROOT

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")


@needs_nvcc
def test_no_kernel_spills(cuda_library):
    report = (ROOT / "build" / cuda_library.stem / "resources.txt").read_text()
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) == report.count("Compiling entry function") >= 20
    assert set(frames) == {("0", "0", "0")}


@needs_nvcc
def test_the_library_loads_beside_a_torch_without_cuda(cuda_library):
    """And has operators for CUDA tensors alone. In a process of its own: the simulation has the same names."""
    code = (
        f"import torch; torch.ops.load_library({str(cuda_library)!r}); print(torch.ops.bdkernels_cuda.simulated());"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key;"
        "print([has('bdkernels_cuda::count_above', key) for key in ('CUDA', 'CPU')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["False", "[True, False]"]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_it_is_no_backend_of_a_torch_without_cuda(tmp_path, monkeypatch):
    from bdkernels import cuda

    (tmp_path / "lib.so").write_bytes(b"")
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.delenv("BDKERNELS_CUDA_LIBRARY", raising=False)
    assert cuda.load() == "this torch is a build without CUDA"
