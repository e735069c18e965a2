"""sample: which draws are equal and which are independent, by user, occurrence, step and direction."""

from collections import Counter

import numpy as np
import oracle
import pytest
import torch
from draws import numbered
from scipy import stats

import bdkernels as bd
from bdkernels.backends import reference, streamed
from bdkernels.sampling import keys, sampler

P_LOW = 1e-4  # the chance of a false alarm for a right sampler
PEAKED = bd.Exp(60.0), bd.RankOnly(mu=2.0)  # draws from full rows
RELEASED = bd.Tanh(252.0), bd.Exp(2.5)


def one_user(rows: int, n: int = 60, seen: int = 6):
    """Rows of one user, whose scores are exact."""
    rng = np.random.default_rng(4)
    t, s = oracle.factors(rng, 1, n, 6), oracle.factors(rng, 1, n, 3)
    models = [f._replace(user_factors=f.user_factors.expand(rows, -1).contiguous()) for f in (t, s)]
    known = oracle.seen_of([sorted(rng.choice(n, seen, replace=False))])
    return *models, known.rows(torch.zeros(rows, dtype=torch.int64))


def both(drawn: bd.Samples) -> torch.Tensor:
    return torch.stack([drawn.to_student.ids, drawn.to_teacher.ids])


def sample(t, s, k, seen=None, weights=RELEASED, **more) -> torch.Tensor:
    return both(bd.sample(t, s, k, seen, to_student=weights[0], to_teacher=weights[1], **more))


def pair_p_value(one: torch.Tensor, other: torch.Tensor, cells: int) -> float:
    """Chi-square of the independence of two items that are drawn together, many times."""
    table = np.zeros((cells, cells))
    np.add.at(table, (one.flatten().numpy(), other.flatten().numpy()), 1)
    return stats.chi2_contingency(table[table.sum(1) > 0][:, table.sum(0) > 0]).pvalue


def test_users_and_step_are_asked_for():
    t, s, seen = one_user(2)
    for left_out in ("user_ids", "step"):
        rows = numbered(t)
        del rows[left_out]
        with pytest.raises(TypeError, match=f"missing .* keyword-only argument: '{left_out}'"):
            bd.sample(t, s, 3, seen, **rows)
    with pytest.raises(TypeError, match="user_ids: expected Tensor, got NoneType"):
        bd.sample(t, s, 3, seen, **numbered(t, user_ids=None))


def test_occurrence():
    assert bd.occurrence(torch.tensor([4, 1, 4, 4, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    assert bd.occurrence(torch.tensor([], dtype=torch.int64)).tolist() == []
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="user_ids: expected"):
            bd.occurrence(wrong)
    with pytest.raises(TypeError, match="user_ids: expected Tensor, got list"):
        bd.occurrence([1, 2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([0, -1]), r"occurrence: expected numbers in \[0, 16777216\), got -1 to 0"),
        (torch.tensor([0, 2**24]), r"occurrence: expected numbers in \[0, 16777216\), got 0 to 16777216"),
        (torch.tensor([0]), r"occurrence: expected shape \[2\], got \[1\]"),
        (torch.zeros(2), "occurrence: expected int64, got torch.float32"),
    ],
)
def test_a_wrong_occurrence(backend, wrong, message):
    t, s, seen = one_user(2)
    with pytest.raises(ValueError, match=message):
        bd.sample(t, s, 3, seen, **numbered(t), occurrence=wrong, backend=backend)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("catalog", [None, 25])
@pytest.mark.parametrize("weights", [RELEASED, PEAKED], ids=["released", "peaked"])
def test_repeats_draw_their_own_whatever_the_batch(backend, weights, catalog, apart):
    """The same in one batch, row by row, in another order, and from the reference; occurrence 0 is none."""
    t, s, seen = one_user(6)
    users = torch.tensor([7, 7, 2**32 - 1, 7, 2**32 - 1, 7])
    number = bd.occurrence(users)
    number[5] = 2**24 - 1
    on = {"weights": weights, "step": 2, "seed": -3, "subset": catalog, "independent_directions": apart}
    whole = sample(t, s, 40, seen, user_ids=users, occurrence=number, **on, backend=backend)
    assert (whole >= 0).all()
    for direction in whole:
        assert len({tuple(row) for row in direction.tolist()}) == 6
    for rows in ([3], [5, 0], [4, 2, 1]):
        part = [f._replace(user_factors=f.user_factors[rows]) for f in (t, s)]
        here = {"user_ids": users[rows], "occurrence": number[rows]}
        assert torch.equal(
            sample(*part, 40, seen.rows(torch.tensor(rows)), **here, **on, backend=backend), whole[:, rows]
        )
    assert torch.equal(sample(t, s, 40, seen, user_ids=users, occurrence=number, **on, backend="reference"), whole)
    plain = sample(t, s, 40, seen, user_ids=users, **on, backend=backend)
    assert torch.equal(plain[:, [0, 2]], whole[:, [0, 2]]) and torch.equal(plain[:, 1], plain[:, 0])


@pytest.mark.parametrize(
    ("weights", "rows"), [(RELEASED, 3000), ((bd.Exp(60.0), bd.Linear()), 800)], ids=["released", "peaked"]
)
def test_repeats_have_the_distribution_and_are_independent(backend, weights, rows):
    """Chi-square of all draws of one user's rows against exact weights, and of draws of neighbouring rows together."""
    n, k = 60, 4
    t, s, seen = one_user(rows, n)
    one = torch.full((rows,), 11)
    drawn = sample(t, s, k, seen, weights, user_ids=one, occurrence=bd.occurrence(one), step=1, backend=backend)
    first = [f._replace(user_factors=f.user_factors[:1]) for f in (t, s)]
    rank_t, rank_s = (oracle.ranks(f, seen.rows(torch.tensor([0])))[0] for f in first)
    unseen = np.ones(n, bool)
    unseen[seen.indices[: seen.counts()[0]].numpy()] = False
    for ids, weight, guide, learner in zip(drawn, weights, (rank_t, rank_s), (rank_s, rank_t), strict=True):
        p = oracle.probabilities(weight.kind, weight.parameter(n), "over", guide, learner, unseen)
        counts = np.bincount(ids.flatten().numpy(), minlength=n)
        assert not counts[p == 0].any()
        likely = p * ids.numel() > 5
        want = np.append(p[likely], p[~likely].sum()) * ids.numel()
        got = np.append(counts[likely], counts[~likely].sum())
        assert stats.chisquare(got[want > 0], want[want > 0]).pvalue > P_LOW
        half = ids % 8  # fewer cells, each of them well filled
        assert pair_p_value(half[0::2], half[1::2], 8) > P_LOW
        assert pair_p_value(half[:, :1], half[:, 1:2], 8) > P_LOW
        assert pair_p_value(half, half, 8) < P_LOW  # the test can fail


def test_directions_are_independent_where_asked(backend):
    """Uniform both ways: equal draws, since both accept every proposal of one list; apart, no trace of each other."""
    rows, n = 4000, 8
    f = bd.Factors(torch.ones(rows, 1), torch.randn(n, 1))
    on = {"weights": (bd.Uniform(), bd.Uniform()), "backend": backend, **numbered(f, step=6)}
    shared, apart = (sample(f, f, 2, independent_directions=value, **on) for value in (False, True))
    assert torch.equal(shared[0], shared[1])
    assert torch.equal(shared[0], apart[0])
    assert pair_p_value(shared[0], shared[1], n) < P_LOW
    assert pair_p_value(apart[0], apart[1], n) > P_LOW
    assert stats.chisquare(np.bincount(apart[1].flatten(), minlength=n)).pvalue > P_LOW


@pytest.mark.parametrize("weights", [RELEASED, PEAKED], ids=["released", "peaked"])
def test_an_independent_direction_does_not_depend_on_the_other(backend, weights):
    t, s, seen = one_user(3)
    on = {"independent_directions": True, "backend": backend, **numbered(t, step=5)}
    whole = bd.sample(t, s, 9, seen, to_student=weights[0], to_teacher=weights[1], **on)
    one = bd.sample(t, s, 9, seen, to_student=weights[0], to_teacher=None, **on)
    other = bd.sample(t, s, 9, seen, to_student=None, to_teacher=weights[1], **on)
    none = bd.sample(t, s, 9, seen, to_student=None, to_teacher=None, **on)
    assert one.teacher is None and other.student is None and none == (None, None)
    assert torch.equal(whole.to_student.ids, one.to_student.ids)
    assert torch.equal(whole.to_teacher.ids, other.to_teacher.ids)


def counting(seen: Counter):
    """The reference's steps, which count what they are asked for."""

    def propose(seed, step, row_keys, start, stop, n_items, rows):
        seen["proposals"] += len(row_keys) * (stop - start)
        return reference.propose(seed, step, row_keys, start, stop, n_items, rows)

    def count_above(f, thresholds, *rest):
        seen["counted"] += thresholds.numel()
        return reference.count_above(f, thresholds, *rest)

    return reference.STEPS._replace(propose=propose, count_above=count_above)


def test_repeats_cost_no_more_than_other_users():
    """What is proposed and counted for 64 rows of one user, against 64 users; and for a second direction, twice that."""
    t, s, seen = one_user(64)
    codes = [(w.kind, w.parameter(t.n_items), w.flipped) for w in RELEASED]
    one, all_ = torch.full((64,), 5), torch.arange(64)
    costs = []
    for user_ids, number, apart in ((all_, None, False), (one, bd.occurrence(one), False), (all_, None, True)):
        found = Counter()
        row_keys = keys.of_rows(user_ids, number)
        sampler.sample(counting(found), t, s, 8, seen, codes, 0, 1, row_keys, independent_directions=apart)
        costs.append(found)
    users, repeats, apart = costs
    for what in ("proposals", "counted"):
        assert repeats[what] <= 1.15 * users[what] and apart[what] <= 2.2 * users[what]


def test_keys_from_disk_and_in_slices(tmp_path, monkeypatch):
    """Tables that are read slice by slice give the same draws."""
    monkeypatch.setattr(streamed, "SLICE_BYTES", 700)
    t, s, seen = one_user(6, 150)
    mapped = []
    for name, f in (("t", t), ("s", s)):
        np.save(tmp_path / f"{name}.npy", f.item_factors.numpy())
        mapped.append(f._replace(item_factors=bd.open_memmap(tmp_path / f"{name}.npy")))
    one = torch.full((6,), 5)
    on = {"user_ids": one, "occurrence": bd.occurrence(one), "step": 3, "independent_directions": True}
    assert torch.equal(sample(*mapped, 30, seen, **on), sample(t, s, 30, seen, **on))
