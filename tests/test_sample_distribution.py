"""sample: the distribution of the draws, by chi-square against exact probabilities; and that planted faults are caught.

Rows of one user's factors under many user ids give independent draws of one distribution. Items are pooled into cells of at least
CELL expected draws. P_LOW is the chance of a false alarm for a right sampler; seeds are fixed, so what passes goes on
passing.
"""

import numpy as np
import oracle
import pytest
import torch
from draws import numbered
from scipy import stats

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import reference
from bdkernels.sampling import sampler

P_LOW, CELL = 1e-4, 12.0
FAMILIES = [
    (bd.Tanh(252.0), "over"),
    (bd.Tanh(2.5, side="under"), "under"),
    (bd.Exp(2.5), "over"),
    (bd.Exp(2.5, side="under"), "under"),
    (bd.Exp(50.0), "over"),
    (bd.Linear(), "over"),
    (bd.Linear(side="under"), "under"),
    (bd.Uniform(), "over"),
    (bd.RankOnly(mu=40.0), "over"),
]
IDS = [f"{w.kind}-{side}-{w.parameter(1)}" for w, side in FAMILIES]


def two_models(n: int, seed: int) -> tuple[bd.Factors, bd.Factors, bd.Seen, np.ndarray]:
    """One user, n items, factors whose scores are exact; a tenth of the items seen."""
    rng = np.random.default_rng(seed)
    teacher = oracle.factors(rng, 1, n, 6)
    student = bd.Factors(teacher.user_factors[:, :3], teacher.item_factors[:, :3] + oracle.exact(rng, n, 3))
    unseen = np.ones(n, bool)
    unseen[rng.choice(n, n // 10, replace=False)] = False
    return teacher, student, oracle.seen_of([np.flatnonzero(~unseen)]), unseen


def p_value(draws: np.ndarray, p: np.ndarray) -> float:
    """Chi-square of the draws' counts; a draw where p is 0 gives 0."""
    counts = np.bincount(draws, minlength=len(p))
    if counts[p == 0].sum():
        return 0.0
    order = np.argsort(-p)  # likely items alone in their cells, unlikely ones together
    expected = p[order] * len(draws)
    cell = np.floor(np.cumsum(expected) / CELL).astype(int)
    cell = np.unique(cell, return_inverse=True)[1]
    want, got = np.bincount(cell, expected), np.bincount(cell, counts[order])
    keep = want > 0
    if keep.sum() > 1 and want[keep][-1] < CELL / 2:  # the last cell may be nearly empty
        want[keep.nonzero()[0][-2]] += want[keep][-1]
        got[keep.nonzero()[0][-2]] += got[keep][-1]
        keep[keep.nonzero()[0][-1]] = False
    assert keep.sum() > 5, "too few cells to test anything"
    return stats.chisquare(got[keep], want[keep] * got[keep].sum() / want[keep].sum()).pvalue


def p_values(weight, side, n, seed, backend, rows=64, k=64, sort=lambda f: f) -> tuple[float, float]:
    """One p-value a direction. sort: makes another scorer of factors."""
    teacher, student, seen, unseen = two_models(n, seed)
    t, s = (f._replace(user_factors=f.user_factors.expand(rows, -1)) for f in (teacher, student))
    same = seen.rows(torch.zeros(rows, dtype=torch.int64))
    settings = {"to_student": weight, "to_teacher": weight, "backend": backend} | numbered(t, seed=seed)
    out = bd.sample(sort(t), sort(s), k, same, **settings)
    rank_t, rank_s = oracle.ranks(teacher, seen)[0], oracle.ranks(student, seen)[0]
    result = []
    for draws, guide, learner in ((out.to_student, rank_t, rank_s), (out.to_teacher, rank_s, rank_t)):
        assert draws.mask.all()
        p = oracle.probabilities(weight.kind, weight.parameter(n), side, guide, learner, unseen)
        result.append(p_value(draws.ids.flatten().numpy(), p))
    return result[0], result[1]


@pytest.mark.parametrize(("weight", "side"), FAMILIES, ids=IDS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chi_square(backend, weight, side, seed):
    n = 3000 if weight == bd.Exp(50.0) else 300  # a peak of a few items would leave nothing to test
    assert min(p_values(weight, side, n, seed, backend)) > P_LOW


@pytest.mark.parametrize(("weight", "side"), FAMILIES[:5], ids=IDS[:5])
@pytest.mark.parametrize("n", [10_000, 100_000])
def test_chi_square_on_large_catalogs(weight, side, n):
    """By the fastest backend there is; the reference draws the same (test_sample.py)."""
    assert min(p_values(weight, side, n, 4, None)) > P_LOW


def test_full_rows_have_the_distribution_too(monkeypatch, backend):
    """Every draw from the fallback, for weights that would never need it."""
    monkeypatch.setattr(sampler, "CAP", 0)
    for weight, side in FAMILIES[:4]:
        assert min(p_values(weight, side, 300, 5, backend)) > P_LOW


def test_accepted_and_full_row_draws_mix_exactly(monkeypatch, backend):
    """A cap that stops most users half way: the first draws are accepted proposals, the rest comes from the full row."""
    monkeypatch.setattr(sampler, "PROBE", 128)
    monkeypatch.setattr(sampler, "CAP", 256)
    assert min(p_values(bd.Exp(2.5), "over", 300, 6, backend)) > P_LOW


def test_draws_of_a_user_are_independent(backend):
    """Pairs of consecutive draws against the product of their probabilities, on a catalog of 12 items."""
    teacher, student, seen, unseen = two_models(12, 7)
    t, s = (f._replace(user_factors=f.user_factors.expand(600, -1)) for f in (teacher, student))
    out = bd.sample(
        t, s, 40, seen.rows(torch.zeros(600, dtype=torch.int64)), to_teacher=bd.Exp(2.5), **numbered(t), backend=backend
    )
    p = oracle.probabilities("exp", 2.5, "over", oracle.ranks(student, seen)[0], oracle.ranks(teacher, seen)[0], unseen)
    ids = out.to_teacher.ids.numpy()
    assert p_value((ids[:, :-1:2] * 12 + ids[:, 1::2]).flatten(), np.outer(p, p).flatten()) > P_LOW


def _wrong_sign(steps):
    def accept(seed, step, users, start, guide, learner, n, weight, to_teacher):
        return steps.accept(seed, step, users, start, guide, learner, n, (*weight[:2], not weight[2]), to_teacher)

    return steps._replace(accept=accept)


def _rank_off_by_one(steps):
    def count_above(f, thresholds, tie_ids, seen, offset):
        off = 1 if f.user_factors.shape[1] == 6 else 0  # the teacher's ranks alone
        return steps.count_above(f, thresholds, tie_ids, seen, offset) + off

    return steps._replace(count_above=count_above)


def _not_normalised(steps):
    """Accepts with probability w instead of w / w_max: all the same where w > 1."""

    def accept(seed, step, users, start, guide, learner, n, weight, to_teacher):
        index = torch.arange(start, start + guide.shape[1])
        words = reference.philox(seed, index, reference.ACCEPT, users[:, None], step)
        u = reference.uniform(*words[2:]) if to_teacher else reference.uniform(*words[:2])
        return u.log() < reference.log_weight(*weight[:2], guide - learner, n[:, None], guide)

    return steps._replace(accept=accept)


@pytest.mark.parametrize(
    ("fault", "weight", "n"),
    [
        (_wrong_sign, bd.Tanh(252.0), 300),
        (_wrong_sign, bd.Exp(2.5), 300),
        (_rank_off_by_one, bd.Tanh(252.0), 300),
        (_rank_off_by_one, bd.Linear(), 30),
        (_not_normalised, bd.Exp(2.5), 300),
    ],
)
def test_planted_faults_are_caught(monkeypatch, backend, fault, weight, n):
    """The same test on a sampler with one mistake, after seeing it pass without."""
    assert min(p_values(weight, "over", n, 8, backend, rows=256)) > P_LOW
    broken = fault(backends.steps(torch.device("cpu"), backend))._replace(draw=None)  # rounds of the broken steps
    monkeypatch.setattr("bdkernels.ops.define.steps", lambda *_, **__: broken)
    assert min(p_values(weight, "over", n, 8, backend, rows=256)) < P_LOW
