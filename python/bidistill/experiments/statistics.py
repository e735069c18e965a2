"""What seeds and users tell about a difference between two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bidistill.errors import UserError
from bidistill.evaluation.intervals import resampled

RESAMPLES = 10_000


class Summary(NamedTuple):
    """Mean and spread over seeds. spread: the sample standard deviation, with n - 1; NaN for one seed."""

    mean: float
    spread: float


class Test(NamedTuple):
    """How a run differs from its control on one data set.

    Attributes:
        seeds: how many both have.
        gain: mean over seeds / the control's mean over the same seeds - 1; NaN where that is 0.
        p_seeds: of the paired t test over seeds; NaN for one seed.
        p_users: of the bootstrap over users; NaN for one user.
    """

    seeds: int
    gain: float
    p_seeds: float
    p_users: float


def summary(values: Sequence[float]) -> Summary:
    """Mean and spread of one number for each seed."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(float(np.mean(values)), spread)


def paired_p(differences: Sequence[float]) -> float:
    """The two-sided p value of Student's t test that the mean of paired differences is 0, one for each seed.

    t = mean / (s / sqrt(n)) with n - 1 degrees of freedom, s the sample standard deviation (Student, The Probable Error of a
    Mean, Biometrika 1908). It takes the differences for normally distributed, which so few seeds cannot show. NaN for one
    difference.
    """
    try:
        from scipy.stats import t as student
    except ImportError as error:
        raise UserError("tests over seeds need scipy: install it with pip install 'bdkernels[train]'") from error
    n = len(differences)
    if n < 2:
        return math.nan
    mean, spread = summary(differences)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * student.sf(abs(mean) / (spread / math.sqrt(n)), n - 1))


def bootstrap_p(differences: np.ndarray, *, seed: int = 0) -> float:
    """The two-sided p value of the bootstrap over users that the mean difference is 0.

    The differences are shifted to the mean 0, and p is how often the mean of resampled users is then as far from 0 as the mean
    that was found (Efron, Tibshirani, An Introduction to the Bootstrap, 1993, section 16.4), with 1 added to both counts, so
    that it is never 0 (Davison, Hinkley, Bootstrap Methods and their Application, 1997, section 4.2). What varies is which users
    there are.

    Args:
        differences: float64 [users]; with several seeds, each user's mean over them.
        seed: of the resampling.
    """
    if len(differences) < 2:
        return math.nan
    mean = float(differences.mean())
    if not differences.any():
        return 1.0
    means = resampled((differences - mean)[:, None], RESAMPLES, seed)[:, 0]
    return (1 + int((np.abs(means) >= abs(mean)).sum())) / (1 + RESAMPLES)


def holm(values: Sequence[float]) -> list[float]:
    """p values that hold for all of them together (Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian
    Journal of Statistics 1979): the i-th smallest of m times m - i + 1, at least the one before, at most 1. NaN stays, and counts
    as no test.
    """
    found = [math.nan] * len(values)
    order = sorted((value, at) for at, value in enumerate(values) if not math.isnan(value))
    least = 0.0
    for rank, (value, at) in enumerate(order):
        least = found[at] = min(1.0, max(least, value * (len(order) - rank)))
    return found


def compared(
    values: Sequence[float], control: Sequence[float], users: Sequence[np.ndarray], control_users: Sequence[np.ndarray]
) -> Test:
    """A run against its control.

    Args:
        values, control: the metric's mean over users, one for each seed, the same seeds in both.
        users, control_users: of each seed, float64 [users]: the metric of each user, the same users in all.
    """
    differences = [one - other for one, other in zip(values, control, strict=True)]
    of_users = np.mean([one - other for one, other in zip(users, control_users, strict=True)], axis=0)
    base = float(np.mean(control))
    gain = float(np.mean(values)) / base - 1 if base else math.nan
    return Test(len(values), gain, paired_p(differences), bootstrap_p(of_users))
