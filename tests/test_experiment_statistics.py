"""The statistics of experiments: against scipy, against published numbers, and by how often they err."""

import math

import numpy as np
import pytest
import scipy.stats
from bidistill.experiments.statistics import bootstrap_p, compared, holm, paired_p, summary


def test_mean_and_spread():
    found = summary([1.0, 2.0, 6.0])
    assert found.mean == 3 and found.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(summary([1.0]).spread)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_paired_test_is_that_of_scipy(rng, n):
    one, other = rng.normal(0.1, 1, n), rng.normal(0, 1, n)
    assert paired_p(list(one - other)) == pytest.approx(scipy.stats.ttest_rel(one, other).pvalue)


def test_paired_test_of_few_and_of_equal_ones():
    assert math.isnan(paired_p([0.3]))
    assert paired_p([0.0, 0.0, 0.0]) == 1
    assert paired_p([0.5, 0.5, 0.5]) == 0


def test_bootstrap_agrees_with_the_t_test_where_there_are_many_users(rng):
    values = rng.normal(0.05, 1, 3000)
    assert bootstrap_p(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert bootstrap_p(values) == bootstrap_p(values)  # the seed is fixed
    assert bootstrap_p(values + 1) == 1 / 10_001
    assert bootstrap_p(-values) == bootstrap_p(values)


def test_bootstrap_errs_as_often_as_it_says(rng):
    """Of 300 comparisons without a difference, 5 % are called significant: 15 +- 3.8."""
    found = sum(bootstrap_p(rng.exponential(size=60) - rng.exponential(size=60), seed=at) < 0.05 for at in range(300))
    assert 4 <= found <= 30


def test_bootstrap_of_few_and_of_equal_ones():
    assert math.isnan(bootstrap_p(np.array([0.3])))
    assert bootstrap_p(np.zeros(50)) == 1


def test_holm():
    """By hand: .01 * 4, .02 * 3, .03 * 2 -> at least the one before, .2 * 1."""
    assert holm([0.02, 0.2, 0.01, 0.03]) == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    found = holm([0.04, math.nan, 0.01])
    assert found[0] == pytest.approx(0.04) and math.isnan(found[1]) and found[2] == pytest.approx(0.02)
    assert holm([]) == []


def test_a_run_against_its_control(rng):
    control_users = [rng.random(200) for _ in range(3)]
    users = [each + 0.1 + 0.01 * rng.normal(size=200) for each in control_users]
    values, control = ([float(each.mean()) for each in some] for some in (users, control_users))
    found = compared(values, control, users, control_users)
    assert found.seeds == 3
    assert found.gain == pytest.approx(np.mean(values) / np.mean(control) - 1)
    assert found.p_seeds == pytest.approx(scipy.stats.ttest_rel(values, control).pvalue)
    assert found.p_users == 1 / 10_001
    swapped = compared(control, values, control_users, users)
    assert swapped.gain < 0 and swapped.p_users == found.p_users
    assert math.isnan(compared([0.1, 0.2], [0.0, 0.0], users[:2], [np.zeros(200)] * 2).gain)
