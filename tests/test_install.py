"""Installing: with a compiler, without one, and strictly. Each builds a wheel from a copy of the sources, as pip does."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "bdkernels/lib/libbdkernels_cpu.so"
OBJECTS = Path("build", "libbdkernels_cpu")
pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools >= 77")


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of what is installed, with nothing built."""
    source = tmp_path / "source"
    source.mkdir()
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "bdkernels", "python"):
        if (ROOT / part).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
            shutil.copytree(ROOT / part, source / part, ignore=skip)
        else:
            shutil.copy(ROOT / part, source / part)
    return source


def run(source: Path, *command: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=source, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def build(source: Path, **env: str) -> tuple[subprocess.CompletedProcess, Path | None]:
    """pip wheel; returns the process and the wheel."""
    out = source.parent / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    options = ["-v", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = run(source, "-m", "pip", "wheel", *options, "-w", str(out), ".", **env)
    return done, next(out.glob("*.whl"), None) if out.exists() else None


def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def facts(wheel: Path) -> list[str]:
    """Lines of its file WHEEL, by which pip decides where it may go."""
    name = next(name for name in names(wheel) if name.endswith(".dist-info/WHEEL"))
    return zipfile.ZipFile(wheel).read(name).decode().splitlines()


def test_with_a_compiler(source, tmp_path):
    """From the sdist, which has all that is compiled; with the objects of this checkout, where they are of the same sources."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler on this machine")
    assert run(source, "setup.py", "-q", "sdist").returncode == 0
    with tarfile.open(next(source.glob("dist/*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    source = next((tmp_path / "sdist").iterdir())
    if (ROOT / OBJECTS).exists():
        shutil.copytree(ROOT / OBJECTS, source / OBJECTS)
    done, wheel = build(source, BDKERNELS_STRICT_BUILD="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (
        LIBRARY,
        "bidistill/cli/__init__.py",
        "bidistill/report/template.html",
        "bdkernels/py.typed",
        "bidistill/data/reader.py",
    ):
        assert name in names(wheel)
    assert wheel.name.startswith("bdkernels-") and "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert "Root-Is-Purelib: false" in facts(wheel)
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import bdkernels; print(bdkernels.__file__, bdkernels.backends.missing('cpu'))"
    used = run(tmp_path, "-c", code, PYTHONPATH=str(tmp_path / "installed"), BDKERNELS_LIBRARY="")
    assert used.stdout.split() == [str(tmp_path / "installed/bdkernels/__init__.py"), "None"], used.stderr
    other = run(source, "setup.py", "-q", "bdist_wheel", "--plat-name", "linux_z80")
    assert other.returncode != 0 and "--plat-name linux_z80: the library in this wheel is compiled for" in other.stderr


def no_compiler(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "CXX": ""}


def test_without_a_compiler(source, tmp_path):
    done, wheel = build(source, **no_compiler(tmp_path), BDKERNELS_STRICT_BUILD="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert LIBRARY not in names(wheel) and "bdkernels/functional.py" in names(wheel)
    assert "no C++20 compiler found" in done.stdout + done.stderr
    assert "this wheel has no C++ backend and is tagged py3-none-any" in done.stdout + done.stderr
    assert wheel.name.endswith("-py3-none-any.whl")  # which pip says, also without -v
    assert {"Root-Is-Purelib: true", "Tag: py3-none-any"} <= set(facts(wheel))


def test_a_wheel_has_what_the_sources_have(source):
    """And nothing of the builds before: no module that is gone since, no library, whose platform may be another."""
    gone = source / "bdkernels" / "gone.py"
    gone.touch()
    done, wheel = build(source, BDKERNELS_BUILD="0")
    assert "bdkernels/gone.py" in names(wheel), done.stdout + done.stderr
    gone.unlink()
    stale = [source, *source.glob("build/lib*"), *source.glob("build/bdist*/wheel")]
    (wheel_folder,) = source.glob("build/bdist*")
    stale.append(wheel_folder / "wheel")  # of a build that was ended
    assert len(stale) >= 3
    for folder in stale:
        (folder / LIBRARY).parent.mkdir(parents=True, exist_ok=True)
        (folder / LIBRARY).write_bytes(b"of another platform")
    done, wheel = build(source, BDKERNELS_BUILD="0")
    files = {str(p.relative_to(source)) for p in source.glob("bdkernels/**/*.py")}
    files |= {str(p.relative_to(source / "python")) for p in source.glob("python/bidistill/**/*.py")}
    assert {name for name in names(wheel) if name.endswith((".py", ".so"))} == files
    assert wheel.name.endswith("-py3-none-any.whl")
    assert (source / LIBRARY).exists()  # that of the checkout stays where it is


def test_objects_are_made_again_where_anything_has_changed(source, tmp_path):
    """A compiler that counts: once more for another source, header or flag, and not for nothing."""
    log, cxx = tmp_path / "log", tmp_path / "cxx"
    cxx.write_text(
        f"""#!{sys.executable}
import pathlib, sys
words = sys.argv
if "-MF" in words:
    source = words[words.index("-c") + 1]
    pathlib.Path(words[words.index("-MF") + 1]).write_text("x.o: " + source + " csrc/core/score.h")
    print(source, file=open({str(log)!r}, "a"))
if "-o" in words:
    pathlib.Path(words[words.index("-o") + 1]).touch()
"""
    )
    cxx.chmod(0o755)

    def compiled(**env: str) -> list[str]:
        log.write_text("")
        done = run(source, "setup.py", "-q", "build_kernels", CXX=str(cxx), BDKERNELS_STRICT_BUILD="1", **env)
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    environment = {"BDKERNELS_LIBRARY": "", "BDKERNELS_CXXFLAGS": "", "BDKERNELS_BUILD_CUDA": "0"}
    every = compiled(**environment)
    assert len(every) > 10 and compiled(**environment) == []
    one = source / "csrc/cpu/score.cpp"
    one.write_text(one.read_text() + "// changed\n")
    os.utime(one, (0, 0))  # its time says nothing
    assert compiled(**environment) == ["csrc/cpu/score.cpp"]
    header = source / "csrc/core/score.h"
    header.write_text(header.read_text() + "// changed\n")
    assert sorted(compiled(**environment)) == sorted(every)
    assert sorted(compiled(**environment | {"BDKERNELS_CXXFLAGS": "-DOTHER"})) == sorted(every)


def test_strict_build_fails_loudly(source, tmp_path):
    done, wheel = build(source, **no_compiler(tmp_path), BDKERNELS_STRICT_BUILD="1")
    assert done.returncode != 0
    assert wheel is None
    assert "no C++20 compiler found" in done.stdout + done.stderr
