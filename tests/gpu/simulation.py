"""Builds the CUDA sources for the CPU."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = ROOT / "build" / "simulation" / "libbdkernels_cusim.so"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; tests run in several."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_simulation(out: Path = SIMULATED, *flags: str, root: Path = ROOT, kernels: Iterable[str] = ()) -> Path:
    """The CUDA sources compiled for the CPU, with further flags of the compiler, and with some for the kernels alone."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler on this machine")
    command = [sys.executable, "setup.py", "-q", "build_simulation", "--out", str(out)]
    with locked(out.parent):
        further = {"BDKERNELS_CXXFLAGS": " ".join(flags), "BDKERNELS_KERNEL_FLAGS": " ".join(kernels)}
        subprocess.run(command, cwd=root, check=True, env={**os.environ, **further})
    return out
