"""The simulated GPU notices kernels that would hang, or compute anything, on a real one."""

import os
import shutil
import subprocess
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
    "too_much_shared": "too much shared memory",
    "too_many_threads": "invalid launch configuration",
    "too_high_a_grid": "invalid launch configuration",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    cxx = os.environ.get("CXX", "g++")
    if shutil.which(cxx) is None:
        pytest.skip(f"no {cxx} on this machine")
    out = tmp_path_factory.mktemp("shim") / "faults"
    subprocess.run([cxx, "-std=c++20", "-O1", "-Wall", "-Wextra", str(SHIM / "faults.cpp"), "-o", str(out)], check=True)
    return out


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [None, "1"])
def test_faults_are_noticed(program, fault, seed):
    env = os.environ if seed is None else {**os.environ, "CUSIM_SEED": seed}
    out = subprocess.run([program, fault], capture_output=True, text=True, check=False, env=env)
    assert out.returncode == (1 if FAULTS[fault] else 0)
    assert FAULTS[fault] in out.stderr
