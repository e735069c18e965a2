"""What is here, what is not, and why: `python -m bdkernels.env_report`. Paste it into every bug report."""

import argparse
import os
import platform
import shutil
import sys

import torch

from bdkernels import backends
from bdkernels.backends import choice, precision
from bdkernels.version import __version__


def report() -> str:
    """The report as text, one fact a line."""
    lines = [
        f"bdkernels      {__version__}",
        f"python         {platform.python_version()} on {platform.platform()}",
        f"torch          {torch.__version__}, threads {torch.get_num_threads()}",
        f"gpu            {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none that torch can use'}",
        f"nvcc           {shutil.which('nvcc') or 'not found'}",
    ]
    variables = [variable for backend in choice.BACKENDS.values() for variable in backend.variables]
    for name in (choice.VARIABLE, *variables, precision.VARIABLE):
        lines.append(f"{name:<22} {os.environ.get(name) or 'not set'}")
    for name in backends.names():
        ready = f"ready{backends.describe(name).removeprefix(name)}"
        lines.append(f"backend {name:<10} {backends.missing(name) or ready}")
    try:
        lines.append(f"on CPU tensors   {backends.choose(torch.device('cpu'))}")
    except (backends.BackendError, ValueError) as error:
        lines.append(f"on CPU tensors   {error}")
    return "\n".join(lines)


def main() -> None:
    """Print it."""
    argparse.ArgumentParser(prog="python -m bdkernels.env_report", description=__doc__).parse_args()
    sys.stdout.write(report() + "\n")
