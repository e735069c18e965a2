"""Builds the C++ backend against the stable ABI of whatever torch is installed; everything else is in pyproject.toml.

Three tiers: without a compiler (or without torch at build time) the package installs with the reference backend alone; with
both, libbdkernels_cpu is built; the CUDA library joins where nvcc is found (csrc/cuda, none yet). A build that fails warns and
goes on; BDKERNELS_STRICT_BUILD=1 makes it fatal, and BDKERNELS_BUILD=0 skips it. A build in place goes where BDKERNELS_LIBRARY
says, with the further flags of BDKERNELS_CXXFLAGS.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
LIBRARY = Path("bdkernels", "lib", "libbdkernels_cpu.so")
ABI = "0x020a000000000000"  # torch 2.10, the oldest that the binary shall load on
X86 = platform.machine().lower() in ("x86_64", "amd64")
# GCC 12 warns of its own AVX-512 headers (GCC bug 105593).
ISA_FLAGS = {
    "avx512": ["-mavx512f", "-mfma", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
    "avx2": ["-mavx2", "-mfma"],
}


def torch_folder() -> Path:
    """Where the torch of the target interpreter lies: `-I` looks past the isolated environment that pip builds in."""
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    for flags in (["-I"], []):
        out = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
        if out.stdout.strip():
            return Path(out.stdout.strip())
    raise RuntimeError(
        "torch is not installed here yet; install torch, then bdkernels again (--force-reinstall --no-deps)"
    )


def compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise RuntimeError("no C++20 compiler found (CXX, g++, clang++, c++)")


def compile_library(out: Path) -> None:
    """Compile csrc/cpu and its binding into one shared library, moved into place only when it is whole."""
    torch, cxx = torch_folder(), compiler()
    work = ROOT / "build" / out.stem
    work.mkdir(parents=True, exist_ok=True)
    flags = [
        "-std=c++20",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
    ]
    flags += os.environ.get("BDKERNELS_CXXFLAGS", "").split()
    includes = ["-isystem", str(torch / "include"), "-isystem", str(torch / "include/torch/csrc/api/include")]
    jobs = []
    for source in sorted(
        [p for part in ("cpu/*", "cpu/simd/*", "binding/cpu_*") for p in ROOT.glob(f"csrc/{part}.cpp")]
    ):
        if source.stem in ISA_FLAGS and not X86:
            continue
        target = work / (source.relative_to(ROOT / "csrc").as_posix().replace("/", "_") + ".o")
        extra = ISA_FLAGS.get(source.stem, []) + (["-DBDKERNELS_X86"] if X86 else [])
        if source.parent.name == "binding":
            extra += [f"-DTORCH_TARGET_VERSION={ABI}", *includes]
        jobs.append(([cxx, *flags, *extra, "-c", str(source), "-o", str(target)], target))
    running = [(subprocess.Popen(command), command) for command, _ in jobs]
    failed = [command for process, command in running if process.wait() != 0]
    if failed:
        raise RuntimeError("compiling failed: " + " ".join(failed[0]))
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_suffix(".tmp")
    link = [cxx, "-shared", "-o", str(whole), *(str(t) for _, t in jobs), f"-L{torch / 'lib'}", "-ltorch_cpu"]
    if subprocess.run(link, check=False).returncode != 0:
        raise RuntimeError("linking failed: " + " ".join(link))
    os.replace(whole, out)


class BuildKernels(Command):
    """`build` runs this; `python setup.py build_kernels` builds in place."""

    description = "compile the C++ backend"
    user_options = [("inplace", "i", "put the library into the source tree")]  # noqa: RUF012

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.inplace = True
        self.editable_mode = False

    def finalize_options(self) -> None:
        if self.distribution.have_run.get("build") or "build" in self.distribution.command_obj:
            self.inplace = False
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        if os.environ.get("BDKERNELS_BUILD", "1") == "0":
            print("bdkernels: BDKERNELS_BUILD=0, no C++ backend built")
            return
        in_place = self.inplace or self.editable_mode
        try:
            asked = Path(os.environ.get("BDKERNELS_LIBRARY") or ROOT / LIBRARY).resolve()
            compile_library(asked if in_place else Path(self.build_lib) / LIBRARY)
        except (OSError, RuntimeError) as error:
            if os.environ.get("BDKERNELS_STRICT_BUILD", "0") == "1":
                raise
            print(f"bdkernels: warning: no C++ backend, the reference will serve: {error}", file=sys.stderr)

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cpp")]

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode or not self.build_lib else [str(Path(self.build_lib) / LIBRARY)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_kernels", None)]  # noqa: RUF012


class Wheel(bdist_wheel):
    """One wheel a platform: the library links to no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build": Build, "build_kernels": BuildKernels, "bdist_wheel": Wheel}, distclass=BinaryDistribution)
