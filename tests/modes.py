"""Float modes of a thread, for the tests that nothing depends on them: what a test expects is computed outside of them."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from bdkernels.backends.backend import Steps

ROUNDING = {"downward": 0x400, "upward": 0x800, "toward zero": 0xC00}  # fenv.h of x86


@contextmanager
def flushing() -> Iterator[None]:
    """Subnormals are 0 for this thread, where the processor can do that."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounding(mode: int) -> Iterator[None]:
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fesetround(mode) == 0
    try:
        yield
    finally:
        libm.fesetround(0)


def flushed(steps: Steps) -> Steps:
    """The stages of a backend, each called while subnormals are flushed; but for those that are torch's own arithmetic."""

    def wrap(run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with flushing():
                return run(*arguments, **named)

        return wrapped

    own = {name: run for name, run in steps._asdict().items() if callable(run) and not name.startswith("distill_loss")}
    return steps._replace(**{name: wrap(run) for name, run in own.items()})
