"""Processes that do the tasks of an experiment: some at a time, each after what it needs, none that outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from bidistill.errors import UserError, enough_memory


@dataclass(frozen=True)
class Task:
    """A call in a process of its own.

    Attributes:
        name: of the task; no other one has it.
        target, argument: what is called, a function of a module; both are pickled.
        needs: the name of the task that has to end well before, or "".
    """

    name: str
    target: Callable[[Any], None]
    argument: Any
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a task ended. error: why it failed, in a sentence, or "". details: the traceback, where that tells more."""

    task: Task
    error: str = ""
    details: str = ""


def outcomes(tasks: Sequence[Task], jobs: int) -> Generator[Outcome, None, None]:
    """Do the tasks, so many at a time, and tell how each ended, in the order in which they end.

    A task whose `needs` failed is not begun and fails too. Whatever ends the iteration also ends the processes.
    """
    context = _context()
    waiting, ended = list(tasks), {""}
    running: dict[Any, tuple[Any, Task, Connection]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            for task in [each for each in waiting if each.needs in failed]:
                waiting.remove(task)
                failed[task.name] = failed[task.needs]
                yield Outcome(task, failed[task.name])
            ready = [each for each in waiting if each.needs in ended]
            for task in ready[: jobs - len(running)]:
                waiting.remove(task)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(task.target, task.argument, there), daemon=True)
                process.start()
                there.close()
                running[process.sentinel] = process, task, here
            if not running:
                continue
            for sentinel in wait(list(running)):
                process, task, here = running.pop(sentinel)
                process.join()
                error, details = _told(process.exitcode, here)
                if error:
                    failed[task.name] = error
                else:
                    ended.add(task.name)
                yield Outcome(task, error, details)
    finally:
        for process, _, _ in running.values():
            process.kill()  # every file is written whole or not at all
        for process, _, _ in running.values():
            process.join()


def _context() -> Any:
    """How processes are made: as forks of a process that has imported what they need and computed nothing, so that it has no
    threads whose locks a fork would copy (jemalloc's takes care of itself); where the system has no forks, as fresh programs.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["bidistill.experiments.cell", "torch._dynamo"]
    )  # torch.optim imports the latter in its first step
    return context


def _told(exitcode: int | None, here: Connection) -> tuple[str, str]:
    """Error and details of a process that has ended."""
    with here, suppress(EOFError, OSError):
        if here.poll():
            error, details = here.recv()
            return error, details
    if exitcode is not None and exitcode < 0:
        number = -exitcode
        name = next((each.name for each in signal.Signals if each == number), str(number))
        return f"the process was ended by the signal {name}; there may have been too little memory for so many jobs", ""
    return f"the process ended with status {exitcode} and told nothing", ""


def _work(target: Callable[[Any], None], argument: Any, there: Connection) -> None:
    """What a process does: the call, and word of how it ended."""
    _end_with_parent()
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent alone, which ends this process
    try:
        with enough_memory():
            target(argument)
        there.send(("", ""))
    except UserError as error:
        there.send((str(error), ""))
    except Exception as error:  # whatever a method or a model of others raises: the other cells go on
        words = (str(error).splitlines() or [""])[0]
        there.send((f"{type(error).__name__}: {words}", traceback.format_exc()))


def _end_with_parent() -> None:
    """End this process when its parent ends, however that is."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
