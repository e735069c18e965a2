"""sample(subset=m): the subset, what draws follow when ranks are counted over it, and how far those ranks are off."""

import numpy as np
import oracle
import pytest
import torch
from draws import numbered
from scipy import stats
from test_sample_distribution import P_LOW, p_value, two_models

import bdkernels as bd
from bdkernels.sampling import subset

WEIGHTS = [bd.Tanh(30.0), bd.Exp(2.5, side="under"), bd.Linear(), bd.RankOnly(mu=40.0)]


@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (2, 1), (10, 10), (1000, 1), (1000, 499), (1000, 501), (1000, 999), (2**31 - 1, 50)]
)
def test_items_are_distinct_and_rising(n, m):
    ids = subset.draw(n, m, seed=-3, step=7)
    assert len(ids) == m and ids[0] >= 0 and ids[-1] < n and (ids.diff() > 0).all()
    assert torch.equal(ids, subset.draw(n, m, seed=-3, step=7))


@pytest.mark.parametrize("m", [3, 17])
def test_any_item_is_as_likely(m):
    counts = sum(torch.bincount(subset.draw(20, m, seed=1, step=step), minlength=20) for step in range(2000))
    expected = 2000 * m / 20
    # Of draws without replacement counts vary less than in chi-square's multinomial: by the factor of those left over.
    statistic = float(((counts - expected) ** 2 / expected).sum()) * 19 / (20 - m)
    assert stats.chi2.sf(statistic, 19) > P_LOW


@pytest.mark.parametrize(("m", "with_seen"), [(1, True), (40, False), (40, True), (299, True), (300, True)])
def test_measured_errors(rng, m, with_seen):
    """Against ranks that are estimated by comparing all scores, user by user; none where every item is counted."""
    n = 300
    f = bd.Factors(torch.randn(7, 4), torch.randn(n, 4), torch.randn(n))
    seen = oracle.random_seen(rng, 7, n, 30) if with_seen else None
    ids = torch.randint(n, (7, 11))
    found = bd.rank_errors(f, ids, m, seen, seed=5, step=3)
    counted = subset.draw(n, m, 5, 3).numpy()
    exact = bd.rank(f, ids, seen)
    for row in range(7):
        unseen = np.ones(n, bool)
        if seen is not None:
            unseen[oracle.seen_row(seen, row)] = False
        one = f._replace(user_factors=f.user_factors[row : row + 1])
        want = estimated(one, counted, unseen)[ids[row].numpy()] if unseen[counted].any() else np.ones(11)
        assert np.allclose(found[row].numpy(), np.abs(want - exact[row].numpy()) / unseen.sum(), atol=1e-12)
    if m == n:
        assert not found.any()


def test_measured_errors_stay_below_the_bound():
    f = bd.Factors(torch.randn(50, 6), torch.randn(20_000, 6))
    errors = bd.rank_errors(f, torch.randint(20_000, (50, 20)), 1000, step=1)
    assert 0 < errors.mean() < bd.rank_error(1000)
    assert (errors > bd.rank_error(1000, 0.05)).double().mean() < 0.05
    with pytest.raises(ValueError, match=r"subset: expected an integer >= 1 and <= 20000, got 20001"):
        bd.rank_errors(f, torch.zeros(50, 1, dtype=torch.int64), 20_001)


def test_strata_have_one_item_of_each_part():
    """By hand: in the order of popularity, ties by id, the i-th item lies between i N / m and (i + 1) N / m; every item has its
    turn about as often; and where m is N, all are there."""
    popularity = torch.tensor([5, 0, 3, 3, 9, 1, 0, 2, 7, 4, 8])
    order = sorted(range(11), key=lambda item: (int(popularity[item]), item))
    strata = bd.PopularityStrata(popularity)
    counts = torch.zeros(11)
    for step in range(3000):
        ids = strata.draw(4, seed=3, step=step)
        assert ids.tolist() == sorted(ids.tolist())
        places = sorted(order.index(item) for item in ids.tolist())
        assert [at * 4 // 11 for at in places] == [0, 1, 2, 3] or all(
            11 * i // 4 <= at < 11 * (i + 1) // 4 for i, at in enumerate(places)
        )
        counts[ids] += 1
    widths = [11 * (i + 1) // 4 - 11 * i // 4 for i in range(4)]
    expected = torch.zeros(11)
    expected[order] = torch.tensor([3000 / w for w in widths for _ in range(w)])
    assert ((counts - expected) / expected.sqrt()).abs().max() < 4.5
    assert strata.draw(11).tolist() == list(range(11))
    assert torch.equal(strata.draw(4, 3, 7), bd.PopularityStrata(popularity.double()).draw(4, 3, 7))
    with pytest.raises(ValueError, match=r"m: expected an integer >= 1 and <= 11, got 12"):
        strata.draw(12)


def test_strata_estimate_better():
    """Where popularity tells much of a score, as in trained models: half the error, and unbiased."""
    n, m = 20_000, 500
    popularity = torch.randn(n)
    f = bd.Factors(torch.randn(40, 6), torch.randn(n, 6) * 0.3, 2 * popularity)
    ids, strata = torch.randint(n, (40, 20)), bd.PopularityStrata(popularity)
    plain, by_popularity = (
        torch.stack([bd.rank_errors(f, ids, subset(step), seed=1, step=step) for step in range(12)])
        for subset in (lambda step: m, lambda step: strata.draw(m, 1, step))
    )
    assert by_popularity.mean() < 0.6 * plain.mean()
    assert (by_popularity > bd.rank_error(m, 0.05)).double().mean() < 0.05


def test_given_items_are_those_that_count(backend):
    """subset=ids is subset=m where they are the items that m draws; other ids draw otherwise."""
    t, s, seen, _ = two_models(300, 5)
    t, s = (f._replace(user_factors=f.user_factors.expand(20, -1)) for f in (t, s))
    same = seen.rows(torch.zeros(20, dtype=torch.int64))
    drawn = [
        bd.sample(t, s, 16, same, **numbered(t, seed=5, step=3), subset=catalog, backend=backend)
        for catalog in (40, subset.draw(300, 40, 5, 3), subset.draw(300, 40, 5, 4))
    ]
    for a, b, c in zip(*drawn, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert not torch.equal(a.ids, c.ids)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "at least one id"),
        ([3, 3], "strictly increasing ids, got unsorted or repeated"),
        ([5, 3], "strictly increasing ids"),
        ([0, 300], r"ids in \[0, 300\), got 0 to 300"),
        ([[1, 2]], r"shape \[m\], got \[1, 2\]"),
        ([1.0], "int64, got"),
    ],
)
def test_given_items_are_checked(ids, words):
    t, s, seen, _ = two_models(300, 5)
    given = torch.tensor(ids) if ids else torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"subset: expected .*{words}"):
        bd.sample(t, s, 2, seen, **numbered(t), subset=given)
    with pytest.raises(ValueError, match=f"subset: expected .*{words}"):
        bd.rank_errors(t, torch.zeros(1, 1, dtype=torch.int64), given)


def test_what_is_seen_of_a_subset(rng):
    ids = subset.draw(60, 25, seed=1, step=2)
    seen = oracle.random_seen(rng, 12, 60, 40)
    found = subset.seen_among(seen, ids)
    for row in range(12):
        want = np.flatnonzero(np.isin(ids.numpy(), oracle.seen_row(seen, row)))
        assert np.array_equal(oracle.seen_row(found, row), want)


def estimated(f: bd.Factors, ids: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The ranks of one user's items by those of `ids` that are unseen."""
    scores, items = oracle.scores(f)[0], np.arange(f.n_items)
    some = ids[unseen[ids]]
    before = (scores[some] > scores[:, None]) | ((scores[some] == scores[:, None]) & (some < items[:, None]))
    return 1 + (before.sum(1) * unseen.sum() + len(some) // 2) // len(some)


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: w.kind)
@pytest.mark.parametrize("m", [40, 250])
def test_draws_follow_the_estimated_ranks(backend, weight, m):
    """All proposals of one user, under many ids, and not the exact ranks."""
    n = 300
    teacher, student, seen, unseen = two_models(n, 5)
    t, s = (f._replace(user_factors=f.user_factors.expand(64, -1)) for f in (teacher, student))
    same = seen.rows(torch.zeros(64, dtype=torch.int64))
    out = bd.sample(
        t, s, 64, same, to_student=weight, to_teacher=weight, **numbered(t, seed=5, step=3), subset=m, backend=backend
    )
    ids = subset.draw(n, m, 5, 3).numpy()
    rank_t, rank_s = estimated(teacher, ids, unseen), estimated(student, ids, unseen)
    side = "under" if weight.flipped else "over"
    for draws, guide, learner in ((out.to_student, rank_t, rank_s), (out.to_teacher, rank_s, rank_t)):
        p = oracle.probabilities(weight.kind, weight.parameter(n), side, guide, learner, unseen)
        assert draws.mask.all() and p_value(draws.ids.flatten().numpy(), p) > P_LOW
    exact = oracle.probabilities(
        weight.kind, weight.parameter(n), side, oracle.ranks(teacher, seen)[0], oracle.ranks(student, seen)[0], unseen
    )
    if m == 40:
        assert p_value(out.to_student.ids.flatten().numpy(), exact) < P_LOW


def models(b: int, n: int) -> tuple[bd.Factors, bd.Factors]:
    teacher = bd.Factors(torch.randn(b, 6), torch.randn(n, 6), torch.randn(n))
    return teacher, bd.Factors(teacher.user_factors[:, :2] + 0.3 * torch.randn(b, 2), teacher.item_factors[:, :2])


def test_the_whole_catalog_is_exact(backend, rng):
    t, s = models(6, 500)
    seen = oracle.random_seen(rng, 6, 500, 90)
    some, all_ = (bd.sample(t, s, 20, seen, **numbered(t, seed=3), subset=c, backend=backend) for c in (500, None))
    assert torch.equal(some.to_student.ids, all_.to_student.ids) and torch.equal(
        some.to_teacher.ids, all_.to_teacher.ids
    )


def test_draws_depend_on_the_user_alone(backend, rng):
    """Not on the batch, and not on k; every backend draws the same."""
    t, s = models(30, 400)
    seen, users = oracle.random_seen(rng, 30, 400, 90), torch.arange(30) + 5

    def ids(rows, k, backend=backend):
        some = (f._replace(user_factors=f.user_factors[rows]) for f in (t, s))
        out = bd.sample(*some, k, seen.rows(rows), seed=2, step=4, user_ids=users[rows], subset=64, backend=backend)
        return torch.stack([out.to_student.ids, out.to_teacher.ids])

    everyone = ids(torch.arange(30), 12)
    rows = torch.tensor([7, 3, 29])
    assert torch.equal(ids(rows, 5), everyone[:, rows, :5])
    assert torch.equal(ids(torch.arange(30), 12, "reference"), everyone)


def test_peaked_weights_draw_from_the_subset(backend):
    """And users who have seen all of it, or of everything, still end."""
    t, s = models(4, 3000)
    ids = subset.draw(3000, 200, seed=0, step=0)
    seen = bd.Seen.from_pairs(
        torch.cat([torch.full((200,), 1), torch.full((3000,), 2)]), torch.cat([ids, torch.arange(3000)]), 4
    )
    out = bd.sample(
        t,
        s,
        30,
        seen,
        to_student=bd.Exp(3000.0),
        to_teacher=bd.Exp(3000.0),
        **numbered(t),
        subset=200,
        backend=backend,
    )
    for draws in (out.to_student, out.to_teacher):
        assert torch.isin(draws.ids[0], ids).sum() >= 15 and torch.isin(draws.ids[3], ids).sum() >= 15
        assert draws.mask[0].all() and not draws.mask[2].any()
        assert not torch.isin(draws.ids[1], ids).any()


@pytest.mark.parametrize("m", [30, 300])
def test_ranks_are_as_near_as_the_bound_says(m):
    """Of one item in 2,000 subsets, a share of at most delta is further off; and the bound is no idle one."""
    delta, n = 0.05, 2000
    f = bd.Factors(torch.ones(1, 1), torch.randn(n, 1))
    scores = f.item_factors[:, 0]
    share = (scores > scores.median()).double().mean()
    found = torch.stack(
        [(scores[subset.draw(n, m, 9, step)] > scores.median()).double().mean() for step in range(2000)]
    )
    off = (found - share).abs()
    assert (off > bd.rank_error(m, delta)).double().mean() <= delta
    assert (off > bd.rank_error(m, delta) / 3).double().mean() > delta


@pytest.mark.parametrize("catalog", [0, -5, 10, 10**9])
def test_no_catalog(catalog):
    t, s = models(2, 9)
    with pytest.raises(ValueError, match=f"subset: expected an integer >= 1 and <= 9, got {catalog}"):
        bd.sample(t, s, 3, **numbered(t), subset=catalog)
    with pytest.raises(TypeError, match="subset: expected int, got float"):
        bd.sample(t, s, 3, **numbered(t), subset=2.5)


def test_a_score_that_is_no_number(backend):
    t, s = models(3, 50)
    some = subset.draw(50, 20, 0, 0)
    t.item_factors[some[4]] = torch.nan
    with pytest.raises(ValueError, match=f"got NaN for user row ., item {some[4]}$"):
        bd.sample(t, s, 3, **numbered(t), subset=20, backend=backend)
    t.item_factors[some[4]] = 0.0
    t.item_factors[7] = torch.nan
    some = torch.tensor([0, 3, 8])
    with pytest.raises(
        ValueError, match="got NaN for user row ., item 7$"
    ):  # a proposal's own, though nobody counts it
        bd.sample(t, s, 30, **numbered(t), subset=some, backend=backend)


def test_operator():
    """Schema, fake and dispatch, with the ranks of a subset."""
    t, s = models(3, 50)
    seen = torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    weights = "tanh", 9.0, False, "exp", 2.5, True
    torch.library.opcheck(torch.ops.bdkernels.sample.default, (*t, *s, *seen, torch.arange(3), 5, 1, 2, *weights, 20))


@pytest.mark.parametrize(("m", "delta"), [(0, 0.1), (5, 0.0), (5, 1.0)])
def test_no_bound(m, delta):
    with pytest.raises(ValueError, match="m, delta: expected m >= 1 and delta"):
        bd.rank_error(m, delta)
