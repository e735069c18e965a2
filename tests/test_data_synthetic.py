"""Made-up interactions: the numbers asked for, seeded, long-tailed, and following the factors that are returned."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import scipy.stats
from bidistill.data import generate, split, synthetic
from bidistill.data.synthetic import Clock, Population
from bidistill.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    n_users, n_items = draw(st.integers(1, 40)), draw(st.integers(2, 40))
    return n_users, n_items, draw(st.integers(n_users, n_users * (n_items // 2)))


@settings(max_examples=100, deadline=None)
@given(
    size=sizes(),
    dim=st.integers(1, 5),
    seed=st.integers(0, 5),
    zipf=st.sampled_from([0, 0.5, 1.0, 3.0, 400.0]),
    tastes=st.sampled_from([0, 1.0, 3.0, 10.0]),
    tries=st.sampled_from([1, 8, 64]),
)
def test_sizes_are_exact(
    size: tuple[int, int, int], dim: int, seed: int, zipf: float, tastes: float, tries: int
) -> None:
    n_users, n_items, n_interactions = size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TRIES", tries)
        data, users, items = generate(*size, dim=dim, seed=seed, zipf=zipf, tastes=tastes)
    assert (data.n_users, data.n_items, len(data)) == size
    assert len(np.unique(data.users * n_items + data.items)) == n_interactions
    assert np.bincount(data.users, minlength=n_users).min() >= min(3, n_interactions // n_users)
    assert np.bincount(data.users).max() <= n_items // 2
    assert data.times is not None
    assert sorted(data.times.tolist()) == list(range(n_interactions))
    assert (users.shape, items.shape) == ((n_users, dim + 1), (n_items, dim + 1))
    assert users.dtype == items.dtype == np.float32
    assert np.isfinite(users).all()
    assert np.isfinite(items).all()


def test_a_seed_repeats_and_another_differs() -> None:
    first, again, other = (generate(200, 100, 2000, seed=seed) for seed in (1, 1, 2))
    assert first[0].fingerprint() == again[0].fingerprint() != other[0].fingerprint()
    assert (first[1] == again[1]).all()
    assert (first[2] == again[2]).all()
    assert not (first[1] == other[1])[:, :-1].any()


def test_choices_follow_popularity_and_taste() -> None:
    data, users, items = generate(2000, 1000, 40_000)
    described = data.describe()
    assert described["top_tenth_share"] > 0.4
    assert described["per_user"]["max"] > 5 * described["per_user"]["median"]
    assert generate(2000, 1000, 40_000, zipf=0, tastes=0)[0].describe()["top_tenth_share"] < 0.2
    assert (users[:, -1] == 1).all()
    places = np.sort(np.exp(-items[:, -1].astype(np.float64)))
    assert places == pytest.approx(np.arange(1, 1001), rel=1e-5)  # popularity is 1 / place
    tastes, kinds = users[:, :-1], items[:, :-1]
    chosen = np.einsum("nd,nd->n", tastes[data.users], kinds[data.items])
    # The same items with users exchanged have the same popularity, so what is left is taste.
    exchanged = np.einsum("nd,nd->n", tastes[np.random.default_rng(0).permutation(data.users)], kinds[data.items])
    assert chosen.mean() > exchanged.mean() + 1.0
    products = (tastes[:, None] * kinds[:200]).astype(np.float64)  # [users, items, dim]
    assert products.sum(2).std() == pytest.approx(3.0, rel=0.15)
    shares = (products**2).mean((0, 1))
    assert shares[0] / shares[3:5].mean() == pytest.approx(4.5, rel=0.5)  # the k-th in proportion to 1 / k


def test_items_of_a_group_are_alike() -> None:
    population = Population.of(10, 900, 100)
    groups, kinds = np.split(population.order, population.starts[1:-1]), population.item_factors[:, :-1]
    assert len(groups) == 30 and {len(each) for each in groups} == {30}
    inside = np.mean([kinds[group].var(0).sum() for group in groups])
    assert inside / kinds.var(0).sum() == pytest.approx(0.1, rel=0.3)


def alike(n_items: int, copies: int, count: int, **options: Any) -> tuple[np.ndarray, Population]:
    """The sets of `count` items that `copies` users of the same tastes take, int64 [copies, count], and the users."""
    population = Population.of(copies, n_items, copies * count, dim=3, **options)
    users, wanted = np.repeat(population.user_factors[:1], copies, 0), np.full(copies, count)
    population = replace(population, user_factors=users, wanted=wanted)
    return np.concatenate([items for _, items, _ in population.blocks()]).reshape(copies, count), population


def plackett_luce(population: Population, count: int) -> dict[tuple[int, ...], float]:
    """The probability of each set of `count` items, over all orders in which it may be taken."""
    chances = np.exp(population.item_factors.astype(np.float64) @ population.user_factors[0])
    found: dict[tuple[int, ...], float] = {}
    for order in permutations(range(len(chances)), count):
        left, probability = chances.sum(), 1.0
        for item in order:
            probability *= chances[item] / left
            left -= chances[item]
        key = tuple(sorted(order))
        found[key] = found.get(key, 0.0) + probability
    return found


def p_value(taken: np.ndarray, expected: dict[tuple[int, ...], float]) -> float:
    """That of the counts of the sets; those that are rare are counted together."""
    sets, counts = np.unique(taken, axis=0, return_counts=True)
    seen = dict(zip(map(tuple, sets.tolist()), counts.tolist(), strict=True))
    often = [key for key, chance in expected.items() if chance * len(taken) >= 5]
    observed = np.array([seen.get(key, 0) for key in often])
    wanted = np.array([expected[key] for key in often]) * len(taken)
    rest = len(taken) - observed.sum(), len(taken) - wanted.sum()
    if rest[1] > 1:
        observed, wanted = np.append(observed, rest[0]), np.append(wanted, rest[1])
    return float(scipy.stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("tries", [1, 2, 8, 64])  # 1: proposals in many rounds; 64: whole rows from the start
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_choices_are_those_of_plackett_and_luce(
    seed: int, count: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "TRIES", tries)
    taken, population = alike(12, 20_000, count, seed=seed, tastes=1.5, zipf=0.5)
    assert p_value(taken, plackett_luce(population, count)) > 1e-4


def test_other_choices_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "TRIES", 1)
    for option in ({"tastes": 1.3}, {"zipf": 0.6}):
        taken, _ = alike(12, 20_000, 3, **({"seed": 1, "tastes": 1.5, "zipf": 0.5} | option))
        exact = alike(12, 20_000, 3, seed=1, tastes=1.5, zipf=0.5)[1]
        assert p_value(taken, plackett_luce(exact, 3)) < 1e-6
    accepted = Population._accepted

    def careless(self: Population, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        return accepted(replace(self, spread=np.zeros_like(self.spread)), *arguments)

    monkeypatch.setattr(Population, "_accepted", careless)
    taken, population = alike(12, 20_000, 3, seed=1, tastes=1.5, zipf=0.5)
    assert p_value(taken, plackett_luce(population, 3)) < 1e-6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_users": 0}, "`n_users` must be at least 1, got 0"),
        ({"n_items": -1}, "`n_items` must be at least 1, got -1"),
        ({"dim": 0}, "`dim` must be at least 1, got 0"),
        ({"n_interactions": 9}, "must lie between 10 (one a user) and 50 (half of the items for each user), got 9"),
        ({"n_interactions": 51}, "got 51"),
        ({"n_items": 1}, "got 30"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"zipf": -1.0}, "`zipf` must be 0 (no long tail) or larger, got -1.0"),
        ({"zipf": float("nan")}, "`zipf` must be 0"),
        ({"zipf": float("inf")}, "`zipf` must be 0"),
        ({"tastes": -1.0}, "`tastes` must lie between 0 (popularity alone) and 10, got -1.0"),
        ({"tastes": float("nan")}, "`tastes` must lie between"),
        ({"tastes": 10.5}, "got 10.5"),
    ],
)
def test_mistakes(options: dict[str, Any], expected: str) -> None:
    sizes = {"n_users": 10, "n_items": 10, "n_interactions": 30}
    with pytest.raises(UserError) as caught:
        generate(**(sizes | options))
    assert expected in str(caught.value)


def test_times_are_a_random_order() -> None:
    data = generate(1000, 500, 20_000)[0]
    assert data.times is not None
    assert (np.diff(data.users * 500 + data.items) > 0).all()
    for other in (data.users, data.items, np.roll(data.times, 1), np.roll(data.times, 7)):
        assert abs(np.corrcoef(data.times, other)[0, 1]) < 0.03  # more than four standard errors
    last = np.array([rows.argmax() for rows in np.split(data.times[: 20_000 // 8 * 8], 20_000 // 8)])
    assert scipy.stats.chisquare(np.bincount(last, minlength=8)).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_a_clock_is_a_permutation_that_a_start_does_not_change(n: int) -> None:
    for seed in range(5):
        clock = Clock(n, seed)
        whole = clock.times(0, n)
        assert sorted(whole.tolist()) == list(range(n))
        assert np.concatenate([clock.times(0, n // 3), clock.times(n // 3, n - n // 3)]).tolist() == whole.tolist()


def test_blocks_are_whole_users_and_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK", 1000)
    population = Population.of(300, 800, 30_000)
    blocks = list(population.blocks())
    assert len(blocks) > 20
    for (users, _, _), (following, _, _) in pairwise(blocks):
        assert users[-1] + 1 == following[0]
        assert len(users) <= 1000 or users[0] == users[-1]  # a user with more is a block
    data, user_factors, _ = generate(300, 800, 30_000)
    assert np.concatenate([items for _, items, _ in blocks]).tolist() == data.items.tolist()
    assert (user_factors == population.user_factors).all()
    # Blocks draw anew: the first choices of two blocks are not the same.
    assert len({tuple(items[:20]) for _, items, _ in blocks}) == len(blocks)


def test_it_can_be_split() -> None:
    data = generate(100, 50, 600)[0]
    assert len(np.unique(split(data, "leave_last").test_users)) == 100


def test_a_huge_catalog_needs_no_dense_matrix() -> None:
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generate(100_000, 500_000, 300_000, dim=4)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 500e6  # bytes; users x items would be 50e9 entries
    assert time.process_time() - start < 15
