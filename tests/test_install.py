"""Installing: with a compiler, without one, and strictly. Each builds a wheel from a copy of the sources, as pip does."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "bdkernels/lib/libbdkernels_cpu.so"
pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools >= 77")


def build(tmp_path: Path, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """pip wheel in a copy; returns the process and the names inside of the wheel."""
    source = tmp_path / "source"
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "bdkernels", "python"):
        if (ROOT / part).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
            shutil.copytree(ROOT / part, source / part, ignore=skip)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, source / part)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, env={**os.environ, **env})
    wheels = list(tmp_path.glob("*.whl"))
    return done, zipfile.ZipFile(wheels[0]).namelist() if wheels else []


def test_with_a_compiler(tmp_path):
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler on this machine")
    done, names = build(tmp_path, BDKERNELS_STRICT_BUILD="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert LIBRARY in names
    for name in (
        "bidistill/cli/__init__.py",
        "bidistill/report/template.html",
        "bdkernels/py.typed",
        "bidistill/data/read.py",
    ):
        assert name in names
    assert next(tmp_path.glob("*.whl")).name.startswith("bdkernels-")
    assert "-py3-none-" in next(tmp_path.glob("*.whl")).name


def no_compiler(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "CXX": ""}


def test_without_a_compiler(tmp_path):
    done, names = build(tmp_path, **no_compiler(tmp_path), BDKERNELS_STRICT_BUILD="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert LIBRARY not in names
    assert "bdkernels/functional.py" in names
    assert "no C++20 compiler found" in done.stdout + done.stderr


def test_strict_build_fails_loudly(tmp_path):
    done, names = build(tmp_path, **no_compiler(tmp_path), BDKERNELS_STRICT_BUILD="1")
    assert done.returncode != 0
    assert not names
    assert "no C++20 compiler found" in done.stdout + done.stderr
