"""The CUDA kernels of the stage rank count what the reference counts, whatever the variant, the split or the order of threads."""

import pytest
import torch

import bdkernels as bd
from bdkernels.backends import cuda, precision, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=[1, 2048], ids=["one-part", "many-parts"])
def blocks(request, monkeypatch):
    """One block a tile of users, which then goes through all tiles of items; or as many parts as there are tiles."""
    monkeypatch.setattr(cuda, "BLOCKS", request.param)


def factors(b, n, d, dtype, bias, device, coarse=False):
    """`coarse` ones have small integers: scores tie by the dozen."""
    tables = [torch.randn(b, d), torch.randn(n, d), torch.randn(n) if bias else None]
    tables = [t if t is None else ((t * 0.7).round() if coarse else t).to(dtype).to(device) for t in tables]
    return bd.Factors(*tables)


def some_seen(b, n, device):
    rows = torch.rand(b, n) < torch.rand(b, 1)
    rows[0] = True  # all of them
    rows[-1] = b == 1  # none
    return bd.Seen.from_pairs(*rows.nonzero().T, b).to(device)


def check(f, thresholds, tie_ids, seen=None, item_offset=0):
    arguments = thresholds, tie_ids, seen, item_offset
    got, want = (bd.count_above(f, *arguments, backend=backend) for backend in ("cuda", "reference"))
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("b", "n", "d", "c"), [(1, 1, 1, 1), (65, 70, 16, 3), (3, 257, 31, 33), (17, 130, 20, 129), (9, 140, 8, 513)]
)
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
def test_own_items(cuda_device, blocks, b, n, d, c, dtype, coarse):
    """Each item's rank among all: no item beats itself, and the seen ones beat none."""
    f = factors(b, n, d, dtype, d % 2, cuda_device, coarse)
    ids, seen = torch.randint(0, n, (b, c), device=cuda_device), some_seen(b, n, cuda_device)
    for s in (None, seen):
        got, want = (bd.rank(f, ids, s, backend=backend) for backend in ("cuda", "reference"))
        assert torch.equal(got, want)


def test_more_thresholds_than_a_piece(cuda_device):
    f = factors(2, 150, 5, torch.float32, True, cuda_device, coarse=True)
    ids = torch.randint(0, 150, (2, 2100), device=cuda_device)
    assert torch.equal(bd.rank(f, ids, backend="cuda"), bd.rank(f, ids, backend="reference"))


@pytest.mark.parametrize("c", [2, 4, 5, 64, 65, 128, 256, 257, 512, 1024, 1025])
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
def test_any_number_of_thresholds(cuda_device, c, coarse):
    """Rows of thresholds that are full, have one too many, or are padded to the next power of 2; -inf before and inf after."""
    f = factors(3, 90, 4, torch.float32, True, cuda_device, coarse)
    f.item_bias[:3] = torch.tensor([torch.inf, -torch.inf, 1e30], device=cuda_device)
    thresholds = torch.randn(3, c, device=cuda_device).mul(2)
    thresholds = thresholds.round() if coarse else thresholds
    thresholds[1, 0], thresholds[1, -1], thresholds[2] = -torch.inf, torch.inf, thresholds[2, 0]
    check(f, thresholds, torch.randint(0, 90, (3, c), device=cuda_device))


def test_rows_of_a_tile_that_are_no_users(cuda_device):
    """Their scores are what the items' biases are, NaN too, and come before nothing."""
    f = factors(1, 70, 4, torch.float32, True, cuda_device)
    f.user_factors.zero_()
    f.item_bias[::3] = torch.inf
    check(f, torch.full((1, 3), torch.inf, device=cuda_device), torch.full((1, 3), 30, device=cuda_device))


@pytest.mark.parametrize("offset", [0, 1000, 2**31 - 200])
def test_shard(cuda_device, offset):
    """Thresholds and ties from anywhere, infinities, zeros of both signs and subnormals, on items that start at an offset."""
    f = factors(4, 100, 3, torch.float32, True, cuda_device, coarse=True)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45, 3e38, 1.0, -2.0], device=cuda_device)
    thresholds = special.repeat(4, 3)
    tie_ids = torch.randint(offset, offset + 100, thresholds.shape, device=cuda_device)
    tie_ids[:, ::4] = torch.tensor([0, 2**31, offset, offset + 99, -5, 2**40, 1], device=cuda_device)
    seen = some_seen(4, 100, cuda_device)
    check(f, thresholds, tie_ids, seen._replace(indices=seen.indices + offset), offset)
    check(f, thresholds[:, :4].T, tie_ids[:, :4], None, offset)


def test_infinite_and_signed_zero_scores(cuda_device):
    items = torch.tensor([[0.0], [-0.0], [torch.inf], [-torch.inf], [1e-45], [-1e-45], [2.0]], device=cuda_device)
    f = bd.Factors(torch.tensor([[1.0], [-1.0]], device=cuda_device), items)
    ids = torch.arange(7, device=cuda_device).repeat(2, 1)
    assert torch.equal(bd.rank(f, ids, backend="cuda"), bd.rank(f, ids, backend="reference"))


def test_strided_rows(cuda_device):
    table = torch.randn(90, 24, device=cuda_device)
    users = torch.randn(5, 8, device=cuda_device)
    ids = torch.randint(0, 90, (5, 40), device=cuda_device)
    for first in (0, 1, 4):  # rows at 16 bytes, and not
        f = bd.Factors(users, table[:, first : first + 8])
        assert torch.equal(bd.rank(f, ids, backend="cuda"), bd.rank(f, ids, backend="reference"))


@pytest.mark.parametrize("b", [0, 2])
@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("d", [0, 2])
@pytest.mark.parametrize("c", [0, 2])
def test_nothing_there(cuda_device, b, n, d, c):
    f = factors(b, n, d, torch.float32, True, cuda_device)
    thresholds = torch.randn(b, c, device=cuda_device)
    check(f, thresholds, torch.zeros(b, c, dtype=torch.int64, device=cuda_device))
    block = torch.randn(b, n, device=cuda_device)
    got = bd.count_above_block(block, thresholds, torch.zeros_like(thresholds, dtype=torch.int64), backend="cuda")
    assert torch.equal(got, (block[:, None] > thresholds[:, :, None]).sum(2))


@pytest.mark.parametrize(("b", "n", "c"), [(1, 1, 1), (3, 300, 65), (2, 20, 4200)])
def test_block_of_scores(cuda_device, blocks, b, n, c):
    scores, thresholds = (torch.randn(b, size, device=cuda_device).mul(3).round() for size in (n, c))
    tie_ids = torch.randint(0, n, (b, c), device=cuda_device)
    seen = some_seen(b, n, cuda_device)
    for s in (None, seen):
        got, want = (
            bd.count_above_block(scores, thresholds, tie_ids, s, backend=backend) for backend in ("cuda", "reference")
        )
        assert torch.equal(got, want)


def test_only_live_rows_are_counted(cuda_device):
    f = factors(150, 80, 6, torch.float32, False, cuda_device)
    thresholds = torch.randn(150, 5, device=cuda_device)
    ids = torch.zeros(150, 5, dtype=torch.int64, device=cuda_device)
    seen = some_seen(150, 80, cuda_device)
    want = reference.count_above(f, thresholds, ids, seen, 0)
    for live in (0, 1, 64, 70, 149, 150, 1000):
        got = cuda.count_above(f, thresholds, ids, seen, 0, torch.tensor(live, device=cuda_device))
        assert torch.equal(got[:live], want[:live])
        assert not got[live:].any()


@pytest.mark.parametrize("user", [0, 7])
def test_nan_is_an_error(cuda_device, user):
    if cuda_device.type == "cuda":
        pytest.skip("an asynchronous error on a GPU, which would end the process")
    f = factors(8, 100, 4, torch.float32, False, cuda_device)
    f.user_factors[user, 3], f.item_factors[70, 3] = torch.inf, 0.0
    ids = torch.zeros(8, 3, dtype=torch.int64, device=cuda_device)
    with pytest.raises(ValueError, match=f"factors: expected finite scores, got NaN for user row {user}, item 70"):
        bd.rank(f, ids, backend="cuda")
    scores = torch.randn(8, 100)
    scores[user, 70] = torch.nan
    with pytest.raises(ValueError, match=rf"scores: expected no NaN, got NaN at \[{user}, 70\]"):
        bd.count_above_block(scores, torch.randn(8, 3), ids, backend="cuda")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_order_of_threads_changes_nothing(cuda_device, monkeypatch, seed):
    monkeypatch.setenv("CUSIM_SEED", seed)
    f = factors(20, 200, 24, torch.float16, True, cuda_device, coarse=True)
    ids, seen = torch.randint(0, 200, (20, 150), device=cuda_device), some_seen(20, 200, cuda_device)
    assert torch.equal(bd.rank(f, ids, seen, backend="cuda"), bd.rank(f, ids, seen, backend="reference"))


# A float32 table in each precision, and each 16-bit table in its own type.
ROUNDED = [(torch.float32, name) for name in precision.NAMES[1:]] + [(torch.bfloat16, "bf16"), (torch.float16, "fp16")]


@pytest.mark.parametrize(("dtype", "asked"), ROUNDED, ids=str)
@pytest.mark.parametrize(("b", "n", "d", "c"), [(1, 1, 1, 1), (70, 150, 40, 3), (3, 70, 64, 129), (2, 140, 7, 600)])
def test_tensor_cores_multiply_exactly_what_is_exact(cuda_device, monkeypatch, blocks, b, n, d, c, dtype, asked):
    """Quarters below 2: no operand is rounded, no sum either. Rows start at a multiple of 16 bytes for some d alone."""
    tables = [torch.randint(-7, 8, size, device=cuda_device) / 4 for size in ((b, d), (n, d), (n,))]
    f = bd.Factors(*(t.to(dtype) for t in tables[: 2 + d % 2]))
    ids, seen = torch.randint(0, n, (b, c), device=cuda_device), some_seen(b, n, cuda_device)
    monkeypatch.setenv(precision.VARIABLE, asked)
    for s in (None, seen):
        got, want = (bd.rank(f, ids, s, backend=backend) for backend in ("cuda", "reference"))
        assert torch.equal(got, want)


def to_operands(t, asked):
    """Rounded as tensor cores take them; tf32 keeps 10 bits of the fraction."""
    if asked != "tf32":
        return t.to({"bf16": torch.bfloat16, "fp16": torch.float16}[asked]).float()
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("asked", precision.NAMES[1:])
@pytest.mark.parametrize("c", [40, 140])
def test_tensor_cores_round_their_operands_alone(cuda_device, monkeypatch, asked, c):
    """Counts above thresholds in gaps between products of the rounded tables, where those of the tables themselves differ."""
    f = bd.Factors(torch.randn(20, 48, device=cuda_device), torch.randn(300, 48, device=cuda_device))
    rounded = to_operands(f.user_factors, asked).double() @ to_operands(f.item_factors, asked).double().T
    exact = f.user_factors.double() @ f.item_factors.double().T
    ranked = rounded.sort(1).values
    gaps = ranked[:, 1:] - ranked[:, :-1]
    narrow = gaps.where(gaps > 1e-4, torch.inf).topk(c, largest=False).indices  # but wide beside the rounding of sums
    thresholds = ((ranked[:, 1:] + ranked[:, :-1]) / 2).gather(1, narrow)
    monkeypatch.setenv(precision.VARIABLE, asked)
    got = bd.count_above(f, thresholds.float(), torch.zeros_like(narrow), backend="cuda")
    assert torch.equal(got, (rounded[:, None] > thresholds[:, :, None]).sum(2))
    assert not torch.equal(got, (exact[:, None] > thresholds[:, :, None]).sum(2))


def test_no_count_is_negative_whatever_was_rounded(cuda_device, monkeypatch):
    """An item that is seen and, exactly, just before the threshold, but not after rounding."""
    f = bd.Factors(torch.ones(1, 1, device=cuda_device), torch.tensor([[1 + 2**-12], [0.5]], device=cuda_device))
    seen = bd.Seen(torch.tensor([0, 1], device=cuda_device), torch.tensor([0], device=cuda_device))
    at = torch.full((1, 1), 1 + 2**-13, device=cuda_device), torch.zeros(1, 1, dtype=torch.int64, device=cuda_device)
    assert bd.count_above(f, *at, seen, backend="cuda").tolist() == [[0]]
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    assert bd.count_above(f, *at, backend="cuda").tolist() == [[0]]  # rounded to 1.0
    assert bd.count_above(f, *at, seen, backend="cuda").tolist() == [[0]]


@pytest.mark.parametrize(("dtype", "asked"), [(torch.bfloat16, "tf32"), (torch.float16, "bf16")], ids=str)
def test_tables_of_16_bits_are_never_rounded_to_another_type(cuda_device, monkeypatch, dtype, asked):
    f = factors(9, 90, 33, dtype, True, cuda_device)
    ids = torch.randint(0, 90, (9, 20), device=cuda_device)
    monkeypatch.setenv(precision.VARIABLE, asked)
    assert torch.equal(bd.rank(f, ids, backend="cuda"), bd.rank(f, ids, backend="reference"))


def test_a_precision_that_is_none(cuda_device, monkeypatch):
    f = factors(2, 5, 3, torch.float32, True, cuda_device)
    monkeypatch.setenv(precision.VARIABLE, "int4")
    with pytest.raises(ValueError, match="BDKERNELS_PRECISION: expected one of ieee, tf32, bf16, fp16, got 'int4'"):
        bd.rank(f, torch.zeros(2, 1, dtype=torch.int64, device=cuda_device), backend="cuda")
