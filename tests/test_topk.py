"""topk: the total order, seen items never, -1 where there are too few."""

import numpy as np
import oracle
import pytest
import torch

import bdkernels as bd
from bdkernels import reference


@pytest.mark.parametrize(("b", "n", "d", "k"), [(1, 1, 1, 1), (3, 17, 1, 17), (5, 101, 3, 7), (2, 1025, 2, 300)])
@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("tile", [1 << 18, 40])
def test_against_sort(rng, monkeypatch, backend, b, n, d, k, with_seen, tile):
    monkeypatch.setattr(reference, "TILE_ELEMENTS", tile)
    f = oracle.factors(rng, b, n, d)
    seen = oracle.random_seen(rng, b, n, 20) if with_seen else None
    got = bd.topk(f, k, seen, backend=backend)
    s, ranks = oracle.scores(f), oracle.ranks(f, seen)
    for row in range(b):
        candidates = np.setdiff1d(np.arange(n), oracle.seen_row(seen, row))
        want = candidates[np.argsort(ranks[row, candidates])][:k]
        missing = k - len(want)
        assert got.ids[row].tolist() == want.tolist() + [-1] * missing
        assert got.scores[row].tolist() == s[row, want].tolist() + [-np.inf] * missing


def test_ties_keep_the_lower_ids(backend):
    f = bd.Factors(torch.ones(1, 1), torch.ones(500, 1))
    assert bd.topk(f, 9, backend=backend).ids.tolist() == [list(range(9))]


def test_agrees_with_rank(backend):
    f = bd.Factors(torch.randn(4, 6), torch.randn(300, 6), torch.randn(300))
    best = bd.topk(f, 50, backend=backend)
    assert torch.equal(bd.rank(f, best.ids, backend=backend), torch.arange(1, 51).expand(4, 50))
    assert torch.equal(bd.score(f, best.ids, backend=backend), best.scores)
