"""Which backends are there, why others are not, and which one an operator takes.

Choice: the explicit argument, else the environment variable BDKERNELS_BACKEND, else the best for the operator and the device.
An explicit choice that cannot be honoured raises BackendError with the reason; nothing falls back behind the caller's back. A
library or an instruction set that the environment names is such a choice, unless another backend is chosen.

The scores, ranks and draws of "cpu" have the same bits in every float mode of the processor; "reference" is torch's own
arithmetic, which follows the mode (docs/numerics.md).
"""

import os
import warnings
from functools import cache

import torch

from bdkernels.backends import cpu, cuda, precision, reference, triton
from bdkernels.backends.reference import Steps

NAMES = ("reference", "cpu", "triton", "cuda")
LARGE = 1 << 28  # multiplications of one call: tenths of a second in C++, seconds in the reference

_missing: dict[str, str | None] = {
    "reference": None,
    "cpu": cpu.load(),
    "triton": triton.load(),
    "cuda": cuda.load(),
}


class BackendError(RuntimeError):
    """An explicitly chosen backend is unknown, absent, or not for this device."""


def missing(name: str) -> str | None:
    """Why a backend cannot be had in this process; None if it can."""
    return _missing[name]


def choose(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """Name of the backend that runs the operators on a device.

    Args:
        device: where the tensors are.
        asked: an explicit choice; None or "" for the environment variable or the best.
        dtype: of the tables or scores; only the reference has float64.

    Raises:
        BackendError: the explicit choice cannot be honoured.
        ValueError: BDKERNELS_PRECISION is no such name.
    """
    source, name = ("backend", asked) if asked else ("BDKERNELS_BACKEND", os.environ.get("BDKERNELS_BACKEND"))
    precision.asked()
    if not name:
        _honour(device)
        best = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
        return next((b for b in best if missing(b) is None and _refuses(b, device, dtype) is None), "reference")
    if name not in NAMES:
        raise BackendError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    if (reason := missing(name) or _refuses(name, device, dtype)) is not None:
        raise BackendError(f"{source}={name}: {reason}")
    return name


def _honour(device: torch.device) -> None:
    """Raise BackendError where the environment asks for something of the device's own backend, which is not there."""
    for backend, asked in (("cpu", cpu.CHOICES), ("cuda", cuda.CHOICES)):
        given = [f"{name}={os.environ[name]}" for name in asked if os.environ.get(name)]
        if device.type == backend and given and (reason := missing(backend)) is not None:
            raise BackendError(f"{' '.join(given)}: the backend {backend!r} is not there: {reason}")


def _refuses(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend that is there cannot take such tables; None if it can."""
    if name == "reference":
        return None
    if name == "cpu" and device.type != "cpu":
        return f"expected tensors on the CPU, got {device}"
    # Off a GPU only where the backend itself is simulated, by Triton's interpreter or as CUDA source compiled for the CPU.
    if name in ("triton", "cuda") and device.type != ("cpu" if _SIMULATED[name]() else "cuda"):
        return f"expected tensors on a CUDA device, got {device}"
    if dtype == torch.float64:
        return "expected float32, got float64, which only the reference has"
    return None


_SIMULATED = {"triton": triton.simulated, "cuda": cuda.simulated}


def steps(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32, work: int = 0) -> Steps:
    """The stages of the chosen backend, for a call of about `work` multiplications."""
    name = choose(device, asked, dtype)
    if name == "reference" and work >= LARGE and not (asked or os.environ.get("BDKERNELS_BACKEND")):
        _warn_of_reference(device.type, dtype)
    if name == "triton":
        return triton.steps()
    return {"reference": reference.STEPS, "cpu": cpu.STEPS, "cuda": cuda.STEPS}[name]


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
