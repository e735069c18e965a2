"""The tests of the CUDA kernels again, on their simulation under sanitizers; and faults planted in a kernel, which must be found.

Torch's allocator goes through the sanitizers' runtimes, so a kernel's step past the end of any tensor is seen, and so is one past
the end of a shared array; threads of a block are ordered by barriers and blocks not at all, so a missing barrier is a data race.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from planted import CALLS, FAULTS, NUMBERS, PREPARED, plant
from simulation import ROOT, build_simulation, locked

HERE = Path(__file__).parent
COMMON = ["-g1", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
FLAGS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr", *COMMON],
    "thread": ["-fsanitize=thread", *COMMON],
}
RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
# The parent has the kernels, and a child for each fault, which it plants.
PLANTED = """
import ctypes, json, sys
folder, library, code, calls = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
exec(code)
planted = ctypes.c_int.in_dll(ctypes.CDLL(library), "bdkernels_planted")
for number, call in calls.items():
    if (child := os.fork()) == 0:
        planted.value = int(number)
        os.dup2(os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT), 2)
        eval(call)
        print("no fault", file=sys.stderr, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def run(sanitizer: str, library: Path, *command: str, places: bool = True) -> subprocess.CompletedProcess:
    """A Python with the sanitizer's runtime under it, and the library in it. `places`: a report names functions and lines, for
    which it reads the symbols of all of torch, some seconds.
    """
    cxx = os.environ.get("CXX", "g++")
    found = [
        subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (*RUNTIMES[sanitizer], "libstdc++.so.6")
    ]
    env = {
        **os.environ,
        "BDKERNELS_CUDA_LIBRARY": str(library),
        "LD_PRELOAD": " ".join(found),
        # Python and torch leave memory to the system at exit.
        "ASAN_OPTIONS": f"detect_leaks=0:symbolize={places:d}",
        "UBSAN_OPTIONS": f"print_stacktrace={places:d}:symbolize={places:d}",
        "TSAN_OPTIONS": f"halt_on_error=1:symbolize={places:d}",
        "OMP_NUM_THREADS": "1",
    }
    # The thread sanitizer cannot place its shadow memory where addresses are too random.
    fixed = ["setarch", "-R"] if sanitizer == "thread" else []
    return subprocess.run(
        [*fixed, sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


@cache
def build(sanitizer: str) -> Path:
    """The simulation of a copy of the sources with every fault that the sanitizer finds, all of them switched off."""
    if sanitizer == "thread" and shutil.which("setarch") is None:
        pytest.skip("no setarch on this machine")
    root = ROOT / "build" / f"simulation-{sanitizer}"
    with locked(root):
        for part in ("csrc", "tests/gpu/shim"):
            shutil.rmtree(root / part, ignore_errors=True)
            shutil.copytree(ROOT / part, root / part)
        shutil.copy2(ROOT / "setup.py", root)
        kernels = plant(root, sanitizer)
        return build_simulation(root / "build/libbdkernels_cusim.so", *FLAGS[sanitizer], root=root, kernels=kernels)


# The thread sanitizer is slow, and the dtype changes nothing of who writes where. Adagrad writes a part of what Adam does.
SLOW = "not float16 and not fp16 and not adagrad"


@pytest.mark.parametrize(("sanitizer", "which"), [("address", ""), ("thread", SLOW)])
def test_kernels_are_clean(sanitizer, which):
    tests = [
        str(p)
        for p in HERE.glob("test_cuda_*.py")
        if p.stem not in ("test_cuda_sanitized", "test_cuda_operators", "test_cuda_build")
    ]
    # A report ends the process: -s shows it.
    out = run(
        sanitizer, build(sanitizer), "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", "-k", which, *tests
    )
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-6000:]
    assert " passed" in out.stdout


@cache
def planted_reports(sanitizer: str, folder: Path) -> dict[int, str]:
    """What is said of each planted fault, by its number; 0 is for none."""
    library = build(sanitizer)
    calls = {NUMBERS[name]: CALLS[fault.call] for name, fault in FAULTS.items() if fault.sanitizer == sanitizer}
    calls[0] = f"[{', '.join(CALLS.values())}]"
    arguments = str(folder), str(library), PREPARED, json.dumps(calls)
    out = run(sanitizer, library, "-c", PLANTED, *arguments, places=False)
    assert out.returncode == 0, out.stderr
    return {number: (folder / str(number)).read_text() for number in calls}


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("address", "thread")}
    return lambda sanitizer: planted_reports(sanitizer, folders[sanitizer])


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(reports, name):
    """In a copy of the sources that has them all, one at a time."""
    report = reports(FAULTS[name].sanitizer)[NUMBERS[name]]
    assert FAULTS[name].says in report and "no fault" not in report, report[-3000:]


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_nothing_is_found_where_nothing_is_planted(reports, sanitizer):
    assert reports(sanitizer)[0] == "no fault\n"
