"""The Triton kernel of topk against the reference: the same scores and ids, ties by id; few tiles, since sorting is slow here."""

import oracle
import pytest
import torch
from interpreter import strict
from test_triton_rank import factors

from bdkernels.backends import reference
from bdkernels.backends.triton import topk


@pytest.mark.parametrize(
    ("b", "n", "d", "k"),
    [(3, 150, 5, 7), (1, 1, 1, 1)],
)
@pytest.mark.parametrize("kind", ["normal", "ties", "extreme"])
def test_topk(b, n, d, k, kind, rng):
    f = factors(b, n, d, bias=kind == "normal", kind=kind)
    with strict(seed=k):
        seen = oracle.random_seen(rng, b, n, min(n, 90)) if n > 1 else None
        got, want = topk.topk(f, k, seen), reference.topk(f, k, seen)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_several_runs_of_tiles(monkeypatch, rng):
    monkeypatch.setattr(topk, "TILES", 1)
    f, seen = factors(5, 140, 3, True, kind="ties"), oracle.random_seen(rng, 5, 140, 50)
    got, want = topk.topk(f, 30, seen), reference.topk(f, 30, seen)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_of_half_the_size(dtype):
    f = factors(3, 60, 9, True, dtype)
    got, want = topk.topk(f, 5, None), reference.topk(f, 5, None)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_nothing_to_rank_and_nan():
    f = factors(2, 0, 3, False)
    scores, ids = topk.topk(f, 3, None)
    assert (scores == -torch.inf).all() and (ids == -1).all()
    assert topk.topk(factors(0, 5, 3, False), 3, None)[0].shape == (0, 3)
    f = factors(2, 90, 3, False)
    f.user_factors[1, 0] = torch.nan
    with pytest.raises(ValueError, match="got NaN for user row 1"):
        topk.topk(f, 3, None)
