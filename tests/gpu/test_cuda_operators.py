"""The operators' own tests, on the CUDA kernels."""

import os
import subprocess
import sys

from simulation import ROOT

FILES = ("score", "rank", "sample", "topk", "loss", "update", "errors", "fuzz")
# Those that take a backend, and the fuzzing of its operators; not what is asked of the threads of a CPU.
TESTS = "(cuda or (fuzz and (score or rank or count or topk or step))) and not threads"


def test_operators(simulated_library):
    env = {**os.environ, "BDKERNELS_CUDA_LIBRARY": str(simulated_library), "BDKERNELS_TEST_BACKENDS": "cuda"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", TESTS]
    files = [f"tests/test_{name}.py" for name in FILES]
    out = subprocess.run([*command, *files], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout[-5000:]
    assert " passed" in out.stdout and "backend cuda" not in out.stdout
