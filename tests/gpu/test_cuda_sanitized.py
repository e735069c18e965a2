"""The tests of the CUDA kernels again, on their simulation under sanitizers; and faults planted in a kernel, which must be found.

Torch's allocator goes through the sanitizers' runtimes, so a kernel's step past the end of any tensor is seen, and so is one past
the end of a shared array; threads of a block are ordered by barriers and blocks not at all, so a missing barrier is a data race.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import ROOT, build_simulation

HERE = Path(__file__).parent
COMMON = ["-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
FLAGS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr", *COMMON],
    "thread": ["-fsanitize=thread", *COMMON],
    "none": [],  # the simulator's own checks
}
RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",), "none": ()}
# Called what in the report: with which sanitizer, and what in which source becomes what.
FAULTS = {
    "heap-buffer-overflow": ("address", "score.cu", "if (pair < pairs) out[pair] = sum", "out[pair] = sum"),
    "use-after-poison": ("address", "score.cu", "tile[r * (kWarp + 1) + lane] =", "factors[(r + lane) * 129] ="),
    "data race": ("thread", "rank.cu", "bins[i] = 0;\n    }\n    __syncthreads();", "bins[i] = 0;\n    }"),
    "threads of the block have returned": (
        "none",
        "rank.cu",
        "void flush() const {\n    __syncthreads();",
        "void flush() const {\n    if (threadIdx.x < 40) __syncthreads();",
    ),
}
CALL = """
import torch, bdkernels as bd
ids = torch.zeros(3, 2, dtype=torch.int64)
bd.score(bd.Factors(torch.ones(3, 32), torch.ones(40, 32)), ids, backend="cuda")
bd.count_above_block(torch.ones(3, 40), torch.zeros(3, 2), ids, backend="cuda")
"""


def run(sanitizer: str, library: Path, *command: str) -> subprocess.CompletedProcess:
    """A Python with the sanitizer's runtime under it, and the library in it."""
    cxx = os.environ.get("CXX", "g++")
    found = [
        subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (*RUNTIMES[sanitizer], "libstdc++.so.6")
    ]
    env = {
        **os.environ,
        "BDKERNELS_CUDA_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch leave memory to the system at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    # The thread sanitizer cannot place its shadow memory where addresses are too random.
    fixed = ["setarch", "-R"] if sanitizer == "thread" else []
    return subprocess.run(
        [*fixed, sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def build(sanitizer: str) -> Path:
    if sanitizer == "thread" and shutil.which("setarch") is None:
        pytest.skip("no setarch on this machine")
    folder = "simulation" if sanitizer == "none" else f"simulation-{sanitizer}"
    return build_simulation(ROOT / "build" / folder / "libbdkernels_cusim.so", *FLAGS[sanitizer])


# The thread sanitizer is slow, and the dtype changes nothing of who writes where.
@pytest.mark.parametrize(("sanitizer", "which"), [("address", ""), ("thread", "not float16")])
def test_kernels_are_clean(sanitizer, which):
    tests = [
        str(p)
        for p in HERE.glob("test_cuda_*.py")
        if p.stem not in ("test_cuda_sanitized", "test_cuda_operators", "test_cuda_build")
    ]
    # A report ends the process: -s shows it.
    out = run(
        sanitizer, build(sanitizer), "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", "-k", which, *tests
    )
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-6000:]
    assert " passed" in out.stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(tmp_path, fault):
    """In a copy of the sources, of which one has to be compiled again."""
    sanitizer, name, line, wrong = FAULTS[fault]
    objects = build(sanitizer).parent
    for part in ("csrc", "tests/gpu/shim"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy2(ROOT / "setup.py", tmp_path)
    shutil.copytree(objects, tmp_path / "build")
    source = tmp_path / "csrc/cuda" / name
    text = source.read_text()
    assert text.count(line) == 1
    source.write_text(text.replace(line, wrong))
    library = build_simulation(tmp_path / "build/libbdkernels_cusim.so", *FLAGS[sanitizer], "-O0", root=tmp_path)
    out = run(sanitizer, library, "-c", CALL)
    assert out.returncode != 0
    assert fault in out.stderr
