"""The CUDA kernels of the stage topk: ids and scores are those of the reference, however the catalog is cut."""

from math import ceil

import pytest
import torch

import bdkernels as bd
from bdkernels.backends import cuda
from bdkernels.types.seen import Seen

INF = float("inf")


@pytest.fixture(params=[(0, 0), (1, 0), (3, 128)], ids=str)
def cut(request, monkeypatch):
    """One block for all items; as many as there are tiles; two parts, the second with a bar."""
    monkeypatch.setattr(cuda, "PLACES", request.param[0])
    monkeypatch.setattr(cuda, "FIRST_PART", request.param[1])


def check(f: bd.Factors, k: int, seen: Seen | None = None) -> None:
    (scores, ids), (want_scores, want_ids) = (bd.topk(f, k, seen, backend=name) for name in ("cuda", "reference"))
    assert torch.equal(ids, want_ids)
    assert torch.equal(scores.view(torch.int32), want_scores.view(torch.int32))


def random_factors(b, n, d, device, dtype=torch.float32, bias=True):
    f = bd.Factors(torch.randn(b, d), torch.randn(n, d), torch.randn(n) if bias else None)
    return bd.Factors(*(None if t is None else t.to(dtype).to(device) for t in f))


@pytest.mark.parametrize(
    ("b", "n", "d", "k"),
    [
        (1, 1, 1, 1),
        (3, 33, 5, 33),
        (65, 257, 17, 10),
        (2, 1500, 16, 31),
        (2, 700, 3, 257),
        (1, 129, 0, 4),
        (2, 1100, 2, 400),
        (0, 9, 4, 2),
    ],
)
def test_sizes(cuda_device, cut, b, n, d, k):
    check(random_factors(b, n, d, cuda_device), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_dtypes(cuda_device, dtype, bias):
    check(random_factors(3, 200, 19, cuda_device, dtype, bias), 12)


def test_strided_items(cuda_device):
    f = random_factors(3, 200, 20, cuda_device)
    check(f._replace(user_factors=f.user_factors[:, :7].contiguous(), item_factors=f.item_factors[:, 6:13]), 9)


def test_seen_items_are_left_out(cuda_device, monkeypatch):
    """Users who have seen nothing, all, all but one, and every other item."""
    n = 300
    rows = [torch.arange(0), torch.arange(n), torch.arange(n - 1), torch.arange(0, n, 2)]
    seen = Seen(torch.tensor([0, *map(len, rows)]).cumsum(0), torch.cat(rows)).to(cuda_device)
    f = random_factors(4, n, 6, cuda_device)
    for places in (1, 3):  # ranges that begin and end among what is seen
        monkeypatch.setattr(cuda, "PLACES", places)
        check(f, 200, seen)


def test_ties_fall_to_the_lower_id(cuda_device, monkeypatch):
    """More equal scores than a list takes, in each of two ranges, and as many as the bar of the part before."""
    monkeypatch.setattr(cuda, "PLACES", 2)
    f = random_factors(2, 4500, 2, cuda_device, bias=False)
    check(f._replace(user_factors=torch.zeros_like(f.user_factors)), 20)
    check(f._replace(item_factors=f.item_factors.sign()), 20)


def test_lists_full_of_seen_items(cuda_device, monkeypatch):
    """Fewer than k of the best so far are left, and the bar stays where it was: nowhere."""
    monkeypatch.setattr(cuda, "PLACES", 1)
    steps = torch.arange(4500, dtype=torch.float32, device=cuda_device)[:, None]
    best = torch.cat([torch.arange(1700), torch.arange(2500, 4500)])
    seen = Seen(torch.tensor([0, len(best), len(best)]), best).to(cuda_device)
    check(bd.Factors(torch.ones(2, 1, device=cuda_device), steps), 40, seen)


@pytest.mark.parametrize("rising", [False, True])
def test_lists_that_overflow_again_and_again(cuda_device, cut, rising):
    """Scores in the order of ids: each of them is better than all before, or none is."""
    steps = torch.arange(2000, dtype=torch.float32, device=cuda_device)[:, None]
    check(bd.Factors(torch.full((2, 1), 1.0 if rising else -1.0, device=cuda_device), steps), 130)


def test_signed_zeros_infinities_subnormals(cuda_device):
    values = [0.0, -0.0, INF, -INF, 1e-45, -1e-45, 3e38, -0.0, 0.0, -INF]
    bias = torch.tensor(values, device=cuda_device)
    f = bd.Factors(torch.zeros(2, 3, device=cuda_device), torch.ones(len(values), 3, device=cuda_device), bias)
    for k in range(1, len(values) + 1):
        check(f, k)


def test_merges_of_more_than_there_is_room_for(cuda_device, monkeypatch):
    """Ranges that each keep more than k of their items, whose scores fall: 4,096 keys of a user, and 3,100."""
    monkeypatch.setattr(cuda, "PLACES", 32)
    monkeypatch.setattr(cuda, "FIRST_PART", 4096)
    steps = torch.arange(4096, dtype=torch.float32, device=cuda_device)[:, None] * 397 % 4096
    for k in (1, 90, 400):
        check(bd.Factors(torch.ones(2, 1, device=cuda_device), steps), k)


def test_three_parts(cuda_device, monkeypatch):
    monkeypatch.setattr(cuda, "FIRST_PART", 128)
    f = random_factors(3, 33_000, 1, cuda_device)
    assert launches(3, 33_000, 7)[:, :2].tolist() == [[0, 128], [128, 4096], [4096, 33_000]]
    check(f, 7)


def test_long_lists(cuda_device):
    for k in (cuda.MOST_TOPK, cuda.MOST_TOPK + 1):
        check(random_factors(1, 4500, 1, cuda_device), k)


def launches(b, n, k, places=264):
    """[parts, 4]: first item, end, blocks, tiles of each block."""
    like = torch.empty(0, dtype=torch.int64)
    return torch.ops.bdkernels_cuda.topk_launches(like, b, n, k, places, cuda.FIRST_PART)


@pytest.mark.parametrize("b", [1, 64, 65, 256, 1000, 1024, 4096])
@pytest.mark.parametrize("places", [2 * 108, 2 * 132, 2 * 148])
def test_blocks_fill_whole_waves(cuda_device, b, places):
    """Of A100, H100 and B200, with two blocks a multiprocessor: hardly more time than work, were it spread evenly."""
    parts = launches(b, 1_000_000, 100, places)
    assert parts[0, 0] == 0 and parts[-1, 1] == 1_000_000 and (parts[1:, 0] == parts[:-1, 1]).all()
    first, end, blocks, tiles = parts[-1].tolist()
    assert end - first > 0.9 * 1_000_000
    waves = ceil(blocks / places)
    used = ceil(b / 64) * (end - first) / 128 / (waves * places * tiles)
    assert used > 0.9, (blocks, tiles, used)


def test_waves_of_an_h100(cuda_device):
    """64 users: one wave of 261 blocks for 264 places; 1,024: two, full."""
    few, many = (launches(b, 1_000_000, 100)[-1, 2:].tolist() for b in (64, 1024))
    assert few == [261, 28] and many == [528, 222]


@pytest.mark.parametrize("item", [0, 130, 199])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_nan_is_an_error(cuda_device, item, sign):
    f = random_factors(3, 200, 4, cuda_device, bias=False)
    f.item_factors[item, 1] = torch.tensor(float("nan")).copysign(torch.tensor(sign))
    if cuda_device.type == "cuda":
        pytest.skip("a device-side assertion ends the process")
    with pytest.raises(ValueError, match=f"got NaN for user row 0, item {item}"):
        bd.topk(f, 5, backend="cuda")
