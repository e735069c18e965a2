"""The operators' own tests, on the CUDA kernels."""

from apart import python
from simulation import SIMULATED, build_simulation

FILES = ("score", "rank", "sample", "topk", "scorers", "loss", "update", "errors", "fuzz")
# Those that take a backend, and the fuzzing of its operators; not what is asked of the threads of a CPU.
TESTS = "(cuda or (fuzz and (score or rank or count or topk or step))) and not threads"


def test_operators():
    build_simulation()
    run = python(
        *(
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-k",
            TESTS,
            *(f"tests/test_{name}.py" for name in FILES),
            "--hypothesis-seed",
            "0",
        ),
        FUZZ_EXAMPLES="100",  # the same ones every time, of those that the CPU's backends are given 300 of
        BDKERNELS_CUDA_LIBRARY=str(SIMULATED),
        BDKERNELS_TEST_BACKENDS="cuda",
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout and "backend cuda" not in run.stdout
