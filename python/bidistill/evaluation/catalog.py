"""Metrics of the catalog: what lists all users together get, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bdkernels import Seen, topk
from bidistill.catalog_metrics import Catalog, Lists, made
from bidistill.data import Split
from bidistill.evaluation.ranks import held_out, seen_items
from bidistill.models import Recommender
from bidistill.models.base import device_of
from bidistill.models.scoring import scorer_of


def check_catalog_metrics(
    names: Sequence[str], split: Split, parts: Sequence[str], ks: Sequence[int], max_users: int
) -> None:
    """Raise UserError where the data leave one of these metrics undefined."""
    for part in parts:
        made(names, Catalog(_counts(split), held_out(split, part, max_users)[1]), ks)


def catalog_metrics(
    model: Recommender,
    split: Split,
    part: str,
    ks: Sequence[int],
    names: Sequence[str],
    held: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    batch_size: int = 256,
    seen: Seen | None = None,
) -> dict[str, float]:
    """The values of these metrics for each K, such as "coverage@10".

    Args:
        held: users, items and ranks, int64 [n] each, of the held-out interactions that the evaluation is on: see `ranks`.
        seen: `seen_items(split, part)` where the caller has it already.

    Raises:
        UserError: one of the metrics is not defined on these data.
    """
    users, items, ranks = held
    metrics = made(names, Catalog(_counts(split), items), ks)
    device = device_of(model)
    seen = seen_items(split, part, device) if seen is None else seen
    order = np.argsort(users, kind="stable")
    everyone, starts = np.unique(users[order], return_index=True)
    ends = np.append(starts, len(users))
    for first in range(0, len(everyone), batch_size):
        some = torch.from_numpy(everyone[first : first + batch_size]).to(device)
        best = topk(scorer_of(model, some, split.n_items), max(ks), seen.rows(some)).ids.cpu().numpy()
        own = order[ends[first] : ends[min(first + batch_size, len(everyone))]]
        lists = Lists(best, items[own], ranks[own])
        for k, metric in metrics.values():
            metric.add(lists.first(k))
    return {name: float(metric.value()) for name, (_, metric) in metrics.items()}


def _counts(split: Split) -> np.ndarray:
    counts: np.ndarray = np.bincount(split.train_items, minlength=split.n_items)
    return counts
