"""The C++ backend under sanitizers: `make sanitize`, and a smaller round of it, in CI, `make sanitize-quick`.

1. Address and UndefinedBehaviour: the library is built into build/sanitize with both, their runtimes are preloaded under the
   ordinary Python, and the operators' tests run on it. Torch's allocator goes through the runtime, so a kernel's step past the
   end of any tensor is seen. Any report ends the process.
2. Thread: torch's pool cannot be watched (see threads.cpp), so the torch-free stages run on plain threads.

Every sanitizer first has to report a planted fault, so that silence means something.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
CXX = os.environ.get("CXX", "g++")
COMMON = ["-g1", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# vptr wants run-time types that the stable ABI's headers hide; _GLIBCXX_ASSERTIONS checks vector indices and std::clamp.
MEMORY = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr", "-D_GLIBCXX_ASSERTIONS", *COMMON]
THREAD = ["-fsanitize=thread", *COMMON]
TESTS = (
    "score",
    "rank",
    "topk",
    "sample",
    "subset",
    "loss",
    "update",
    "errors",
    "fuzz",
    "sample_distribution",
    "contract",
)
QUICK = ("score", "rank", "topk", "errors")

# Called what in the report: the binding trusts bdkernels.ops to have checked the arguments, so calling it directly is a fault.
FAULTS = {
    "heap-buffer-overflow": "score(f32(1, 2), f32(3, 2), f32(0), torch.tensor([[3]]))",
    "signed integer overflow": "propose(0, 0, torch.tensor([0]), -(2**63), 2**63 - 1, 1, none, none)",
}
FAULT = """
import torch, bdkernels
f32, none = torch.ones, torch.empty(0, dtype=torch.int64)
torch.ops.bdkernels_cpu."""


def runtime(name: str) -> str:
    return subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def say(line: str) -> None:
    print(f"sanitize: {line}", flush=True)


def memory(quick: bool) -> None:
    library = (
        BUILD / "libbdkernels_sanitized.so"
    )  # its objects lie in a folder of its name, apart from those of `build_kernels`
    env = {**os.environ, "BDKERNELS_LIBRARY": str(library), "BDKERNELS_STRICT_BUILD": "1"}
    build = [sys.executable, "setup.py", "-q", "build_kernels"]
    subprocess.run(build, check=True, cwd=ROOT, env={**env, "BDKERNELS_CXXFLAGS": " ".join(MEMORY)})
    # libstdc++ too: the runtime looks for its exception functions before Python has loaded it.
    env["LD_PRELOAD"] = " ".join(runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"))
    # Python and torch leave memory to the system at exit, which is no fault of the kernels.
    env["ASAN_OPTIONS"] = "detect_leaks=0:abort_on_error=1"
    env["UBSAN_OPTIONS"] = "print_stacktrace=1:abort_on_error=1"
    for name, call in FAULTS.items():
        out = subprocess.run(
            [sys.executable, "-c", FAULT + call], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if out.returncode == 0 or name not in out.stderr:
            sys.exit(f"sanitize: the planted {name} was not reported\n{out.stdout}{out.stderr}")
        say(f"the planted {name} is reported")
    tests = [f"tests/test_{name}.py" for name in (QUICK if quick else TESTS)]
    # A report kills the process: -s shows it, faulthandler the test. Steps that start a compiler and the reference are left out.
    options = ["-q", "-s", "-p", "no:cacheprovider", "-k", "not compile and not reference"]
    pytest = [sys.executable, "-X", "faulthandler", "-m", "pytest", *options]
    subprocess.run([*pytest, *tests], check=True, cwd=ROOT, env=env)
    if not quick:
        for isa in ("portable", "avx2"):
            say(f"instruction set {isa}")
            subprocess.run([*pytest, *tests[:2]], check=True, cwd=ROOT, env={**env, "BDKERNELS_ISA": isa})


def threads() -> None:
    """Without the instruction sets: they change arithmetic, not who writes where."""
    program = BUILD / "threads"
    sources = [*ROOT.glob("csrc/cpu/*.cpp"), *ROOT.glob("csrc/cpu/simd/*.cpp"), ROOT / "tests/sanitize/threads.cpp"]
    plain = [str(s) for s in sources if not s.stem.startswith("avx")]
    subprocess.run([CXX, "-std=c++20", *THREAD, f"-I{ROOT / 'csrc'}", *plain, "-o", str(program)], check=True)
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    planted = subprocess.run([program, "race"], capture_output=True, text=True, check=False, env=env)
    if planted.returncode == 0 or "data race" not in planted.stderr:
        sys.exit(f"sanitize: the planted data race was not reported\n{planted.stdout}{planted.stderr}")
    say("the planted data race is reported")
    subprocess.run([program], check=True, env=env)
    say("no race in the stages")


if __name__ == "__main__":
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:  # each leaves a core idle for most of its time
        for done in pool.submit(threads), pool.submit(memory, quick=sys.argv[1:] == ["quick"]):
            done.result()
    say("clean")
