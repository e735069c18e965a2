"""What tests of whole runs share: a run that is stopped, and whether two results agree bit for bit."""

import os
import signal

import torch
from bidistill.training.callbacks import Callback


class StopAfter(Callback):
    """Sends Ctrl-C to this process after some steps."""

    def __init__(self, steps):
        self.left = steps

    def on_step(self, run):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


class StopAt(Callback):
    """Ctrl-C at a step of an epoch of the joint phase."""

    def __init__(self, epoch, step):
        self.place = "joint", epoch, step

    def on_step(self, run):
        if (run.progress.phase, run.progress.epoch, run.progress.step) == self.place:
            raise KeyboardInterrupt


def timeless(history):
    """The rows of a history without their times."""
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in history]


def equal(first, second):
    """Whether two models hold the same numbers, buffers included."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def same(first, second):
    """Whether two results agree bit for bit: models, metrics, history (but for the time)."""
    assert equal(first.teacher, second.teacher) and equal(first.student, second.student)
    assert first.metrics == second.metrics
    assert first.pretrained == second.pretrained
    assert timeless(first.history) == timeless(second.history)
    return True
