"""The operators' own tests, on the CUDA kernels."""

from elsewhere import Job
from simulation import SIMULATED, build_simulation

FILES = ("score", "rank", "sample", "topk", "loss", "update", "errors", "fuzz")
# Those that take a backend, and the fuzzing of its operators; not what is asked of the threads of a CPU.
TESTS = "(cuda or (fuzz and (score or rank or count or topk or step))) and not threads"
OPERATORS = Job(
    *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", TESTS, *(f"tests/test_{name}.py" for name in FILES)),
    env={"BDKERNELS_CUDA_LIBRARY": str(SIMULATED), "BDKERNELS_TEST_BACKENDS": "cuda"},
    prepare=build_simulation,
)


def test_operators():
    said = OPERATORS.wait().said
    assert OPERATORS.returncode == 0, said[-5000:]
    assert " passed" in said and "backend cuda" not in said


test_operators.job = OPERATORS
