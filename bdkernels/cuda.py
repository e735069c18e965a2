"""The CUDA backend: loads its library and gives its stages the signatures of `reference`.

The library lies in bdkernels/lib, built by setup.py from csrc/cuda where nvcc is found, or where the environment variable
BDKERNELS_CUDA_LIBRARY says: the same source compiled for the CPU, which is how it is tested without a GPU.
"""

import os
from pathlib import Path

import torch

from . import reference

LIBRARY = Path(os.environ.get("BDKERNELS_CUDA_LIBRARY") or Path(__file__).parent / "lib" / "libbdkernels_cuda.so")


def load() -> str | None:
    """Load the library. Returns None, or the reason why it cannot be had."""
    if not LIBRARY.exists():
        return "not built: it needs nvcc at install time; `python setup.py build_kernels` in a checkout says what is missing"
    if "BDKERNELS_CUDA_LIBRARY" not in os.environ and torch.version.cuda is None:
        return "this torch is a build without CUDA"
    try:
        torch.ops.load_library(LIBRARY)
        simulated()
    except (AttributeError, OSError, RuntimeError) as error:
        return f"{LIBRARY.name} does not load: {str(error).splitlines()[0]}"
    return None


def simulated() -> bool:
    """Whether the loaded library is the one compiled for the CPU."""
    return bool(torch.ops.bdkernels_cuda.simulated())


STEPS = reference.STEPS  # to be replaced stage by stage
