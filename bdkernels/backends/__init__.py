"""Backends, one module each, and `choice`, which finds the one that serves a call.

To add one, give `register` a `Backend`; CONTRIBUTING.md says how, `reference` is the definition of its stages.
"""

from bdkernels.backends import reference
from bdkernels.backends.backend import Backend, BackendError, Steps
from bdkernels.backends.choice import choose, describe, missing, names, register, steps

__all__ = [
    "Backend",
    "BackendError",
    "Steps",
    "choose",
    "describe",
    "missing",
    "names",
    "reference",
    "register",
    "steps",
]
