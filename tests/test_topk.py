"""topk: the total order, seen items never, -1 where there are too few."""

import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import cpu, reference

INF = float("inf")

# users, items, d, k: ones, fewer than lanes, odd, one past a tile, k = N, k beyond a tile, no factors at all
SHAPES = [
    (1, 1, 1, 1),
    (3, 7, 1, 7),
    (3, 17, 1, 17),
    (5, 101, 3, 7),
    (2, 1025, 2, 300),
    (65, 67, 4, 2),
    (4, 5003, 16, 2048),
    (2, 40, 0, 9),
    (0, 9, 2, 3),
]


def expected(f: bd.Factors, k: int, seen: bd.Seen | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and ids by a stable sort of all scores, one user at a time."""
    dense = oracle.scores(f)
    scores, ids = np.full((len(dense), k), -np.inf, np.float32), np.full((len(dense), k), -1)
    for row, s in enumerate(dense):
        candidates = np.setdiff1d(np.arange(len(s)), oracle.seen_row(seen, row))
        best = candidates[np.argsort(-s[candidates], kind="stable")][:k]
        scores[row, : len(best)], ids[row, : len(best)] = s[best], best
    return torch.from_numpy(scores), torch.from_numpy(ids)


def check(f: bd.Factors, k: int, seen: bd.Seen | None, backend: str) -> None:
    got, (scores, ids) = bd.topk(f, k, seen, backend=backend), expected(f, k, seen)
    assert got.scores.dtype == torch.float32
    assert torch.equal(got.ids, ids)
    assert torch.equal(got.scores, scores)


@pytest.mark.parametrize(("b", "n", "d", "k"), SHAPES)
@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("tile", [0, 40])
def test_against_sort(rng, monkeypatch, backend, b, n, d, k, with_seen, tile):
    monkeypatch.setattr(cpu, "TILE", tile)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", tile or 1 << 18)
    f = oracle.factors(rng, b, n, d)
    check(f, k, oracle.random_seen(rng, b, n, 20) if with_seen else None, backend)


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 100, 2048, 4099])
@pytest.mark.parametrize("b", [1, 2, 9])
def test_every_k(rng, two_threads, backend, b, k):
    """From one to N, for users that are scored alone and together; scores are full of ties at the k-th place."""
    f = oracle.factors(rng, b, 4099, 2)
    check(f, k, oracle.random_seen(rng, b, 4099, 3000), backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("b", [1, 5])
def test_half_precision_and_strides(rng, backend, dtype, b):
    """Tables that are a part of larger ones, with factors past the last whole vector."""
    wide = oracle.exact(rng, 1300, 60).to(dtype)
    f = bd.Factors(oracle.exact(rng, b, 37).to(dtype), wide[7:1207, 3:40], oracle.exact(rng, 1200).to(dtype))
    assert not f.item_factors.is_contiguous()
    check(f, 50, oracle.random_seen(rng, b, 1200, 100), backend)
    check(f._replace(item_factors=wide.T[:37, :1200].T, item_bias=None), 50, None, backend)


@pytest.mark.parametrize("b", [1, 6])
def test_ties_keep_the_lower_ids(two_threads, backend, b):
    """All equal, and with one winner and one seen item: across tiles, ranges and the k-th place."""
    f = bd.Factors(torch.ones(b, 1), torch.ones(9000, 1))
    assert torch.equal(bd.topk(f, 90, backend=backend).ids, torch.arange(90).expand(b, 90))
    f.item_factors[8999] = 2
    got = bd.topk(f, 90, oracle.seen_of([[0, 5]] * b), backend=backend)
    assert got.ids[0].tolist() == [8999, 1, 2, 3, 4, *range(6, 91)]


@pytest.mark.parametrize("order", ["rising", "falling", "saw"])
@pytest.mark.parametrize("k", [1, 100, 3000])
def test_adversarial_orders(two_threads, backend, order, k):
    """Scores that rise with the id beat every bar that was set before."""
    i = torch.arange(10007.0)
    values = {"rising": i, "falling": -i, "saw": i % 97}[order]
    check(bd.Factors(torch.tensor([[1.0], [2.0], [-1.0], [0.0], [3.0]]), values[:, None]), k, None, backend)


def test_too_few_candidates(backend):
    """Users who have seen all, all but one, the first, nothing."""
    f = bd.Factors(torch.ones(5, 1), torch.arange(50.0)[:, None])
    seen = oracle.seen_of([range(50), range(49), range(1, 50), [0], []])
    check(f, 50, seen, backend)
    got = bd.topk(f, 3, seen, backend=backend)
    assert got.ids[:2].tolist() == [[-1, -1, -1], [49, -1, -1]]
    assert got.scores[:2].tolist() == [[-INF, -INF, -INF], [49, -INF, -INF]]


def test_infinite_scores_and_signed_zeros(backend):
    """An item that scores -inf is still a candidate; -0.0 and 0.0 are one score."""
    values = torch.tensor([-INF, 1.0, INF, -INF, -0.0, 0.0, -0.0, INF]).repeat(300)
    f = bd.Factors(torch.ones(1, 0), torch.ones(2400, 0), values)
    for k in (1, 700, 1800, 2399, 2400):
        check(f, k, oracle.seen_of([[2, 3, 4]]), backend)
    got = bd.topk(f, 2400, oracle.seen_of([[2, 3, 4]]), backend=backend)
    assert got.ids[0, -4:].tolist() == [2395, -1, -1, -1]


@pytest.mark.parametrize("b", [1, 2, 20])
@pytest.mark.parametrize("where", [0, 700, 2999])
def test_nan_is_an_error_wherever_it_hides(two_threads, backend, b, where):
    """Even far below the k-th place, and for a seen item."""
    f = bd.Factors(torch.ones(b, 1), torch.arange(3000.0, 0, -1)[:, None])
    f.item_factors[where] = float("nan")
    for seen in (None, oracle.seen_of([[where]] * b)):
        with pytest.raises(ValueError, match=f"NaN for user row 0, item {where}$"):
            bd.topk(f, 2, seen, backend=backend)


def test_agrees_with_rank_and_score(backend):
    """Rounded scores: the same bits as `score` gives, in the order of `rank`, whoever is scored alone."""
    f = bd.Factors(torch.randn(4, 21), torch.randn(300, 21), torch.randn(300))
    best = bd.topk(f, 50, backend=backend)
    assert torch.equal(bd.rank(f, best.ids, backend=backend), torch.arange(1, 51).expand(4, 50))
    assert torch.equal(bd.score(f, best.ids, backend=backend), best.scores)
    alone = bd.topk(f._replace(user_factors=f.user_factors[1:2]), 50, backend=backend)
    assert torch.equal(alone.ids, best.ids[1:2])
    assert torch.equal(alone.scores, best.scores[1:2])


@pytest.mark.parametrize("b", [1, 67, 130])
def test_same_result_whatever_the_tile_and_threads(monkeypatch, two_threads, backend, b):
    f = bd.Factors(torch.randn(b, 9), torch.randn(3001, 9).repeat(2, 1))
    seen = bd.Seen.from_pairs(torch.randint(0, b, (500,)), torch.randint(0, 6002, (500,)), b)
    want = bd.topk(f, 33, seen, backend=backend)
    for tile, threads in ((1, 2), (7, 1), (100, 2), (5000, 1), (0, 1)):
        monkeypatch.setattr(cpu, "TILE", tile)
        torch.set_num_threads(threads)
        got = bd.topk(f, 33, seen, backend=backend)
        assert torch.equal(got.ids, want.ids)
        assert torch.equal(got.scores, want.scores)


@pytest.mark.parametrize("isa", cpu.ISAS)
def test_every_instruction_set(isa):
    """This file's results on the C++ backend, in a process of its own."""
    if backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    if os.environ.get("BDKERNELS_ISA"):
        pytest.skip("BDKERNELS_ISA is set: this is that process, or one that tests a single instruction set")
    env = {**os.environ, "BDKERNELS_ISA": isa}
    code = "from bdkernels import backends; print(backends.missing('cpu') or '')"
    reason = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    if "one that this CPU has" in reason:
        pytest.skip(f"this CPU has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not reference", __file__]
    out = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert out.returncode == 0, out.stdout
    assert "test_every_instruction_set" in out.stdout  # what is left out is said: here only this test
    assert "backend cpu:" not in out.stdout
