"""The cost model: what the compiled CUDA kernels need for the calls that matter, beside their floors and their targets.

    python tests/gpu/model.py LIBRARY [--target 90]

LIBRARY is built by `python setup.py build_cuda`. Prints the tables; for the target 90, writes them to model.md, the page that
`predict` reads and `make gpu-proof` holds the kernels to. Derived, not measured: see costs.py for what is in a time, recipes.py
for what a kernel does, calls.py for the workloads.
"""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).with_name("model.md")
TARGET, TARGETS = 90, (80, 90)  # of the page; of all
SLOWER = 1.02  # of what the page says, before it is a loss


def committed() -> dict[str, tuple[float, float]]:
    """Best and worst ms of each call, as model.md has them."""
    found = re.findall(r"^\| ([^|]+) \| [^|]+ \| [\d.]+ \| ([\d.]+) - ([\d.]+) \|", PAGE.read_text(), re.MULTILINE)
    return {name: (float(best), float(worst)) for name, best, worst in found}


def predict() -> dict[str, float]:
    """ms of each call by its name: the middle of its range in model.md, which needs neither nvcc nor triton."""
    return {name: (best + worst) / 2 for name, (best, worst) in committed().items()}


def hold(found: Mapping[str, tuple[float, float]]) -> None:
    """Best and worst ms of each call to those of model.md: the calls are its calls, and none has become slower."""
    page = committed()
    assert found.keys() == page.keys(), found.keys() ^ page.keys()
    slower = {
        name: (*times, page[name])
        for name, times in found.items()
        if any(time > SLOWER * before for time, before in zip(times, page[name], strict=True))
    }
    assert not slower, f"slower than model.md: {slower}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("library", type=Path, metavar="LIBRARY")
    options.add_argument("--target", type=int, choices=TARGETS, default=TARGET)
    given = options.parse_args()
    # What `predict` does without; and the backend's library is chosen before the backend is imported.
    from simulation import build_simulation

    os.environ["BDKERNELS_CUDA_LIBRARY"] = str(build_simulation())
    import torch
    from calls import page
    from compiled import in_library
    from operations import counted

    kernels = {kernel.name: kernel for kernel in in_library(given.library) if kernel.cc == given.target}
    text = page(kernels, counted(torch.device("cpu")), given.target)
    if given.target == TARGET:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
