"""Metrics of top-K recommendation, from exact ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def means(of_users: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What `evaluate` gives, from what `per_user` gives."""
    found = {name: float(values.mean()) for name, values in of_users.items() if name != "users"}
    return found | {"users": float(len(of_users["users"]))}


def metrics(users: np.ndarray, ranks: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """`per_user` from known ranks: users and ranks int64 [n], one pair for each held-out item."""
    unique, group, sizes = np.unique(users, return_inverse=True, return_counts=True)
    best = np.full(len(sizes), np.iinfo(np.int64).max)
    np.minimum.at(best, group, ranks)
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(max(ks), sizes.max()) + 2)))
    result = {"users": unique}
    for k in ks:
        hit = ranks <= k
        hits = np.bincount(group, hit, len(sizes))
        gain = np.bincount(group, hit / np.log2(ranks + 1), len(sizes))
        result[f"hr@{k}"] = (hits > 0).astype(float)
        result[f"ndcg@{k}"] = gain / ideal[np.minimum(sizes, k) - 1]
        result[f"recall@{k}"] = hits / sizes
        result[f"precision@{k}"] = hits / k
    return result | {"mrr": 1 / best}
