"""What processes of an experiment are given to do in tests: functions of a module, since they are pickled by name."""

import fcntl
import os
import signal
import time
from pathlib import Path

from bidistill import UserError


def write(path):
    Path(path).write_text("done")


def refuse(path):
    raise UserError(f"{path} is refused")


def fail(path):
    raise ArithmeticError(f"{path} fails\nin two lines")


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(path):
    os._exit(7)


def hold(path):
    """Holds a lock as long as the process lives."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path(f"{path}.held").touch()
        time.sleep(100_000)
