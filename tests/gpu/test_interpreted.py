"""Every Triton kernel in the strict interpreter (`interpreter.py`), in a process of its own: kernels are decorated once."""

from pathlib import Path

import pytest
from elsewhere import Job

KERNELS = Job(
    *("-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / "interpreted")),
    env={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    needs=("triton",),
)


def test_triton_kernels_in_the_interpreter():
    if KERNELS.missing():
        pytest.skip("triton is not installed")
    said = KERNELS.wait().said
    print(said[-3000:])
    assert KERNELS.returncode == 0, said[-12000:]


test_triton_kernels_in_the_interpreter.job = KERNELS
