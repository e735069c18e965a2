"""Builds the CUDA sources for the CPU."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = ROOT / "build" / "simulation" / "libbdkernels_cusim.so"


def build_simulation(out: Path = SIMULATED, *flags: str, root: Path = ROOT) -> Path:
    """The CUDA sources compiled for the CPU, with further flags of the compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler on this machine")
    command = [sys.executable, "setup.py", "-q", "build_simulation", "--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, cwd=root, check=True, env={**os.environ, "BDKERNELS_CXXFLAGS": " ".join(flags)})
    return out
