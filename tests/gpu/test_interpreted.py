"""Every Triton kernel in the strict interpreter (`interpreter.py`), in a process of its own: kernels are decorated once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_triton_kernels_in_the_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
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
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-10000:] + run.stderr[-2000:]
