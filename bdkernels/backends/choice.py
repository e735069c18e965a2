"""Which backends are there, why others are not, and which one an operator takes.

Choice: the explicit argument, else the environment variable BDKERNELS_BACKEND, else the best for the operator and the device.
An explicit choice that cannot be honoured raises BackendError with the reason; nothing falls back behind the caller's back. A
library or an instruction set that the environment names is such a choice, unless another backend is chosen.

A backend comes from this package, from a program that calls `register`, or from an installed package that has an entry point of
the group "bdkernels.backends": its value is a Backend.

The scores, ranks and draws of "cpu" have the same bits in every float mode of the processor; "reference" is torch's own
arithmetic, which follows the mode (docs/numerics.md).
"""

import os
import warnings
from functools import cache
from importlib.metadata import entry_points

import torch

from bdkernels.backends import cpu, cuda, precision, reference, triton
from bdkernels.backends.backend import Backend, BackendError, Steps

LARGE = 1 << 28  # multiplications of one call: tenths of a second in C++, seconds in the reference
VARIABLE = "BDKERNELS_BACKEND"
GROUP = "bdkernels.backends"

BACKENDS: dict[str, Backend] = {}
_missing: dict[str, str | None] = {}


def register(backend: Backend) -> None:
    """Let `backend=` and BDKERNELS_BACKEND name it; makes it ready.

    Raises:
        ValueError: there is another backend of this name.
    """
    name = backend.name
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name: expected a Python identifier, got {name!r}")
    if BACKENDS.get(name, backend) is not backend:
        raise ValueError(f"name: expected one that no backend has, got {name!r}: choose another")
    _missing[name] = backend.load()
    BACKENDS[name] = backend


for _each in (reference.BACKEND, cpu.BACKEND, triton.BACKEND, cuda.BACKEND):
    register(_each)


def names() -> tuple[str, ...]:
    """Of all backends, those of installed packages too, whether or not they can be had."""
    _find()
    return tuple(BACKENDS)


@cache
def _find() -> None:
    """Register what installed packages have."""
    for point in entry_points(group=GROUP):
        if point.name not in BACKENDS:
            try:
                register(point.load())
            except Exception as error:  # whatever another package's import does
                BACKENDS[point.name] = Backend(point.name, Steps(), devices=None, float64=True)
                _missing[point.name] = f"its entry point cannot be loaded: {error}"


def missing(name: str) -> str | None:
    """Why a backend cannot be had in this process; None if it can. Raises BackendError where there is none of this name."""
    return _missing[_named(name, "name").name]


def describe(name: str) -> str:
    """Its name and what may be told of it, such as "cpu (avx512)"."""
    detail = "" if missing(name) else _named(name, "name").detail()
    return f"{name} ({detail})" if detail else name


def _named(name: str, source: str) -> Backend:
    if name not in BACKENDS and name not in names():
        raise BackendError(f"{source}: expected one of {', '.join(names())}, got {name!r}")
    return BACKENDS[name]


def choose(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """Name of the backend that runs the operators on a device.

    Args:
        device: where the tensors are.
        asked: an explicit choice; None or "" for the environment variable or the best.
        dtype: of the tables or scores; of the backends of this package only the reference has float64.

    Raises:
        BackendError: the explicit choice cannot be honoured.
        ValueError: BDKERNELS_PRECISION is no such name.
    """
    precision.asked()
    return _choose(device, asked, dtype).name


def _choose(device: torch.device, asked: str | None, dtype: torch.dtype) -> Backend:
    source, name = ("backend", asked) if asked else (VARIABLE, os.environ.get(VARIABLE))
    if not name:
        return _best(device, dtype)
    backend = _named(name, source)
    if (reason := _missing[name] or _refuses(backend, device, dtype)) is not None:
        raise BackendError(f"{source}={name}: {reason}")
    return backend


def _best(device: torch.device, dtype: torch.dtype) -> Backend:
    """Raises BackendError where the environment asks for something of a backend of the device, which is not there."""
    for backend in reversed(BACKENDS.values()):
        if device.type in backend.default_on:
            reason, devices = _missing[backend.name], backend.devices
            if reason is None:
                usual = isinstance(devices, tuple) and device.type in devices and backend.refuses is None
                if (usual and dtype != torch.float64) or _refuses(backend, device, dtype) is None:
                    return backend
            given = [f"{name}={os.environ[name]}" for name in backend.variables if os.environ.get(name)]
            if reason is not None and given:
                raise BackendError(f"{' '.join(given)}: the backend {backend.name!r} is not there: {reason}")
    return BACKENDS["reference"]


def _refuses(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend that is there cannot take such tables; None if it can."""
    return backend.refusal(device, dtype)


def steps(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32, work: int = 0) -> Steps:
    """The stages of the chosen backend, for a call of about `work` multiplications."""
    backend = _choose(device, asked, dtype)
    if backend.name == "reference" and work >= LARGE and not (asked or os.environ.get(VARIABLE)):
        _warn_of_reference(device.type, dtype)
    return backend.steps


@cache
def _warn_of_reference(device: str, dtype: torch.dtype) -> None:
    """Once, where the C++ library would have served the call."""
    if device == "cpu" and dtype != torch.float64 and (reason := missing("cpu")) is not None:
        warnings.warn(
            f"bdkernels: the reference backend (plain PyTorch) serves this large call, many times slower than the C++ "
            f"backend, which is missing ({reason}). To keep the reference and this warning away, set "
            "BDKERNELS_BACKEND=reference.",
            RuntimeWarning,
            stacklevel=2,
        )
