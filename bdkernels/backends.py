"""Which backends are there, why others are not, and which one an operator takes.

Choice: the explicit argument, else the environment variable BDKERNELS_BACKEND, else the best for the operator and the device.
An explicit choice that cannot be honoured raises BackendError with the reason; nothing falls back behind the caller's back.
"""

import os

import torch

from . import cpu, reference
from .reference import Steps

NAMES = ("reference", "cpu", "triton", "cuda")

_missing: dict[str, str | None] = {
    "reference": None,
    "cpu": cpu.load(),
    "triton": "not in this version",
    "cuda": "not in this version",
}


class BackendError(RuntimeError):
    """An explicitly chosen backend is unknown, absent, or not for this device."""


def missing(name: str) -> str | None:
    """Why a backend cannot be had in this process; None if it can."""
    return _missing[name]


def choose(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """Name of the backend that runs the operators on a device; all but distill_loss, which is plain PyTorch everywhere.

    Args:
        device: where the tensors are.
        asked: an explicit choice; None or "" for the environment variable or the best.
        dtype: of the tables; only the reference has float64.

    Raises:
        BackendError: the explicit choice cannot be honoured.
    """
    source, name = ("backend", asked) if asked else ("BDKERNELS_BACKEND", os.environ.get("BDKERNELS_BACKEND"))
    if not name:
        return "cpu" if device.type == "cpu" and dtype != torch.float64 and missing("cpu") is None else "reference"
    if name not in NAMES:
        raise BackendError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    if (reason := missing(name)) is not None:
        raise BackendError(f"{source}={name}: {reason}")
    if name == "cpu" and device.type != "cpu":
        raise BackendError(f"{source}=cpu: expected tensors on the CPU, got {device}")
    if name == "cpu" and dtype == torch.float64:
        raise BackendError(f"{source}=cpu: expected float32 tables, got float64, which only the reference has")
    return name


def steps(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32) -> Steps:
    """The stages of the chosen backend."""
    return cpu.STEPS if choose(device, asked, dtype) == "cpu" else reference.STEPS
