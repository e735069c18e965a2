"""Every Triton kernel in the strict interpreter (`interpreter.py`), in a process of its own: kernels are decorated once."""

from pathlib import Path

import pytest
from apart import python


def test_triton_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    tests = Path(__file__).parent / "interpreted"
    run = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-12000:]
