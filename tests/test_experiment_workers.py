"""The processes of an experiment: what each tells, what the others do meanwhile, and that none outlives its parent."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import errands
import pytest
from bidistill.experiments.workers import Task, outcomes

pytestmark = pytest.mark.usefixtures("heard_signals")


def test_each_ends_in_its_own_way(tmp_path):
    wanted = {
        "write": "",
        "refuse": f"{tmp_path / 'refuse'} is refused",
        "fail": f"ArithmeticError: {tmp_path / 'fail'} fails",
        "die": "the process was ended by the signal SIGKILL",
        "leave": "the process ended with status 7",
    }
    tasks = [Task(name, getattr(errands, name), str(tmp_path / name)) for name in wanted]
    tasks.append(Task("after", errands.write, str(tmp_path / "after"), "write"))
    tasks.append(Task("never", errands.write, str(tmp_path / "never"), "refuse"))
    tasks.append(Task("nor this", errands.write, str(tmp_path / "nor"), "never"))
    found = {each.task.name: each for each in outcomes(tasks, 2)}
    assert len(found) == len(tasks)
    for name, error in wanted.items():
        assert found[name].error.startswith(error) and bool(found[name].error) == bool(error), name
    assert "ArithmeticError" in found["fail"].details and not found["refuse"].details
    assert not found["after"].error and (tmp_path / "after").read_text() == "done"
    assert found["never"].error == found["nor this"].error == wanted["refuse"]
    assert not (tmp_path / "never").exists() and not (tmp_path / "nor").exists()


def test_a_need_comes_first_whatever_the_order(tmp_path):
    tasks = [Task("b", errands.write, str(tmp_path / "b"), "a"), Task("a", errands.write, str(tmp_path / "a"))]
    assert [each.task.name for each in outcomes(tasks, 2)] == ["a", "b"]


def locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_for(condition):
    while not condition():
        time.sleep(0.05)


def test_who_stops_listening_ends_them(tmp_path):
    held = tmp_path / "lock"
    tasks = [Task("hold", errands.hold, str(held)), Task("write", errands.write, str(tmp_path / "write"))]
    told = outcomes(tasks, 2)
    assert next(told).task.name == "write"
    wait_for((tmp_path / "lock.held").exists)
    assert locked(held)
    told.close()
    assert not locked(held)


def test_they_end_with_a_parent_that_is_killed(tmp_path):
    held = tmp_path / "lock"
    code = (
        "import errands; from bidistill.experiments.workers import Task, outcomes\n"
        f"if __name__ == '__main__': list(outcomes([Task('hold', errands.hold, {str(held)!r})], 1))"
    )
    script = tmp_path / "program.py"
    script.write_text(code)
    path = os.pathsep.join([str(Path(errands.__file__).parent), *sys.path])
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path})
    wait_for((tmp_path / "lock.held").exists)
    assert locked(held)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not locked(held))
