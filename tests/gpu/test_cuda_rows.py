"""Rows of any alignment go through the product of the CUDA kernels, by copies of 16, 8 or 4 bytes: the bits stay the same."""

import pytest
import torch

import bdkernels as bd
from bdkernels.backends import cuda, precision, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def same(got, want):
    return (
        torch.equal(got.view(torch.int32), want.view(torch.int32))
        if got.is_floating_point()
        else torch.equal(got, want)
    )


def check(f, ids):
    """Each stage that multiplies tiles."""
    assert same(cuda.score_block(f), reference.score_block(f))
    assert same(bd.rank(f, ids, backend="cuda"), bd.rank(f, ids, backend="reference"))
    assert all(map(same, bd.topk(f, 3, backend="cuda"), bd.topk(f, 3, backend="reference")))


def table(n, d, dtype, device, first=0, stride=None):
    """[n, d] whose rows begin `first` elements into an allocation and `stride` apart; what is not theirs is NaN."""
    stride = d if stride is None else stride
    whole = torch.full((first + n * stride + 1,), torch.nan)
    rows = whole.as_strided((n, d), (stride, 1), first).copy_(torch.randn(n, d))
    whole = whole.to(dtype).to(device)
    return whole.as_strided(rows.shape, rows.stride(), first)


# Multiples of 2 (16-bit tables), 4, 8 and 16 bytes; less than a piece, whole pieces, a piece and a rest.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 5, 33, 36, 50, 64])
def test_whole_rows(cuda_device, dtype, d):
    f = bd.Factors(torch.randn(3, d, device=cuda_device).to(dtype), table(131, d, dtype, cuda_device))
    check(f, torch.randint(0, 131, (3, 4), device=cuda_device))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    ("d", "first", "stride"),
    [(64, 1, None), (64, 2, None), (50, 3, 51), (5, 0, 8), (6, 2, 8), (20, 0, 24), (20, 1, 22)],
)
def test_rows_inside_of_a_larger_table(cuda_device, dtype, d, first, stride):
    """Whose rows end before, or whose storage begins after, a multiple of what a copy takes."""
    f = bd.Factors(torch.randn(3, d, device=cuda_device).to(dtype), table(70, d, dtype, cuda_device, first, stride))
    check(f, torch.randint(0, 70, (3, 4), device=cuda_device))


@pytest.mark.parametrize("first", [1, 2, 4])
def test_users_at_any_address(cuda_device, first):
    users = table(5, 16, torch.float32, cuda_device, first)
    check(bd.Factors(users, torch.randn(9, 16, device=cuda_device)), torch.arange(9, device=cuda_device).repeat(5, 1))


@pytest.mark.parametrize("blocks", [1, 2048])
@pytest.mark.parametrize("d", [5, 17, 33])
def test_many_tiles(cuda_device, monkeypatch, blocks, d):
    """Of items in one block, and one; one, two and three pieces of factors in two stages."""
    monkeypatch.setattr(cuda, "BLOCKS", blocks)
    f = bd.Factors(torch.randn(3, d, device=cuda_device), torch.randn(200, d, device=cuda_device))
    check(f, torch.randint(0, 200, (3, 2), device=cuda_device))


@pytest.mark.parametrize("d", [5, 50, 64])
def test_tensor_cores(cuda_device, monkeypatch, d):
    """Past d there are zeros, even beside what is NaN. Quarters below 2: nothing is rounded."""
    items = table(70, d, torch.float16, cuda_device, 1, d + 1)
    items.copy_(torch.randint(-7, 8, items.shape, device=cuda_device) / 4)
    f = bd.Factors((torch.randint(-7, 8, (3, d), device=cuda_device) / 4).half(), items)
    ids = torch.randint(0, 70, (3, 4), device=cuda_device)
    monkeypatch.setenv(precision.VARIABLE, "fp16")
    assert same(bd.rank(f, ids, backend="cuda"), bd.rank(f, ids, backend="reference"))
