"""Tests that are processes of a minute or more: one after the other on another core, while the other tests run here.

Such a test names its process where its module is imported, and comes last; conftest.py starts those of the tests that are chosen.
"""

import atexit
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Job:
    """`python *arguments` in the root, once `prepare` has run, and only where the packages of `needs` are.

    Its environment is that of now: the tests that run beside it change theirs.
    """

    def __init__(
        self, *arguments: str, env: dict[str, str], needs: tuple[str, ...] = (), prepare: Callable[[], object] = int
    ) -> None:
        self.command, self.needs, self.prepare = [sys.executable, *arguments], needs, prepare
        self.env = os.environ | env
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.returncode, self.said = 0, ""

    def missing(self) -> str | None:
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)

    def run(self) -> None:
        try:
            self.prepare()
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            atexit.register(process.kill)
            self.said, _ = process.communicate()
            self.returncode = process.returncode
        except BaseException as error:
            self.error = error  # also a skip: it is for the test
        self.done.set()

    def wait(self) -> "Job":
        """Until its turn has come and gone."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self


def start(jobs: Iterable[Job]) -> None:
    todo = [job for job in jobs if job.missing() is None]
    if todo:
        threading.Thread(target=lambda: [job.run() for job in todo], daemon=True).start()


def job_of(item: object) -> Job | None:
    """That of a test, which has it as an attribute."""
    return getattr(getattr(item, "function", None), "job", None)
