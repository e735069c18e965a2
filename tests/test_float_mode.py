"""The C++ backend gives the same bits in every float mode of the caller and of the threads of the pool."""

import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from modes import ROUNDING, flushing, rounding

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import cpu

X86 = platform.machine() == "x86_64" and sys.platform == "linux"
pytestmark = pytest.mark.skipif(backends.missing("cpu") is not None, reason=f"backend cpu: {backends.missing('cpu')}")


def half_zeros(n=2000, b=16, d=8) -> bd.Factors:
    """Every other item is all 0, and so are scores of exactly 0 half of the catalog's."""
    generator = torch.Generator().manual_seed(5)
    items = torch.randn(n, d, generator=generator)
    items[torch.randperm(n, generator=generator)[: n // 2]] = 0
    return bd.Factors(torch.randn(b, d, generator=generator), items)


def subnormal(n=600, b=9, d=5) -> bd.Factors:
    """Scores that are subnormal, from factors that are and from products of small ones."""
    generator = torch.Generator().manual_seed(6)
    items = torch.randn(n, d, generator=generator)
    items[::2] *= 1e-39
    items[1::2] *= 1e-20
    users = torch.randn(b, d, generator=generator)
    users[::2] *= 1e-19
    return bd.Factors(users, items, torch.randn(n, generator=generator) * 1e-40)


def everything(f: bd.Factors, backend: str = "cpu") -> dict[str, torch.Tensor]:
    """Results of every operator of csrc."""
    generator = torch.Generator().manual_seed(7)
    b, n = len(f.user_factors), len(f.item_factors)
    ids = torch.randint(0, n, (b, 40), generator=generator)
    seen = bd.Seen.from_pairs(torch.arange(b), torch.arange(b), b)
    student = f._replace(
        user_factors=f.user_factors[:, :2].contiguous(), item_factors=f.item_factors[:, :2].contiguous()
    )
    zero, block = torch.zeros(b, 3), bd.score(f, torch.arange(n).expand(b, n), backend=backend)
    out = {
        "score": bd.score(f, ids, backend=backend),
        "rank": bd.rank(f, ids, seen, backend=backend),
        "rank of two": bd.rank(f, ids[:, :2], backend=backend),
        "rank of many": bd.rank(f, ids.repeat(1, 30), backend=backend),
        "count_above": bd.count_above(f, zero, ids[:, :3], backend=backend),
        "count_above_block": bd.count_above_block(block, zero, ids[:, :3], seen, backend=backend),
    }
    out["topk scores"], out["topk ids"] = bd.topk(f, 700 if n > 700 else n, seen, backend=backend)
    rows = torch.arange(b)
    for name, weight in (("tanh", bd.Tanh()), ("peaked", bd.Exp(500.0))):
        drawn = bd.sample(
            f, student, 6, seen, to_student=weight, to_teacher=weight, seed=1, step=2, user_ids=rows, backend=backend
        )
        out[f"sample {name}"] = torch.cat([each.ids for each in drawn])
    few = bd.sample(f, student, 3, seed=1, step=2, user_ids=rows, subset=50, backend=backend)
    out["sample of a subset"] = torch.cat([each.ids for each in few])
    return out


def trained(f: bd.Factors) -> list[torch.Tensor]:
    """Losses and tables of fused steps whose gradients, moments and updates are partly subnormal."""
    tables = [t.clone() for t in f if t is not None]
    batch = torch.arange(4), torch.arange(4), torch.arange(4, 12).view(4, 2)
    draws = bd.Draws(torch.arange(20, 32).view(4, 3), torch.ones(4, 3, dtype=torch.bool))
    optimizer = bd.SparseAdam(tables, lr=1e-30, weight_decay=1e-3)
    guide = torch.zeros(4, 3)
    losses = [bd.fused_step(optimizer, *batch, draws, guide, backend="cpu") for _ in range(3)]
    found = [f.user_factors, f.item_factors, f.item_bias, *batch, draws.ids, guide, draws.mask]
    rows = torch.ops.bdkernels.fused_gradient(*found, "bpr", "bce", 1e-30, 1.0, 2.0, backend="cpu")
    bd.sparse_step(optimizer, user_table=(batch[0], rows[2]))
    return [*(loss.cf for loss in losses), *(loss.distill for loss in losses), *tables, *optimizer.row_state(), *rows]


def same_bits(got: torch.Tensor, want: torch.Tensor) -> bool:
    if got.dtype == torch.float32:
        got, want = got.view(torch.int32), want.view(torch.int32)
    return torch.equal(got, want)


MODES = {"flushing": flushing}
if X86:
    MODES |= {name: (lambda mode=mode: rounding(mode)) for name, mode in ROUNDING.items()}


@cache
def expected(make: Callable[[], bd.Factors]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """In the default mode, by the reference; steps by one thread."""
    return everything(make(), "reference"), trained(make())


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", [half_zeros, subnormal])
def test_the_callers_mode_changes_no_bit(mode, threads, make):
    f = make()
    want, steps = expected(make)
    torch.set_num_threads(threads)
    try:
        with MODES[mode]():
            got, got_steps = everything(f), trained(f)
            if mode == "flushing":  # a call leaves the mode as it was
                kept = torch.full((1,), 1e-30).mul(1e-12)
    finally:
        torch.set_num_threads(1)
    assert [name for name in want if not same_bits(got[name], want[name])] == []
    assert all(map(same_bits, got_steps, steps))
    if mode == "flushing" and X86:
        assert kept == 0


EARLY = """
import sys, torch
sys.path[:0] = ["tests"]
torch.set_num_threads(2)
assert torch.set_flush_denormal(True)  # before there is a pool: its threads are born with this mode
torch.arange(1 << 20).float().add_(1)
import test_float_mode as t, bdkernels.backends.cpu as cpu
torch.set_flush_denormal(False)
made = t.half_zeros(), t.subnormal()
torch.set_flush_denormal(True)
print(cpu.isa(), t.checksum([t.everything(f) for f in made]), flush=True)

import ctypes
libm = ctypes.CDLL("libm.so.6")
users, items, none = torch.full((2, 3), 1e30), torch.full((40, 3), 1e30), torch.empty(0)
ids = torch.zeros(2, 3, dtype=torch.int64)
assert libm.feenableexcept(0x1D) >= 0  # invalid, division by zero, overflow and underflow end the process
overflow = torch.ops.bdkernels_cpu.score(users, items, none, ids)
libm.fedisableexcept(0x1D)
assert overflow.isinf().all()
"""
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | env)


def checksum(parts: list[dict[str, torch.Tensor]]) -> int:
    return zlib.crc32(b"".join(x.numpy().tobytes() for part in parts for x in part.values()))


@pytest.mark.skipif(not X86, reason="processors of another kind may not flush")
@pytest.mark.parametrize("isa", cpu.ISAS)
def test_threads_that_are_born_flushing_change_no_bit(isa):
    """The mode is there before the pool of threads is, in every instruction set. Nor do exceptions that trap end an operator."""
    if isa != "portable" and isa not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this CPU has no {isa}")
    out = run(EARLY, BDKERNELS_ISA=isa)
    assert out.returncode == 0, (out.returncode, out.stderr)
    assert out.stdout.split() == [isa, str(checksum([expected(make)[0] for make in (half_zeros, subnormal)]))]
