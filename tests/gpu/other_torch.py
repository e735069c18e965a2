"""What the two libraries are to the torch of this interpreter: `python tests/gpu/other_torch.py`, prints JSON.

They are where BDKERNELS_LIBRARY and BDKERNELS_CUDA_LIBRARY say. If the latter is the simulated one, it computes too: it has the
binding of the real one. Nothing is compiled, and the interpreter needs torch and numpy alone.
"""

import json
import os

import torch
from stages import STAGES, problem, same

from bdkernels import backends
from bdkernels.backends import cuda


def registered() -> dict[str, list[str]]:
    """Dispatch keys of every operator of the libraries."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = sorted(
        n for n in torch._C._dispatch_get_all_op_names() if n.startswith(("bdkernels_cpu:", "bdkernels_cuda:"))
    )
    return {name: [key for key in ("CPU", "CUDA", "CompositeExplicitAutograd") if has(name, key)] for name in names}


def by(backend: str) -> dict[str, tuple[torch.Tensor, ...]]:
    """What each stage gives there."""
    os.environ["BDKERNELS_BACKEND"] = backend
    return {name: stage(problem()) for name, stage in STAGES.items()}


def differences(backend: str) -> dict[str, str]:
    """Stages whose result is not the reference's."""
    found = {}
    for name, got, want in zip(STAGES, by(backend).values(), by("reference").values(), strict=True):
        try:
            same(STAGES[name], got, want)
        except AssertionError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    refused = backends.missing("cuda")
    computes = ["cpu", *(["cuda"] if refused is None and cuda.simulated() else [])]
    seen = {
        "torch": torch.__version__,
        "refused": refused,
        "registered": registered(),
        "simulated": "cuda" in computes,
        "differences": {name: backends.missing(name) or differences(name) for name in computes},
    }
    print(json.dumps(seen))
