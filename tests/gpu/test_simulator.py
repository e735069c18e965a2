"""The simulated GPU notices kernels that would hang, or compute anything, on a real one."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "shim"
FAULTS = {
    "right": "",
    "lane_outside_its_mask": "a warp collective by a lane that is not in its mask",
    "reads_outside_the_mask": "a shuffle reads a lane outside of the mask",
    "some_lanes_never_come": "is not reached by every thread",
    "different_collectives": "lanes of one mask meet at different collectives",
    "different_barriers": "threads of one block wait at different barriers",
    "barrier_of_some": "a barrier after some threads of the block have returned",
    "right_copies": "",
    "copy_that_nobody_waits_for": "an asynchronous copy that nobody has waited for",
    "copy_that_is_not_aligned": "an asynchronous copy that is not aligned",
    "too_much_shared": "too much shared memory",
    "too_many_threads": "invalid launch configuration",
    "too_high_a_grid": "invalid launch configuration",
}


# And what the sanitizers see by its help.
SANITIZED = {
    ("address", "right_copies"): "",
    ("address", "copy_that_is_read_before_it_is_there"): "use-after-poison",
    ("thread", "right_copies"): "",
    ("thread", "copy_that_others_read_without_a_barrier"): "data race",
    ("thread", "copy_to_where_others_still_read"): "data race",
    ("thread", "write_between_two_barriers"): "data race",
    ("thread", "write_between_two_barriers_of_a_warp"): "data race",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compiles the faults, with further flags."""
    cxx = os.environ.get("CXX", "g++")
    if shutil.which(cxx) is None:
        pytest.skip(f"no {cxx} on this machine")

    @cache
    def compiled(*flags: str) -> Path:
        out = tmp_path_factory.mktemp("shim") / "faults"
        command = [cxx, "-std=c++20", "-O1", "-Wall", "-Wextra", *flags, str(SHIM / "faults.cpp"), "-o", str(out)]
        subprocess.run(command, check=True)
        return out

    return compiled


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [None, "1"])
def test_faults_are_noticed(program, fault, seed):
    env = os.environ if seed is None else {**os.environ, "CUSIM_SEED": seed}
    out = subprocess.run([program(), fault], capture_output=True, text=True, check=False, env=env)
    assert out.returncode == (1 if FAULTS[fault] else 0)
    assert FAULTS[fault] in out.stderr


@pytest.mark.parametrize(("sanitizer", "fault"), SANITIZED)
def test_faults_are_noticed_by_sanitizers(program, sanitizer, fault):
    fixed = ["setarch", "-R"] if sanitizer == "thread" else []  # addresses, which it needs so
    if fixed and shutil.which("setarch") is None:
        pytest.skip("no setarch on this machine")
    command = [*fixed, program(f"-fsanitize={sanitizer}", "-g"), fault]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    says = SANITIZED[sanitizer, fault]
    assert (out.returncode != 0) == bool(says), out.stderr
    assert says in out.stderr
