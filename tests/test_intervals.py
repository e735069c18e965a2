"""Intervals over users: what they cover, that they are seeded, and how many decimals they leave."""

import math

import numpy as np
import pytest
from bidistill import UserError, evaluate, generate, interval, per_user, split
from bidistill.evaluation.intervals import GROUPS, decimals, intervals
from bidistill.models import MF


@pytest.mark.parametrize("users", [30, 500, GROUPS + 1, 10 * GROUPS])
def test_the_width_is_that_of_the_mean(users):
    """Of many users the mean is normal: 2 x 1.96 standard errors, however many random groups are resampled."""
    values = np.random.default_rng(users).exponential(size=users)
    found = interval(values)
    assert found.low < values.mean() < found.high
    assert 2 * found.half == pytest.approx(2 * 1.96 * values.std() / math.sqrt(users), rel=0.08)
    assert interval(values) == found != interval(values, seed=1)
    narrow = interval(values, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_nineteen_of_twenty_intervals_hold_the_mean():
    rng = np.random.default_rng(0)
    samples = rng.random((60, 400)) < 0.3  # users x repetitions of the same study
    held = [each.low <= 0.3 <= each.high for each in intervals(samples.astype(float))]
    assert 0.90 <= np.mean(held) <= 0.98


def test_one_user_or_equal_users():
    assert all(map(math.isnan, interval(np.array([0.3]))))
    assert interval(np.full(7, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("half", "places"),
    [
        (0.031, 3),
        (0.036, 2),
        (0.012, 3),
        (0.0004, 4),
        (0.9, 1),
        (9.0, 0),
        (0.0, 3),
        (math.nan, 3),
        (1e-5, 4),
        (1e-17, 3),
    ],
)
def test_decimals_leave_one_or_two_digits_of_the_half_width(half, places):
    assert decimals(half) == places


def test_means_of_users_are_what_evaluate_gives():
    parts = split(generate(60, 80, 1200, dim=4, seed=1)[0], "ratio", seed=1)
    model = MF(60, 80, 4, seed=1)
    found, wanted = per_user(model, parts, "test", (5, 10)), evaluate(model, parts, "test", (5, 10))
    assert found.keys() == wanted.keys()
    assert all(values.mean() == wanted[name] for name, values in found.items() if name != "users")
    assert len(found["users"]) == wanted["users"] and (np.diff(found["users"]) > 0).all()
    some = per_user(model, parts, "test", (5, 10), max_users=20)
    assert np.isin(some["users"], found["users"]).all() and len(some["users"]) == 20
    at = np.searchsorted(found["users"], some["users"])
    assert (some["ndcg@5"] == found["ndcg@5"][at]).all()
    with pytest.raises(UserError, match="between 1 and the catalog's 80"):
        per_user(model, parts, "test", (100,))
