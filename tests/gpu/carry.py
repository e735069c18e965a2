"""Lets tests that make CPU tensors run on another device: each stage gets copies there, and what it gives comes back."""

from typing import Any

import torch
from torch import Tensor

from bdkernels import checks, scorers
from bdkernels.backends import choice
from bdkernels.backends.backend import Steps
from bdkernels.ops import define, loss, rank
from bdkernels.sampling import subset


def carry(device: torch.device) -> None:
    """From now on the stages of every backend but "cpu" run on the device, whatever device the operators are called with.

    What a kernel finds wrong raises the error that a CPU raises: an assertion on a GPU would end all tests of the process.
    """
    checks.ASSERTS = ()
    refuses, steps = choice._refuses, choice.steps

    def carried(at: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32, work: int = 0) -> Steps:
        found = steps(at, asked, dtype, work)
        return found if choice.choose(at, asked, dtype) == "cpu" else found._replace(**_all(found, device))

    choice._refuses = lambda backend, at, dtype: refuses(backend, at if backend.name == "cpu" else device, dtype)
    choice.steps = carried
    for module in (define, loss, rank, scorers, subset):  # all that import it
        module.steps = carried  # type: ignore[attr-defined]


def _all(steps: Steps, device: torch.device) -> dict[str, Any]:
    return {name: _one(run, device, name == "fused_step") for name, run in steps._asdict().items() if callable(run)}


def _one(run: Any, device: torch.device, in_place: bool) -> Any:
    def stage(*args: Any, **kwargs: Any) -> Any:
        there = _send(args, device)
        out = _send(run(*there, **_send(kwargs, device)), torch.device("cpu"))
        if in_place:
            _copy_back(args, there)
        return out

    return stage


def _send(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to(device, copy=True)
    if isinstance(x, tuple):
        values = [_send(y, device) for y in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    if isinstance(x, list):
        return [_send(y, device) for y in x]
    return {k: _send(v, device) for k, v in x.items()} if isinstance(x, dict) else x


def _copy_back(args: Any, there: Any) -> None:
    """What a stage changed in place."""
    for mine, theirs in zip(args, there, strict=True):
        if isinstance(mine, (list, tuple)):
            _copy_back(mine, theirs)
        elif isinstance(mine, Tensor):
            mine.detach().copy_(theirs)
