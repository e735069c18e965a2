"""Every Triton kernel in the strict interpreter (`interpreter.py`), in a process of its own: kernels are decorated once."""

import importlib.util

import pytest


def test_triton_kernels_in_the_interpreter(interpreted):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    out, _ = interpreted().communicate()
    print(out[-3000:])
    assert interpreted().returncode == 0, out[-12000:]
