"""The Triton backend: its stages have the signatures of `reference`. Importing this package does not import Triton itself.

Under TRITON_INTERPRET=1 the kernels run in Triton's interpreter, on CPU tensors: that is how they are tested without a GPU.
"""

import importlib.util
import os

from ..reference import Steps


def load() -> str | None:
    """None, or the reason why the backend cannot be had."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return "not in this version"


def simulated() -> bool:
    """Whether the kernels run in Triton's interpreter: the variable is read when they are decorated, at the first use."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def steps() -> Steps:
    """The stages; imports Triton."""
    raise NotImplementedError
