"""Builds the C++ and CUDA backends against the stable ABI of whatever torch is installed; the rest is in pyproject.toml.

Three tiers: without a compiler (or without torch at build time) the package installs with the reference backend alone, and its
wheel is one for any platform (py3-none-any); with both, libbdkernels_cpu is built; and libbdkernels_cuda too where nvcc is found
and torch has CUDA. A torch without CUDA could not use it and the build takes minutes, so there it is built on request only:
BDKERNELS_BUILD_CUDA=1; BDKERNELS_BUILD_CUDA=0 skips it everywhere. A build that fails warns and goes on;
BDKERNELS_STRICT_BUILD=1 makes it fatal, and BDKERNELS_BUILD=0 skips all.

In place, the C++ library goes where BDKERNELS_LIBRARY says, with the further flags of BDKERNELS_CXXFLAGS; BDKERNELS_CUDA_ARCHS
names other targets than those of CUDA_ARCHS ("80" or "80 90"). build/libbdkernels_cuda/resources.txt tells what each kernel takes
of them. `build_cuda` builds it alone; `build_simulation` compiles the CUDA sources for the CPU, for tests, where kernels alone
take the further flags of BDKERNELS_KERNEL_FLAGS.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
LIBRARY = Path("bdkernels", "lib", "libbdkernels_cpu.so")
CUDA_LIBRARY = LIBRARY.with_name("libbdkernels_cuda.so")
SIMULATION = Path("build", "simulation", "libbdkernels_cusim.so")
ABI = "0x020a000000000000"  # torch 2.10, the oldest that the binary shall load on
CUDA_ARCHS = "80 90 100"  # A100, H100, B200; and the assembly of the last for what comes after
CXX_FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# GCC 12 warns of its own AVX-512 headers (GCC bug 105593).
ISA_FLAGS = {
    "avx512": ["-mavx512f", "-mfma", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
    "avx2": ["-mavx2", "-mfma"],
}


@cache
def torch_folder() -> Path:
    """Where the torch of the target interpreter lies: `-I` looks past the isolated environment that pip builds in."""
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    for flags in (["-I"], []):
        out = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
        if out.stdout.strip():
            return Path(out.stdout.strip())
    raise RuntimeError(
        "torch is not installed here yet; install torch, then bdkernels again (--force-reinstall --no-deps --no-cache-dir)"
    )


def compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise RuntimeError("no C++20 compiler found (CXX, g++, clang++, c++)")


def torch_flags() -> list[str]:
    torch = torch_folder()
    includes = ["-isystem", str(torch / "include"), "-isystem", str(torch / "include/torch/csrc/api/include")]
    return [f"-DTORCH_TARGET_VERSION={ABI}", *includes]


def further_flags(variable: str = "BDKERNELS_CXXFLAGS") -> list[str]:
    return os.environ.get(variable, "").split()


@cache
def version_of(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout


def identity(command: list[str], needs: Path) -> str | None:
    """What an object is made from: compiler, command, torch, and each file that the compiler has listed; None if unknown.

    The command names no absolute path of this tree, so that objects may go with a copy of it.
    """
    if not needs.exists():
        return None
    files = [ROOT / name for name in needs.read_text().split(":", 1)[1].replace("\\\n", " ").split()]
    if not all(path.exists() for path in files):
        return None
    torch = (torch_folder() / "version.py").read_text() if any("torch" in word for word in command) else ""
    digest = hashlib.sha256("\n".join([version_of(command[0]), torch, *command]).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compile_all(commands: dict[Path, list[str]]) -> dict[Path, str]:
    """Run the compilers, one a processor, each for the object that it is listed under; returns what each said.

    An object that is made from the same as before is not made again.
    """

    def run(target: Path) -> str:
        record, needs = target.with_suffix(".json"), target.with_suffix(".d")
        if target.exists() and record.exists():
            known = json.loads(record.read_text())
            if known["identity"] == identity(commands[target], needs):
                return known["said"]
        record.unlink(missing_ok=True)
        command = [*commands[target], "-MMD", "-MF", str(needs), "-o", str(target)]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if not line.startswith("ptxas info")]
            raise RuntimeError("\n".join(["compiling failed: " + " ".join(command), *said]))
        if "warning" in done.stderr:
            print(done.stderr, file=sys.stderr)
        record.write_text(json.dumps({"identity": identity(commands[target], needs), "said": done.stderr}))
        return done.stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(commands, pool.map(run, commands), strict=True))


def link(linker: list[str], objects: Iterable[Path], out: Path) -> None:
    """Into one shared library, moved into place only when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_suffix(".tmp")
    torch = [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
    command = [*linker, "-shared", "-o", str(whole), *map(str, objects), *torch]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError("linking failed: " + " ".join(command))
    os.replace(whole, out)


def sources(*patterns: str) -> list[Path]:
    return sorted(p.relative_to(ROOT) for pattern in patterns for p in ROOT.glob(f"csrc/{pattern}"))


def object_of(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (source.relative_to("csrc").as_posix().replace("/", "_") + ".o")


def compile_library(out: Path) -> None:
    """csrc/cpu and its binding."""
    flags = [*CXX_FLAGS, "-O3", "-fno-math-errno", *further_flags()]
    commands = {}
    for source in sources("cpu/*.cpp", "cpu/simd/*.cpp", "binding/cpu_*.cpp"):
        if source.stem in ISA_FLAGS and not X86:
            continue
        extra = ISA_FLAGS.get(source.stem, []) + (["-DBDKERNELS_X86"] if X86 else [])
        if source.parent.name == "binding":
            extra += torch_flags()
        commands[object_of(source, ROOT / "build" / out.stem)] = [compiler(), *flags, *extra, "-c", str(source)]
    compile_all(commands)
    link([compiler()], commands, out)


def compile_cuda(out: Path) -> None:
    """csrc/cuda by nvcc, for every target in one object each, and its binding by the C++ compiler."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("no nvcc found")
    archs = os.environ.get("BDKERNELS_CUDA_ARCHS", CUDA_ARCHS).split()
    targets = [flag for a in archs for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    targets += ["-gencode", f"arch=compute_{archs[-1]},code=compute_{archs[-1]}"]  # for GPUs that are yet to come
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror"]
    cuda = [nvcc, "-std=c++20", "-O3", "-lineinfo", "-Xptxas", "-v,-warn-spills", *strict, *targets]
    work = ROOT / "build" / out.stem
    kernels = {object_of(source, work): [*cuda, "-c", str(source)] for source in sources("cuda/*.cu")}
    binding = [compiler(), *CXX_FLAGS, "-O2", *torch_flags(), "-c"]
    bindings = {object_of(source, work): [*binding, str(source)] for source in sources("binding/cuda_*.cpp")}
    said = compile_all({**kernels, **bindings})
    (work / "resources.txt").write_text("".join(said[target] for target in kernels))
    # The CUDA runtime is inside of the library, and nobody sees its symbols.
    link([nvcc, "--cudart", "static", "-Xlinker", "--exclude-libs,ALL"], [*kernels, *bindings], out)


def compile_cuda_if_wanted(out: Path) -> None:
    """Asked for, or of use and possible; nobody asks whether this machine has a GPU."""
    asked = os.environ.get("BDKERNELS_BUILD_CUDA")
    usable = shutil.which("nvcc") is not None and (torch_folder() / "lib/libtorch_cuda.so").exists()
    if asked != "0" and (asked or usable):
        compile_cuda(out)


def compile_simulation(out: Path) -> None:
    """csrc/cuda and its binding by the C++ compiler, for the simulator of tests/gpu/shim; the objects come beside it."""
    flags = [*CXX_FLAGS, "-O2", "-g1", "-DBDKERNELS_SIMULATION", "-Itests/gpu/shim", *further_flags()]
    commands = {}
    for source in sources("cuda/*.cu", "binding/cuda_*.cpp"):
        own = torch_flags() if source.parent.name == "binding" else further_flags("BDKERNELS_KERNEL_FLAGS")
        commands[object_of(source, out.parent)] = [compiler(), *flags, *own, "-x", "c++", "-c", str(source)]
    compile_all(commands)
    if not out.exists() or max(p.stat().st_mtime for p in commands) > out.stat().st_mtime:
        link([compiler(), *further_flags()], commands, out)


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
        folder = ROOT if in_place else Path(self.build_lib)
        asked = os.environ.get("BDKERNELS_LIBRARY") if in_place else None
        library = Path(asked).resolve() if asked else folder / LIBRARY
        self.attempt(compile_library, library, "no C++ backend, the reference will serve")
        if not asked:
            self.attempt(compile_cuda_if_wanted, folder / CUDA_LIBRARY, "no CUDA backend")

    def attempt(self, compile_it: Callable[[Path], None], out: Path, without: str) -> None:
        try:
            compile_it(out)
        except (OSError, RuntimeError) as error:
            if os.environ.get("BDKERNELS_STRICT_BUILD", "0") == "1":
                raise
            print(f"bdkernels: warning: {without}: {error}", file=sys.stderr)

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cpp", ".cu")]

    def get_outputs(self) -> list[str]:
        if self.editable_mode or not self.build_lib:
            return []
        paths = [Path(self.build_lib) / library for library in (LIBRARY, CUDA_LIBRARY)]
        return [str(path) for path in paths if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildCuda(Command):
    """`python setup.py build_cuda`: the CUDA backend alone, whether torch has CUDA or not."""

    description = "compile the CUDA backend"
    user_options = [("out=", "o", "the library")]  # noqa: RUF012
    library, compile_it = CUDA_LIBRARY, staticmethod(compile_cuda)

    def initialize_options(self) -> None:
        self.out = str(ROOT / self.library)

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        self.compile_it(Path(self.out).resolve())


class BuildSimulation(BuildCuda):
    """`python setup.py build_simulation`, for BDKERNELS_CUDA_LIBRARY; the objects come beside it."""

    description = "compile the CUDA backend for the CPU, to be tested without a GPU"
    library, compile_it = SIMULATION, staticmethod(compile_simulation)


class Build(build):
    """In an empty folder: what earlier builds have left there is not of this tree."""

    sub_commands = [*build.sub_commands, ("build_kernels", None)]  # noqa: RUF012

    def finalize_options(self) -> None:
        self.default = self.build_lib is None
        super().finalize_options()

    def run(self) -> None:
        if self.default:  # a folder that the caller has named may hold anything
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """One wheel a platform, since the library links to no Python; without a library, one wheel for all."""

    def finalize_options(self) -> None:
        self.default = self.bdist_dir is None
        super().finalize_options()

    def run(self) -> None:
        if self.default:
            shutil.rmtree(self.bdist_dir, ignore_errors=True)
        if not self.skip_build:
            self.run_command("build")
        folder = Path(self.get_finalized_command("build").build_lib)
        self.distribution.binary = any((folder / library).exists() for library in (LIBRARY, CUDA_LIBRARY))
        self.root_is_pure = not self.distribution.binary
        super().run()
        if self.root_is_pure:
            print(
                "bdkernels: warning: this wheel has no C++ backend and is tagged py3-none-any: the operators run in plain "
                "PyTorch, many times slower. To have the backend, install torch and a C++20 compiler, then build again.",
                file=sys.stderr,
            )

    def get_tag(self) -> tuple[str, str, str]:
        if self.root_is_pure:
            return "py3", "none", "any"
        machine = platform.machine().lower()
        name = super().get_tag()[2].replace("universal2", machine)  # the library is for one kind of processor
        if self.plat_name_supplied and not name.endswith(machine):
            raise RuntimeError(f"--plat-name {self.plat_name}: the library in this wheel is compiled for {machine}")
        return "py3", "none", name


class MaybeBinary(Distribution):
    """With a library in it or not, which the build finds out; until then it is taken to have one."""

    binary = True

    def has_ext_modules(self) -> bool:
        return self.binary


COMMANDS = {
    "build": Build,
    "build_kernels": BuildKernels,
    "build_cuda": BuildCuda,
    "build_simulation": BuildSimulation,
    "bdist_wheel": Wheel,
}
setup(cmdclass=COMMANDS, distclass=MaybeBinary)
