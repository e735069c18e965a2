"""Backends, one module each, and `choice`, which finds the one that serves a call. The public names are those of `choice`."""

from bdkernels.backends.choice import NAMES, BackendError, choose, missing, steps

__all__ = ["NAMES", "BackendError", "choose", "missing", "steps"]
