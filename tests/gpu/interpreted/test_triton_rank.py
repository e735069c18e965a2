"""The Triton kernels of score and rank against the reference, bit for bit."""

import oracle
import pytest
import torch
from interpreter import strict

import bdkernels as bd
from bdkernels.backends import precision, reference
from bdkernels.backends.triton import rank, score

SIZES = [
    (3, 70, 5, 4),
    (1, 1, 1, 1),
    (17, 300, 33, 7),
    (33, 130, 8, 65),
    (2, 257, 40, 2),
]  # users, items, d, thresholds


def factors(b, n, d, bias, dtype=torch.float32, kind="normal"):
    """Rows that are wider than they look; "ties" are small integers, "extreme" the edges of fp32."""
    f = torch.randn(b, d + 2)[:, 1 : d + 1], torch.randn(n, d + 1)[:, :d], torch.randn(n) if bias else None
    if kind == "ties":
        f = tuple(None if t is None else t.mul(1.5).round() for t in f)
    if kind == "extreme":
        values = torch.tensor([0.0, -0.0, 1e-45, -1e-39, 3e38, 1.0, -2.0])
        f = tuple(None if t is None else values[torch.randint(0, 7, t.shape)] for t in f)
        f[1][:, 1:] = 0  # one product a score: no inf - inf
    return bd.Factors(*(None if t is None else t.to(dtype) for t in f))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_score(size, dtype):
    b, n, d, c = size
    f, ids = factors(b, n, d, bias=c > 3, dtype=dtype), torch.randint(0, n, (b, c))
    assert torch.equal(score.score(f, ids), reference.score(f, ids))
    few = f._replace(user_factors=f.user_factors[:2])
    assert torch.equal(score.score_block(few), reference.score_block(few))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["normal", "ties", "extreme"])
def test_count_above(size, kind, rng):
    b, n, d, c = size
    f, seen = factors(b, n, d, bias=kind != "extreme", kind=kind), oracle.random_seen(rng, b, n, min(n, 60))
    ids = torch.randint(0, n, (b, c))
    thresholds = reference.score(f, ids)
    for rows in (None, seen):
        want = reference.count_above(f, thresholds, ids, rows, 0)
        for config in range(4 if rows is None else 1):
            with strict(config=config, seed=config):
                assert torch.equal(rank.count_above(f, thresholds, ids, rows, 0), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_of_half_the_size(dtype, rng):
    f, seen, ids = factors(5, 90, 20, True, dtype), oracle.random_seen(rng, 5, 90, 60), torch.randint(0, 90, (5, 3))
    arguments = f, reference.score(f, ids), ids, seen, 0
    with strict(config=0):
        assert torch.equal(rank.count_above(*arguments), reference.count_above(*arguments))


def test_shards_add_up_and_live_rows_are_enough(rng):
    f, seen = factors(40, 200, 6, False, kind="ties"), oracle.random_seen(rng, 40, 200, 60)
    ids = torch.randint(0, 200, (40, 5))
    thresholds = reference.score(f, ids)
    want = reference.count_above(f, thresholds, ids, seen, 0)
    with strict(config=1):
        parts = [
            rank.count_above(f._replace(item_factors=f.item_factors[a:z]), thresholds, ids, seen, a)
            for a, z in ((0, 77), (77, 200))
        ]
        assert torch.equal(parts[0] + parts[1], want)
        for live in (0, 1, 33, 40):
            got = rank.count_above(f, thresholds, ids, seen, 0, torch.tensor(live))
            assert torch.equal(got[:live], want[:live])


def test_ties_of_any_id_and_thresholds_of_any_value():
    scores = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf, 1.0, 0.0]])
    thresholds = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf, 1e-45, torch.inf, -torch.inf, -1e-45, -0.0]])
    ties = torch.tensor([[1, 2**31, 0, 3, 0, 2**31, 2**31, 0, 5]])
    for offset in (0, 3):
        arguments = scores, thresholds, ties, None, offset
        with strict(config=0):
            assert torch.equal(rank.count_above_block(*arguments), reference.count_above_block(*arguments))


@pytest.mark.parametrize(("b", "n", "c"), [(3, 200, 5), (0, 5, 2), (3, 0, 2), (2, 9, 0)])
def test_count_above_block(b, n, c, rng):
    scores, thresholds = torch.randn(b, n).round(decimals=1), torch.randn(b, c).round(decimals=1)
    ties, seen = torch.randint(0, 100 + n, (b, c)), oracle.random_seen(rng, b, n, min(n, 60)) if n else None
    arguments = scores, thresholds, ties, seen, 0
    with strict(config=2):
        assert torch.equal(rank.count_above_block(*arguments), reference.count_above_block(*arguments))


def test_nan_is_found():
    f = factors(3, 150, 4, False)
    f.item_factors[140, 2] = torch.nan
    arguments = torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64), None, 0
    with strict(config=0):
        with pytest.raises(ValueError, match="got NaN for user row 2, item 140"):
            rank.count_above(f, *arguments)
        with pytest.raises(ValueError, match=r"scores: expected no NaN, got NaN at \[1, 7\]"):
            rank.count_above_block(
                torch.zeros(3, 9).index_put((torch.tensor(1), torch.tensor(7)), torch.tensor(torch.nan)), *arguments
            )


@pytest.mark.parametrize("asked", precision.NAMES[1:])
def test_tensor_cores_are_right_to_their_rounding(monkeypatch, asked):
    monkeypatch.setenv(precision.VARIABLE, asked)
    f = bd.Factors(torch.randint(-4, 5, (5, 24)) / 4, torch.randint(-4, 5, (200, 24)) / 4)  # exact in all of them
    ids = torch.randint(0, 200, (5, 4))
    arguments = f, reference.score(f, ids), ids, None, 0
    with strict(config=0):
        assert torch.equal(rank.count_above(*arguments), reference.count_above(*arguments))
        f = bd.Factors(torch.randn(5, 24), torch.randn(200, 24))
        arguments = f, reference.score(f, ids), ids, None, 0
        off = (rank.count_above(*arguments) - reference.count_above(*arguments)).abs()
    assert off.max() <= 8 and (asked == "fp16" or off.max() > 0)
