"""What one call dispatches on a GPU: each costs the host some microseconds, and the device a launch or a wait.

Counted are
  torch's operators, those inside of our own operators too: kernels, allocations, copies, questions to the device. Not counted are
  views and other operators that touch no value, such as `detach` and `select`;
  launches of our own kernels: in the simulator for the CUDA backend, by their calls for the Triton backend, where an autotuned
  kernel is one, whatever its configurations.
Our own operators (bdkernels, bdkernels_cuda) stand for what is inside of them and count nothing themselves.
"""

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from inside import Inside

from bdkernels import checks
from bdkernels.backends import cuda


class Watch(Inside):
    """Counts torch's operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    def see(self, func: Any, args: Any, kwargs: Any) -> None:
        if not func.is_view:
            self.operators[func._schema.name] += 1


def _cuda_launches() -> int:
    """Of the simulated CUDA backend, so far; a GPU's are not seen."""
    if not cuda.simulated():
        return 0
    return ctypes.c_int64.in_dll(ctypes.CDLL(str(cuda.LIBRARY)), "cusim_launches").value


@contextmanager
def _triton_launches(counts: Counter[str]) -> Iterator[None]:
    from triton.runtime.jit import KernelInterface

    shipped = KernelInterface.__getitem__

    def counting(self: Any, grid: Any) -> Any:
        counts["launch"] += 1
        return shipped(self, grid)

    KernelInterface.__getitem__ = counting
    try:
        yield
    finally:
        KernelInterface.__getitem__ = shipped


def dispatched(call: Callable[[], object], backend: str) -> Counter[str]:
    """What a call of this backend dispatches when it is made again, by name: torch's operators, and "launch" for our kernels.

    On CPU tensors values are asserted as on a GPU, where nothing waits for them.
    """
    asserts, watch = checks.ASSERTS, Watch()
    launches: Counter[str] = Counter()
    checks.ASSERTS = (*asserts, "cpu")
    try:
        call()  # looks at the form of the arguments, tunes
        if backend == "triton":
            with _triton_launches(launches), watch:
                call()
        else:
            before = _cuda_launches()
            with watch:
                call()
            launches["launch"] = _cuda_launches() - before
    finally:
        checks.ASSERTS = asserts
    return watch.operators + launches
