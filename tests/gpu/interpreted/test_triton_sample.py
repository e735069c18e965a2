"""The Triton kernels of sample against the reference: the same proposals, the same decisions."""

import oracle
import pytest
import torch
from draws import numbered

import bdkernels as bd
from bdkernels.backends import reference
from bdkernels.backends.triton import sample
from bdkernels.sampling import sampler
from bdkernels.weights import KINDS

SEEDS = [(0, 0), (1, 1), (-1, 2**32 - 1), (2**63 - 1, 5), (-(2**63), 2**31)]


@pytest.mark.parametrize(("seed", "step"), SEEDS)
@pytest.mark.parametrize("n_items", [1, 40, 2**31 - 1])
def test_propose(seed, step, n_items, rng):
    keys = torch.tensor([0, 7 | 1 << 39, 2**32 - 1 | 5 << 40, 2**31, -3])
    seen = oracle.random_seen(rng, 5, min(n_items, 300), min(n_items, 30))
    everything = bd.Seen(
        torch.tensor([0, 0, 40, 40, 80, 81]), torch.cat([torch.arange(40), torch.arange(40), torch.tensor([39])])
    )
    for rows in (None, seen, everything if n_items >= 40 else None):
        for start, stop in ((0, 70), (1000, 1001), (4095, 4096), (3, 3)):
            arguments = seed, step, keys, start, stop, n_items, rows
            assert torch.equal(sample.propose(*arguments), reference.propose(*arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to_teacher", [False, True])
def test_accept(kind, to_teacher):
    n = torch.tensor([1, 2, 1000, 25_187, 2**31 - 1, 5])
    ranks = [(torch.rand(6, 90) * n[:, None]).long().clamp(max=n[:, None] - 1) + 1 for _ in range(2)]
    ranks[1][:, :9] = ranks[0][:, :9]
    accepted = 0
    for parameter in (1e-3, 2.5, 252.0, 1e9):
        for flipped in (False, True):
            arguments = 5, 6, torch.arange(6) - 3 << 39, 64, *ranks, n, (kind, parameter, flipped), to_teacher
            got, want = sample.accept(*arguments), reference.accept(*arguments)
            assert got.dtype == torch.bool and torch.equal(got, want)
            accepted += int(got.sum())
    assert accepted > 100


def test_no_user_and_no_candidate():
    empty = torch.empty(0, dtype=torch.int64)
    assert sample.propose(0, 0, empty, 0, 4, 9, None).shape == (0, 4)
    ranks = torch.ones(1, 3, dtype=torch.int64)
    arguments = 0, 0, torch.tensor([4]), 0, ranks, ranks, torch.tensor([0]), ("tanh", 252.0, False), False
    assert torch.equal(sample.accept(*arguments), reference.accept(*arguments))


@pytest.mark.parametrize("released", [True, False])
def test_the_whole_sampler(released, rng, monkeypatch):
    """Rounds, counts and draws together, as `bdkernels.sample` runs them: the draws of the reference.

    With limits for a few rounds of 32 proposals: a pass over the items takes a second here, and 4,096 proposals a hundred.
    """
    for name, limit in {"PROBE": 64, "MIN_HITS": 3, "CAP": 96}.items():
        monkeypatch.setattr(sampler, name, limit)
    f = [bd.Factors(torch.randn(3, d), torch.randn(90, d)) for d in (5, 3)]
    seen = oracle.random_seen(rng, 3, 90, 20)
    weights = (bd.Tanh(252.0), bd.Exp(2.5)) if released else (bd.RankOnly(0.2), bd.Linear(side="under"))
    got, want = (
        bd.sample(*f, 4, seen, to_student=weights[0], to_teacher=weights[1], **numbered(f[0], seed=3), backend=backend)
        for backend in ("triton", "reference")
    )
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.ids, theirs.ids) and torch.equal(mine.mask, theirs.mask)
