"""Where and with what something was measured: it goes into every row of every result.

BENCH_DEVICE=cuda puts all inputs, and so everything that is timed, on a GPU.
"""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import bdkernels as bd
from bdkernels.backends import cpu

DEVICE = torch.device(os.environ.get("BENCH_DEVICE", "cpu"))
torch.set_default_device(DEVICE)
torch.set_float32_matmul_precision("highest")  # the environment may ask for TF32, which is not what is compared


def machine() -> dict[str, Any]:
    """Date, commit, versions, CPU or GPU, threads, backend."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "bdkernels": bd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "gpu": torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "backend": bd.backends.choose(DEVICE),
        "isa": cpu.isa() if bd.backends.missing("cpu") is None else None,
    }


def commit() -> str:
    """Of this checkout, such as 1a2b3c4-dirty; "no git" where there is none, or where this is a copy without its history."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!README.md")
    except OSError:
        return "no git"
    return f"{head}-dirty" if head and changed else head or "no git"  # but for what benchmarks write


def memory_gb() -> float:
    """Memory of the device in GB; infinite where the system does not say."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_properties(DEVICE).total_memory / 1e9
    total = _first("/proc/meminfo", "MemTotal")
    return int(total.split()[0]) * 1024 / 1e9 if total else float("inf")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _first(path: str, key: str) -> str:
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "")
