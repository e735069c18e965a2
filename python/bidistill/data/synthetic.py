"""Made-up interactions of any size: long-tailed, and following latent factors that are known."""

from __future__ import annotations

import numpy as np

from bidistill.data.interactions import Interactions
from bidistill.errors import UserError

SCORE_SPREAD = 3.0  # standard deviation of the true scores: strong tastes, yet no choice is certain
FREE_ROUNDS = 40  # proposals follow popularity and taste for so many rounds; later ones fill what is still missing


def generate(
    n_users: int,
    n_items: int,
    n_interactions: int,
    *,
    dim: int = 16,
    seed: int = 0,
    zipf: float = 1.0,
) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """Make up exactly `n_interactions` distinct (user, item) pairs.

    Items are proposed by popularity, proportional to rank**-zipf, and accepted with probability sigmoid(user factor .
    item factor); how active a user is follows a log-normal. So a model with `dim` factors and an item bias can learn
    both popularity and taste. Memory grows with the interactions, never with users x items.
    Every user gets at least min(3, n_interactions // n_users, n_items // 2) interactions. Rows are in time order, times
    are 0, 1, 2, ...; ids equal the numbers, and unpopular items may have no interaction.
    Returns (interactions, user factors float32 [n_users, dim], item factors float32 [n_items, dim]).
    Raises UserError for sizes below 1, fewer interactions than users, or more than half of all pairs.
    """
    for name, value in (("n_users", n_users), ("n_items", n_items), ("n_interactions", n_interactions), ("dim", dim)):
        if value < 1:
            raise UserError(f"generate: {name} must be at least 1, got {value}")
    if not 0 <= zipf < np.inf:
        raise UserError(f"generate: zipf must be 0 (no long tail) or larger, got {zipf}")
    most = n_users * (n_items // 2)
    if not n_users <= n_interactions <= most:
        raise UserError(
            f"generate: n_interactions must lie between {n_users:,} (one a user) and {most:,} (half of the items for"
            f" each user), got {n_interactions:,}"
        )
    rng = np.random.default_rng(seed)
    scale = np.sqrt(SCORE_SPREAD) / dim**0.25  # the product of two such vectors has standard deviation SCORE_SPREAD
    user_factors = rng.standard_normal((n_users, dim), np.float32) * np.float32(scale)
    item_factors = rng.standard_normal((n_items, dim), np.float32) * np.float32(scale)
    popularity = np.arange(1, n_items + 1, dtype=np.float64) ** -zipf
    reach = np.cumsum(rng.permutation(popularity))
    wanted = _activity(rng, n_users, n_items // 2, n_interactions)
    keys = _choose(rng, wanted, reach / reach[-1], user_factors, item_factors)
    keys = rng.permutation(keys)
    interactions = Interactions(
        keys // n_items, keys % n_items, np.arange(n_interactions), np.arange(n_users), np.arange(n_items)
    )
    return interactions, user_factors, item_factors


def _activity(rng: np.random.Generator, n_users: int, most: int, total: int) -> np.ndarray:
    """Interactions of each user, int64 [n_users]: long-tailed, from min(3, the mean) to `most`, summing to `total`."""
    least = min(3, total // n_users, most)
    weights = rng.lognormal(0.0, 1.0, n_users)
    wanted = least + rng.multinomial(total - least * n_users, weights / weights.sum())
    excess = int(np.maximum(wanted - most, 0).sum())
    if excess:
        wanted = np.minimum(wanted, most)
        room = np.cumsum(most - wanted)
        wanted += np.diff(excess * room // room[-1], prepend=0)  # shares of the excess in proportion to the room
    return wanted


def _choose(
    rng: np.random.Generator, wanted: np.ndarray, reach: np.ndarray, user_factors: np.ndarray, item_factors: np.ndarray
) -> np.ndarray:
    """Distinct keys user * n_items + item, sorted int64 [sum(wanted)], with `wanted[u]` of them for each user u."""
    n_items = len(reach)
    kept = np.empty(0, np.int64)
    rounds = 0
    while len(kept) < wanted.sum():
        missing = wanted - np.bincount(kept // n_items, minlength=len(wanted))
        users = np.repeat(np.arange(len(wanted)), missing)
        if rounds < FREE_ROUNDS:
            items = np.minimum(np.searchsorted(reach, rng.random(len(users)), side="right"), n_items - 1)
            users, items = _accepted(rng, users, items, user_factors, item_factors)
        else:  # at most half of a user's items are taken, so each round fills about half of the rest or more
            items = rng.integers(0, n_items, len(users))
        fresh = np.unique(users * np.int64(n_items) + items)
        if len(kept):
            place = np.minimum(np.searchsorted(kept, fresh), len(kept) - 1)
            fresh = fresh[kept[place] != fresh]
        kept = np.sort(np.concatenate([kept, fresh]), kind="stable")  # stable = merging the two sorted runs
        rounds += 1
    return kept


def _accepted(
    rng: np.random.Generator, users: np.ndarray, items: np.ndarray, user_factors: np.ndarray, item_factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The proposals that taste accepts, scored in chunks so that the gathered factors stay small."""
    accepted = np.empty(len(users), bool)
    for start in range(0, len(users), 1 << 16):
        rows = slice(start, start + (1 << 16))
        scores = np.einsum("nd,nd->n", user_factors[users[rows]], item_factors[items[rows]])
        accepted[rows] = rng.random(len(scores)) * (1 + np.exp(-scores.astype(np.float64))) < 1
    return users[accepted], items[accepted]
