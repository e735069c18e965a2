"""Scorers that are no `Factors`: with equal scores they give the results of the fused path, and are asked for blocks alone."""

import re
from pathlib import Path

import oracle
import pytest
import torch
from made import Made, WithBoth, WithListed, WithTake
from test_sample_distribution import P_LOW, p_values

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import blocks
from bdkernels.sampling import sampler

WEIGHTS = [
    (bd.Tanh(252.0), bd.Exp(2.5)),
    (bd.Linear(side="under"), bd.Uniform()),
    (bd.RankOnly(mu=3.0), bd.Tanh(2.0, side="under")),
    (bd.Exp(500.0), bd.RankOnly(mu=0.5)),  # draws from full rows
    (None, bd.Linear()),
    (bd.Exp(2.5, side="under"), None),
]


SORTS = [bd.Scores, Made, WithListed, WithTake, WithBoth]


def pair(b, n, ties=False):
    """A teacher and a student that agree in part."""
    users, items = torch.randn(b, 5), torch.randn(n, 5)
    student = bd.Factors(users[:, :2] + 0.3 * torch.randn(b, 2), items[:, :2].contiguous(), torch.randn(n) / 2)
    found = bd.Factors(users, items, torch.randn(n) / 3), student
    return tuple(bd.Factors(*(t.round() for t in f)) for f in found) if ties else found


def everything(f):
    """[B, N], the bits that `rank` counts."""
    return bd.score(f, torch.arange(f.n_items).expand(len(f.user_factors), -1))


def some_seen(rng, b, n):
    return oracle.random_seen(rng, b, n, 30)


def same(ours, theirs):
    for mine, whole in zip(ours, theirs, strict=True):
        assert (mine is None) == (whole is None)
        if mine is not None:
            assert torch.equal(mine.ids, whole.ids) and torch.equal(mine.mask, whole.mask)


@pytest.fixture(params=[1 << 18, 100, 1], ids=["one block", "some", "an item each"])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", request.param)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("ties", [False, True])
def test_rank_topk_and_counts_are_those_of_factors(rng, backend, small_blocks, sort, ties):
    b, n = 5, 61
    f, _ = pair(b, n, ties)
    scorer, ids = sort(everything(f)), torch.randint(n, (b, 9))
    thresholds = torch.randn(b, 4)
    for seen in (None, some_seen(rng, b, n)):
        assert torch.equal(bd.rank(scorer, ids, seen, backend=backend), bd.rank(f, ids, seen))
        for k in (1, 13, n):
            ours, theirs = bd.topk(scorer, k, seen, backend=backend), bd.topk(f, k, seen)
            assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.scores, theirs.scores)
        offset = 0 if seen is None else 5
        ours = bd.count_above(scorer, thresholds, ids[:, :4], seen, offset, backend=backend)
        assert torch.equal(ours, bd.count_above(f, thresholds, ids[:, :4], seen, offset))
        for m in (20, torch.arange(1, n, 3)):
            errors = bd.rank_errors(scorer, ids, m, seen, seed=4)
            assert torch.equal(errors, bd.rank_errors(f, ids, m, seen, seed=4))


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_draws_are_those_of_factors(rng, backend, monkeypatch, sort, weights):
    monkeypatch.setattr(blocks, "ELEMENTS", 700)
    b, n = 7, 211
    seen, users = some_seen(rng, b, n), torch.arange(b) % 4 + 2**31
    t, s = pair(b, n, ties=sort in (Made, WithBoth))
    a, c = everything(t), everything(s)
    settings = {"to_student": weights[0], "to_teacher": weights[1], "user_ids": users, "seed": -5, "step": 9}
    for models, more in (
        ((sort(a), sort(c)), {}),
        ((t, sort(c)), {"occurrence": bd.occurrence(users)}),
        ((sort(a), s), {"independent_directions": True}),
        ((sort(a), bd.Scores(c)), {"subset": 60}),
        ((sort(a), s), {"subset": torch.arange(3, n, 4), "occurrence": bd.occurrence(users)}),
    ):
        ours = bd.sample(*models, 11, seen, **settings, **more, backend=backend)
        same(ours, bd.sample(t, s, 11, seen, **settings, **more))


@pytest.mark.parametrize("sort", SORTS)
def test_rows_in_turns(rng, backend, monkeypatch, sort):
    """Fewer users in flight than there are, and full rows one by one."""
    b, n = 9, 120
    (t, s), seen = pair(b, n), some_seen(rng, b, n)
    settings = {"to_student": bd.Tanh(), "to_teacher": bd.Exp(500.0), "user_ids": torch.arange(b), "step": 1}
    theirs = bd.sample(t, s, 6, seen, **settings)
    monkeypatch.setattr(sampler, "ROWS", 2)
    monkeypatch.setattr(sampler, "IN_FLIGHT", 200)
    monkeypatch.setattr(sampler, "ROW_ELEMENTS", n)
    same(bd.sample(sort(everything(t)), sort(everything(s)), 6, seen, **settings, backend=backend), theirs)


def scored(sort):
    return lambda f: sort(everything(f))


@pytest.mark.parametrize(("weight", "sort"), [(bd.Tanh(252.0), bd.Scores), (bd.Exp(2.5), WithTake)])
def test_chi_square(backend, weight, sort):
    assert min(p_values(weight, "over", 300, 1, backend, sort=scored(sort))) > P_LOW


def _shifted_blocks(steps):
    def count_above_block(scores, thresholds, ties, seen, offset):
        return steps.count_above_block(scores, thresholds, ties, seen, offset + (5 if offset else 0))

    return steps._replace(count_above_block=count_above_block)


def _blocks_twice(steps):
    def count_above_block(scores, thresholds, ties, seen, offset):
        return steps.count_above_block(scores, thresholds, ties, seen, offset) * (2 if offset == 0 else 1)

    return steps._replace(count_above_block=count_above_block)


@pytest.mark.parametrize("fault", [_shifted_blocks, _blocks_twice])
def test_planted_faults_are_caught(monkeypatch, backend, fault):
    """The chi-square test on counts of blocks with one mistake, after seeing it pass without."""
    monkeypatch.setattr(blocks, "ELEMENTS", 256 * 100)  # three blocks
    arguments = bd.Tanh(252.0), "over", 300, 8, backend
    assert min(p_values(*arguments, rows=256, sort=scored(bd.Scores))) > P_LOW
    broken = fault(backends.steps(torch.device("cpu"), backend))
    monkeypatch.setattr("bdkernels.scorers.steps", lambda *_, **__: broken)
    assert min(p_values(*arguments, rows=256, sort=scored(bd.Scores))) < P_LOW


# ---- what a scorer is asked for ----


def passes(scorer, call):
    """How many times each item of a row is scored on average; every block that was asked for is small."""
    scorer.asked.clear()
    call()
    assert all(0 <= first < stop <= scorer.n_items for _, first, stop in scorer.asked)
    assert all(rows * (stop - first) <= max(rows, blocks.ELEMENTS) for rows, first, stop in scorer.asked)
    return sum(rows * (stop - first) for rows, first, stop in scorer.asked) / scorer.scores.numel()


def test_blocks_are_small_and_passes_few(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 1 << 12)
    b, n = 16, 4096
    t, other = (everything(f) for f in pair(b, n))
    ids = torch.randint(n, (b, 200))
    one = ids[:, :1] * 0 + 5
    for sort, all_, few in ((Made, 2, 1 + 256 / n), (WithListed, 1, 1)):
        scorer = sort(t)
        assert passes(scorer, lambda s=scorer: bd.rank(s, ids)) == all_
        assert passes(scorer, lambda s=scorer: bd.rank(s, one)) == few  # of the first pass, the blocks that have one
        assert passes(scorer, lambda s=scorer: bd.topk(s, 50)) == 1
        assert passes(scorer, lambda s=scorer: bd.count_above(s, torch.zeros(b, 3), ids[:, :3])) == 1
    settings = {"to_student": bd.Uniform(), "to_teacher": None, "user_ids": torch.arange(b), "step": 0}
    for sort, rounds in ((Made, 2), (WithListed, 1)):
        scorer = sort(t)
        assert passes(scorer, lambda s=scorer: bd.sample(s, bd.Scores(t), 4, **settings)) == rounds
        with_subset = passes(scorer, lambda s=scorer: bd.sample(s, bd.Scores(t), 4, **settings, subset=8))
        assert with_subset == 0 if sort is WithListed else with_subset <= 2
    t[:4] = other[:4]  # users whose models agree go on to the full row, and nobody else
    peaked = {"to_student": bd.Tanh(), "to_teacher": None, "user_ids": torch.arange(b), "step": 0}
    for sort, most in ((Made, 3), (WithTake, 2.25)):
        scorer = sort(t)
        assert passes(scorer, lambda s=scorer: bd.sample(s, bd.Scores(other), 4, **peaked)) == most


def test_scores_of_any_strides_and_with_a_gradient(backend):
    f, _ = pair(5, 60)
    scores, ids = everything(f), torch.randint(60, (5, 4))
    want = bd.rank(f, ids)
    for same_values in (scores.T.contiguous().T, torch._neg_view(-scores), scores.clone().requires_grad_()):
        assert torch.equal(bd.rank(bd.Scores(same_values), ids, backend=backend), want)
        assert torch.equal(bd.rank(Made(same_values), ids, backend=backend), want)


def test_no_gradient_and_no_autocast_around_a_scorer():
    class Asks(Made):
        def block(self, first, stop):
            assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            with torch.autocast("cpu"):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
            return super().block(first, stop)

    f, _ = pair(5, 60)
    ids = torch.randint(60, (5, 4))
    with torch.autocast("cpu"):
        assert torch.equal(bd.rank(Asks(everything(f)), ids), bd.rank(f, ids))


def test_no_users_and_nothing_asked(backend):
    for sort in SORTS:
        nobody = sort(torch.zeros(0, 30))
        assert bd.rank(nobody, torch.zeros(0, 4, dtype=torch.int64), backend=backend).shape == (0, 4)
        assert bd.topk(nobody, 3, backend=backend).ids.shape == (0, 3)
        drawn = bd.sample(nobody, nobody, 3, user_ids=torch.zeros(0, dtype=torch.int64), step=0, backend=backend)
        assert drawn.to_student.ids.shape == (0, 3)
        some = sort(torch.zeros(2, 30))
        assert bd.rank(some, torch.zeros(2, 0, dtype=torch.int64), backend=backend).shape == (2, 0)


def test_infinite_scores(backend):
    scores = torch.tensor([[1.0, torch.inf, -torch.inf, 2.0], [-0.0, 0.0, 0.0, -1.0]])
    ids = torch.arange(4).expand(2, -1)
    for sort in SORTS:
        assert bd.rank(sort(scores), ids, backend=backend).tolist() == [[3, 1, 4, 2], [1, 2, 3, 4]]


# ---- errors ----


def calls(scorer):
    """Every function on this scorer, and the name that it has there."""
    other, b = bd.Scores(torch.randn(3, 50)), torch.arange(3)
    ids = torch.arange(30).view(3, 10)
    return {
        "scorer": [
            lambda: bd.rank(scorer, ids),
            lambda: bd.topk(scorer, 4),
            lambda: bd.count_above(scorer, torch.zeros(3, 10), ids),
        ],
        "teacher": [lambda: bd.sample(scorer, other, 4, user_ids=b, step=0)],
        "student": [
            lambda: bd.sample(other, scorer, 4, user_ids=b, step=0),
            lambda: bd.sample(other, scorer, 4, user_ids=b, step=0, to_student=bd.Exp(500.0)),
        ],
    }


def refused(scorer, error, words):
    for name, them in calls(scorer).items():
        for call in them:
            with pytest.raises(error, match=rf"^{name}{words}"):
                call()


@pytest.mark.parametrize("sort", SORTS)
def test_nan_is_named(monkeypatch, sort):
    monkeypatch.setattr(blocks, "ELEMENTS", 21)
    scores = torch.randn(3, 50)
    scores[2, 33] = torch.nan
    refused(sort(scores), ValueError, ": expected finite scores, got NaN for user row 2, item 33$")
    b = torch.arange(3)
    with pytest.raises(ValueError, match=r"^teacher: expected finite scores, got NaN for user row 2, item 33$"):
        bd.sample(sort(scores), sort(scores * 0), 3, user_ids=b, step=0, subset=torch.tensor([2, 33, 40]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda t: t[:, 1:], r"expected shape \[3, \d+\], got \[3, \d+\]"),
        (lambda t: t[:1], r"expected shape \[3, \d+\], got \[1, \d+\]"),
        (lambda t: t.double(), "expected float32, got torch.float64"),
        (lambda t: t.to("meta"), "expected device cpu, got meta"),
        (lambda t: t.to_sparse(), "expected a dense tensor, got torch.sparse_coo"),
    ],
)
def test_a_wrong_block_is_named(wrong, words):
    class Wrong(Made):
        def block(self, first, stop):
            return wrong(super().block(first, stop))

    class WrongList(WithListed):
        def listed(self, ids):
            return wrong(super().listed(ids))

    refused(Wrong(torch.randn(3, 50)), ValueError, rf"\.block\(0, 50\): {words}")
    with pytest.raises(ValueError, match=r"^scorer\.listed\(ids\): expected"):
        bd.rank(WrongList(torch.randn(3, 50)), torch.arange(30).view(3, 10))


def test_wrong_scores_are_named():
    refused(bd.Scores(torch.randn(3)), ValueError, r"\.scores: expected shape \[B, N\], got \[3\]")
    refused(bd.Scores(torch.randn(3, 50).half()), ValueError, r"\.scores: expected float32, got torch.float16")
    refused(bd.Scores([[1.0]]), TypeError, r"\.scores: expected Tensor, got list")


def test_what_is_no_scorer():
    for wrong in (None, torch.randn(3, 50), object()):
        refused(wrong, TypeError, f": expected Factors, Scores or an object with .*block, got {type(wrong).__name__}$")

    class Listed(Made):
        def block(self, first, stop):
            return [[1.0]]

    refused(Listed(torch.randn(3, 50)), TypeError, r"\.block\(0, 50\): expected Tensor, got list")
    made = Made(torch.randn(3, 50))
    made.n_items = "50"
    refused(made, TypeError, r"\.n_items: expected int, got str")
    made.n_items = 2**31
    refused(made, ValueError, r"\.n_items: expected an integer >= 0 and <= 2147483647, got 2147483648")


def test_a_score_that_changes_is_an_error():
    """Dropout that was left on, or listed scores of other bits."""

    class Noisy(Made):
        def block(self, first, stop):
            return super().block(first, stop) + torch.rand(self.n_rows, stop - first)

    class Other(WithListed):
        def listed(self, ids):
            return super().listed(ids) * (1 + 1e-6)

    for sort in (Noisy, Other):
        scorer = sort(torch.randn(3, 50))
        words = r"^teacher: expected the same score each time that it is asked for, got \S+ and then \S+ for user row \d, item "
        with pytest.raises(ValueError, match=words):
            bd.sample(scorer, bd.Scores(torch.randn(3, 50)), 4, user_ids=torch.arange(3), step=0)
        with pytest.raises(ValueError, match="^scorer: expected the same score"):
            bd.rank(scorer, torch.arange(30).view(3, 10))


def test_models_that_do_not_agree():
    one, users = bd.Scores(torch.randn(3, 50)), {"user_ids": torch.arange(3), "step": 0}
    with pytest.raises(ValueError, match=r"^student: number of items: expected 50, got 49$"):
        bd.sample(one, Made(torch.randn(3, 49)), 4, **users)
    with pytest.raises(ValueError, match=r"^student: number of users: expected 3, got 4$"):
        bd.sample(one, bd.Factors(torch.randn(4, 2), torch.randn(50, 2)), 4, **users)
    with pytest.raises(ValueError, match=r"^student.item_factors: expected shape \[N, 2\], got \[50, 3\]$"):
        bd.sample(one, bd.Factors(torch.randn(3, 2), torch.randn(50, 3)), 4, **users)

    class WrongTake(Made):
        def take(self, rows):
            return Made(self.scores)

    with pytest.raises(ValueError, match=r"^teacher.take\(rows\).n_rows: expected 1, got 3$"):
        bd.sample(WrongTake(torch.randn(3, 50)), one, 4, to_student=bd.Exp(500.0), **users,
                  seen=oracle.seen_of([range(50), range(50), []]))  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_other_arguments_are_checked(backend):
    scorer, ids = bd.Scores(torch.randn(3, 50)), torch.arange(30).view(3, 10)
    for wrong, words in (
        (lambda: bd.rank(scorer, ids + 40), r"^ids: expected ids in \[0, 50\), got 40 to 69"),
        (lambda: bd.rank(scorer, ids[:2]), r"^ids: expected shape \[3, C\]"),
        (lambda: bd.rank(scorer, ids, oracle.seen_of([[50], [], []])), r"^seen.indices: expected ids in \[0, 50\)"),
        (lambda: bd.topk(scorer, 51), "^k: expected an integer >= 1 and <= 50, got 51"),
        (lambda: bd.topk(scorer, 5, oracle.seen_of([[1]])), r"^seen.indptr: expected shape \[4\]"),
        (lambda: bd.count_above(scorer, ids * torch.nan, ids), "^thresholds: expected no NaN"),
        (lambda: bd.sample(scorer, scorer, 3, user_ids=ids[:, 0] - 1, step=0), "^user_ids: expected ids in"),
        (lambda: bd.sample(scorer, scorer, 3, user_ids=ids[:, 0], step=-1), "^step: expected"),
        (lambda: bd.sample(scorer, scorer, 3, user_ids=ids[:, 0], step=0, subset=51), "^subset: expected"),
        (lambda: bd.sample(scorer, scorer, 3, user_ids=ids[:, 0], step=0, subset=ids[0].flip(0)), "^subset: expected"),
        (lambda: bd.rank_errors(scorer, ids[:2], 5), r"^ids: expected shape \[3, C\]"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
    with pytest.raises(bd.BackendError, match="abacus"):
        bd.rank(scorer, ids, backend="abacus")


# ---- a scorer from outside the package ----


def test_a_scorer_from_outside(rng, outside, backend, monkeypatch):
    """It ranks as 2 <u, i> - |i|^2 does, which differs from -|u - i|^2 by a constant of the user; exact on these numbers."""
    monkeypatch.setattr(blocks, "ELEMENTS", 300)
    b, n = 6, 150
    users, items, seen = oracle.exact(rng, b, 4), oracle.exact(rng, n, 4), some_seen(rng, b, n)
    scorer = outside("distance_scorer").DistanceScorer(users, items)
    product = bd.Factors(2 * users, items, -items.square().sum(1))
    ids = torch.randint(n, (b, 9))
    want = torch.from_numpy(oracle.ranks(product, seen)).gather(1, ids)
    assert torch.equal(bd.rank(scorer, ids, seen, backend=backend), want)
    assert torch.equal(bd.topk(scorer, 20, seen, backend=backend).ids, bd.topk(product, 20, seen).ids)
    student = pair(b, n)[1]
    settings = {"user_ids": torch.arange(b), "step": 2, "to_student": bd.Tanh(), "to_teacher": bd.Exp(60.0)}
    ours = bd.sample(scorer, student, 8, seen, **settings, backend=backend)
    same(ours, bd.sample(product, student, 8, seen, **settings))


def test_code_of_the_page_runs():
    root = Path(__file__).resolve().parent
    page = (root.parent / "docs" / "scorers.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", page, re.S)
    assert found[0] in (root / "outside" / "distance_scorer.py").read_text(encoding="utf-8")
    names: dict = {}
    for block in found:
        exec(block, names)
    assert names["draws"].to_student.ids.shape == (64, 5) and names["best"].ids.shape == (64, 10)
