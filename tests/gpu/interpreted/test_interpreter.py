"""The strict interpreter reports what it should: each fault here is planted."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interpreter import KernelError, strict


@triton.jit
def shift(x, y, n, by, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at + by, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def total(x, out, n, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.sum(tl.load(x + at, mask=at < n, other=0.0), 0)
    if ATOMIC:
        tl.atomic_add(out, s)
    else:
        tl.store(out, tl.load(out) + s)


@triton.jit
def product(a, b, out, PRECISION: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    i, k = tl.arange(0, M), tl.arange(0, K)
    x, y = tl.load(a + i[:, None] * K + k[None, :]), tl.load(b + k[:, None] * M + i[None, :])
    tl.store(out + i[:, None] * M + i[None, :], tl.dot(x, y, input_precision=PRECISION))


@triton.jit
def twice(x, y, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    v = tl.load(x + at)
    if WIDE:
        v = v.to(tl.float32)
    tl.store(y + at, (v + v).to(tl.bfloat16))


@triton.autotune([triton.Config({"BLOCK": 4}), triton.Config({"BLOCK": 8})], key=[])
@triton.jit
def depends_on_its_block(y, BLOCK: tl.constexpr):
    tl.store(y, BLOCK)


@triton.jit
def same_address(y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK) // 2, 1.0)


def test_out_of_bounds():
    x, y = torch.arange(10.0), torch.zeros(10)
    shift[(3,)](x, y, 10, 0, BLOCK=4)
    assert torch.equal(x, y)
    for by in (1, -1, 10**9):
        with pytest.raises(KernelError, match="load out of bounds"):
            shift[(3,)](x, y, 10, by, BLOCK=4)
    with pytest.raises(KernelError, match="store out of bounds"):
        shift[(3,)](x, y[:5].clone(), 6, 0, BLOCK=4)


def test_races():
    x = torch.arange(10.0)
    for seed in (None, 1, 2):
        with strict(seed=seed):
            out = torch.zeros(1)
            total[(3,)](x, out, 10, ATOMIC=True, BLOCK=4)
            assert out == 45
            with pytest.raises(KernelError, match="race: .* by program"):
                total[(3,)](x, out, 10, ATOMIC=False, BLOCK=4)
    with pytest.raises(KernelError, match="race: store"):
        shift[(3,)](x, x, 9, 1, BLOCK=4)
    with pytest.raises(KernelError, match="two lanes"):
        same_address[(1,)](torch.zeros(8), BLOCK=4)


def test_grids():
    for grid in ((0,), (1, 65536)):
        with pytest.raises(KernelError, match="cannot be launched"):
            shift[grid](torch.zeros(4), torch.zeros(4), 4, 0, BLOCK=4)


def test_products_round_as_on_a_gpu():
    a, b = torch.randn(16, 32), torch.randn(32, 16)
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, PRECISION="ieee", M=16, K=32)
    want = np.zeros((16, 16))
    for k in range(32):  # float64 holds the product of two float32 exactly; the sum's second rounding is rarely seen
        want = (want + a[:, k, None].double().numpy() * b[k].double().numpy()).astype(np.float32).astype(np.float64)
    assert (out.numpy() == want).mean() > 0.99
    product[(1,)](a, b, out, PRECISION="tf32", M=16, K=32)
    error = (out - (a.double() @ b.double()).float()).abs().max()
    assert 1e-4 < error < 1e-1
    with pytest.raises(KernelError, match="at least 8"):
        product[(1,)](a[:, :4].contiguous(), b[:4], out, PRECISION="ieee", M=16, K=4)


def test_bfloat16():
    x = torch.randn(64).bfloat16()
    y = torch.empty_like(x)
    twice[(1,)](x, y, WIDE=True, BLOCK=64)
    assert torch.equal(y, x * 2)
    with pytest.raises(KernelError, match="arithmetic in bf16"):
        twice[(1,)](x, y, WIDE=False, BLOCK=64)


def test_configurations_must_agree():
    with pytest.raises(AssertionError, match="configurations disagree"):
        depends_on_its_block[(1,)](torch.zeros(1))
    with strict(config=1):
        depends_on_its_block[(1,)](y := torch.zeros(1))
        assert y == 8
