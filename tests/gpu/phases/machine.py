"""What machine this is, whether the libraries load on it, and what torch itself reaches there: the floors of all times."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

import bdkernels as bd
from bdkernels import backends
from bdkernels.tools.cards import card
from benchmarks.machine import commit
from phases.row import Row, Setting, timed

ROOT = Path(__file__).resolve().parents[3]
COPIED, SIDE = 1 << 28, 8192  # floats that are copied; rows and columns of the products
LOADS = "from phases.machine import refused; import sys; sys.exit(refused({rehearse}))"


def versions(setting: Setting) -> dict[str, Any]:
    """Of everything that matters."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError as error:
        triton_version = str(error)
    nvcc = re.search(r"release ([\d.]+)", told("nvcc", "--version"))
    driver = told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    found = {
        "python": platform.python_version(), "torch": torch.__version__, "CUDA of torch": torch.version.cuda or "none",
        "triton": triton_version, "numpy": numpy.__version__, "nvcc": nvcc[1] if nvcc else "none",
        "driver": driver[0] if driver else "none", "bdkernels": bd.__version__, "commit": commit(), "cores": os.cpu_count(),
    }  # fmt: skip
    return {"said": ", ".join(f"{name} {value}" for name, value in found.items()), **found}


def told(*command: str) -> str:
    """What a program says; nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def gpu(setting: Setting) -> dict[str, Any]:
    """The card, and what it could reach by its own description."""
    found = card(setting.device)
    if found is None:
        return {"said": "none: a rehearsal"}
    memory = torch.cuda.get_device_properties(setting.device).total_memory / 2**30
    best = "" if found.unknown else f", {found.peaks().gflops / 1e3:.1f} TFLOP/s, {found.peaks().gbs / 1e3:.2f} TB/s"
    return {"said": f"{found}, {memory:.0f} GiB{best}", "card": found._asdict()}


def libraries(setting: Setting) -> dict[str, Any]:
    """Both load and compute here; else they are built here, for this card alone, and then they do."""
    why = refused(setting.rehearse)
    if why is None:
        return {"said": "they load, nothing was built"}
    if setting.rehearse:
        command, wanted = ("build_simulation", "--out", os.environ["BDKERNELS_CUDA_LIBRARY"]), {}
    else:
        if shutil.which("nvcc") is None:
            raise RuntimeError(f"{why}; and nvcc is not on the PATH")
        archs = "{}{}".format(*torch.cuda.get_device_capability())
        command, wanted = ("build_kernels",), {"BDKERNELS_BUILD_CUDA": "1", "BDKERNELS_CUDA_ARCHS": archs}
    wanted["BDKERNELS_STRICT_BUILD"] = "1"
    subprocess.run([sys.executable, "setup.py", "-q", *command], cwd=ROOT, check=True, env=os.environ | wanted)
    code = LOADS.format(rehearse=setting.rehearse)
    path = os.pathsep.join([str(ROOT / "tests" / "gpu"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    again = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if again.returncode:
        raise RuntimeError(f"built here, since {why}; but {again.stderr.strip()}")
    return {"said": f"built here, since {why}"}


def refused(rehearse: bool) -> str | None:
    """Why a library is of no use here; None where both compute the same scores."""
    for name in ("cpu", "cuda"):
        if (why := backends.missing(name)) is not None:
            return f"backend {name}: {why}"
    f, ids = bd.Factors(torch.randn(3, 5), torch.randn(7, 5)), torch.arange(7).repeat(3, 1)
    device = torch.device("cpu" if rehearse else "cuda")
    try:
        there = bd.score(f.to(device), ids.to(device), backend="cuda").cpu()
    except RuntimeError as error:  # no code for this card, say
        return f"backend cuda: {str(error).splitlines()[0]}"
    return (
        None
        if torch.equal(there, bd.score(f, ids, backend="cpu"))
        else "backend cuda: other scores than the C++ backend's"
    )


def copy(setting: Setting) -> dict[str, Any]:
    """GB/s, reading and writing each counted once."""
    floats = 1 << 16 if setting.rehearse else COPIED
    source = torch.rand(floats, device=setting.device)
    target = torch.full_like(source, torch.nan)
    target.copy_(source)
    assert torch.equal(target, source)
    found = timed(setting, lambda: target.copy_(source))
    gbs = 8 * floats / found["median_ms"] / 1e6
    return found | {"gbs": gbs, "said": f"{gbs / 1e3:.2f} TB/s"}


def product(precision: str) -> Row:
    """GFLOP/s of torch.mm on float32 matrices, in full precision ("highest") or by tensor cores ("high")."""

    def run(setting: Setting) -> dict[str, Any]:
        torch.set_float32_matmul_precision(precision)
        n = 64 if setting.rehearse else SIDE
        x, y = (torch.empty(n, n, device=setting.device).uniform_(-1, 1) for _ in range(2))
        out = torch.mm(x, y)
        error = (out[:4].double() - x[:4].double() @ y.double()).abs().max()
        assert error < (1 if precision == "high" else 1e-3), f"an entry of the product is off by {error:.2g}"
        found = timed(setting, multiply(x, y, out))
        gflops = 2 * n**3 / found["median_ms"] / 1e6
        return found | {"gflops": gflops, "said": f"{gflops / 1e3:.1f} TFLOP/s"}

    return run


def multiply(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.mm(x, y, out=out)


ROWS: dict[str, Row] = {
    "versions": versions,
    "card": gpu,
    "libraries": libraries,
    "copy": copy,
    "fp32 product": product("highest"),
    "tf32 product": product("high"),
}
