"""The CUDA kernels of the stage score have the bits of the reference."""

import pytest
import torch

import bdkernels as bd
from bdkernels.backends import cuda, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n", "d", "c"), [(3, 50, 8, 7), (1, 1, 1, 1), (5, 33, 31, 129), (2, 9, 65, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_listed_items(cuda_device, b, n, d, c, dtype, bias):
    f = bd.Factors(torch.randn(b, d), torch.randn(n, d), torch.randn(n) if bias else None)
    f = bd.Factors(*(t if t is None else t.to(dtype).to(cuda_device) for t in f))
    ids = torch.randint(0, n, (b, c), device=cuda_device)
    got, want = bd.score(f, ids, backend="cuda"), bd.score(f, ids, backend="reference")
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize(("b", "c"), [(0, 3), (3, 0)])
def test_nothing_listed(cuda_device, b, c):
    f = bd.Factors(torch.randn(b, 4, device=cuda_device), torch.randn(9, 4, device=cuda_device))
    ids = torch.zeros(b, c, dtype=torch.int64, device=cuda_device)
    assert bd.score(f, ids, backend="cuda").shape == (b, c)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 1), (65, 130, 16), (3, 33, 37), (2, 5, 0), (0, 5, 3), (2, 0, 3)])
@pytest.mark.parametrize("blocks", [1, 2048])
def test_block_of_the_catalog(cuda_device, monkeypatch, b, n, d, dtype, blocks):
    monkeypatch.setattr(cuda, "BLOCKS", blocks)
    f = bd.Factors(torch.randn(b, d), torch.randn(n, d), torch.randn(n))
    f.item_bias[::2], f.item_factors[::2] = -0.0, 0.0
    f = bd.Factors(*(t.to(dtype).to(cuda_device) for t in f))
    got, want = cuda.score_block(f), reference.score_block(f)
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))
