"""The CUDA kernels' own tests, and what compute-sanitizer is asked of them: for check.py and quick.py."""

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ON_THE_CPU = ("sanitized", "operators", "build")  # files named test_cuda_*.py that a GPU is of no use to
SANITIZERS = {  # tool: what it says where it finds nothing
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards",
    "synccheck": "ERROR SUMMARY: 0 errors",
}
SANITIZED = (
    "listed_items or own_items or live_rows or block_of or sizes or proposals or acceptance or test_step or test_update"
)


def kernel_tests() -> tuple[str, ...]:
    """Their files, as paths from the root."""
    names = sorted(path.stem for path in HERE.glob("test_cuda_*.py"))
    return tuple(f"tests/gpu/{name}.py" for name in names if name.removeprefix("test_cuda_") not in ON_THE_CPU)


def kernel_filter() -> tuple[str, ...]:
    """Options of compute-sanitizer to watch the kernels of this library alone: torch's are many, and not ours to judge."""
    try:
        out = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ()
    for option, value in (("--kernel-name", "kernel_substring=bdkernels"), ("--kernel-regex", "kns=bdkernels")):
        if re.search(rf"{option}\b(?!-)", out):
            return option, value
    return ()
