"""Every stage of a GPU backend against the C++ backend: bit for bit, but for the sums of the losses (see `same`)."""

import os
from typing import Any, NamedTuple

import torch
from stages import STAGES, Problem, problem, same
from torch import Tensor
from torch.utils._pytree import tree_map_only

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import cuda, triton
from phases.row import NotRun, Row, Setting

SIZES = (300, 50_021, 33)  # users, items, factors
EXACT = ("score", "rank", "topk", "sample")


class Variant(NamedTuple):
    """How a problem differs: sizes; `coarse` scores tie by the dozen; the first user has seen all items."""

    sizes: tuple[int, int, int] = SIZES
    dtype: torch.dtype = torch.float32
    bias: bool = True
    coarse: bool = False
    all_seen: bool = False


VARIANTS = {
    "d = 50": Variant((300, 50_021, 50), bias=False),
    "d = 64": Variant((130, 50_021, 64)),
    "fp16": Variant(dtype=torch.float16),
    "bf16": Variant(dtype=torch.bfloat16),
    "ties": Variant(coarse=True),
    "one row": Variant((1, 50_021, 33)),
    "one past a tile": Variant((65, 4_097, 33), all_seen=True),
}


def stage(name: str) -> Row:
    """One stage on biased tables, with seen items."""

    def run(setting: Setting) -> dict[str, Any]:
        return compare(setting, problem(*small(setting, SIZES)), (name,))

    return run


def variant(name: str) -> Row:
    """The stages that are exact, on another problem."""

    def run(setting: Setting) -> dict[str, Any]:
        v = VARIANTS[name]
        p = problem(*small(setting, v.sizes))
        p = p._replace(teacher=changed(p.teacher, v), student=changed(p.student, v), seen=seen(p, v))
        return compare(setting, p, EXACT)

    return run


def small(setting: Setting, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    users, items, d = sizes
    return (min(users, 3), 71, 5) if setting.rehearse else (users, items, d)


def changed(f: bd.Factors, v: Variant) -> bd.Factors:
    f = f if v.bias else f._replace(item_bias=None)
    return tree_map_only(Tensor, lambda t: (t.mul(1.5).round() if v.coarse else t).to(v.dtype), f)


def seen(p: Problem, v: Variant) -> bd.Seen:
    if not v.all_seen:
        return p.seen
    users, n_items = p.teacher.user_factors.shape[0], p.teacher.n_items
    pairs = torch.cat([p.seen.row_of_each(), torch.zeros(n_items, dtype=torch.int64)])
    return bd.Seen.from_pairs(pairs, torch.cat([p.seen.indices, torch.arange(n_items)]), users)


def compare(setting: Setting, p: Problem, names: tuple[str, ...]) -> dict[str, Any]:
    """Raises AssertionError that says which stage gives something else than the C++ backend."""
    for name in (setting.backend, "cpu"):
        if (why := backends.missing(name)) is not None:
            raise NotRun(f"backend {name}: {why}")
    if (cuda if setting.backend == "cuda" else triton).simulated() != setting.rehearse:
        raise RuntimeError("the backend is simulated on the CPU")
    there = p.to(setting.device)
    for name in names:
        got = STAGES[name](there)
        os.environ["BDKERNELS_BACKEND"] = "cpu"
        try:
            want = STAGES[name](p)
        finally:
            os.environ["BDKERNELS_BACKEND"] = setting.backend
        if not all(t.device.type == setting.device.type for t in got):
            raise AssertionError(f"{name}: results are not on {setting.device}")
        try:
            same(STAGES[name], got, want)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    users, items = p.scores.shape
    return {"said": f"{', '.join(names)} of {users} x {items:,}, d = {p.teacher.user_factors.shape[1]}"}


ROWS: dict[str, Row] = {name: stage(name) for name in STAGES} | {name: variant(name) for name in VARIANTS}
