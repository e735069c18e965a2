"""Builds the CUDA sources for the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build_simulation(out: Path, *flags: str, root: Path = ROOT) -> Path:
    """The CUDA sources compiled for the CPU, with further flags of the compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler on this machine")
    command = [sys.executable, "setup.py", "-q", "build_simulation", "--out", str(out)]
    subprocess.run(command, cwd=root, check=True, env={**os.environ, "BDKERNELS_CXXFLAGS": " ".join(flags)})
    return out
