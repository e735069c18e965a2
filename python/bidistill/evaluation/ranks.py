"""Exact ranks of held-out items among the full catalog: no top-K list, no table of all scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdkernels import Seen, rank
from bidistill.data import Split
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.models import Recommender
from bidistill.models.base import device_of
from bidistill.models.scoring import require_factors, scorer_of

MAPPED_USERS = 8192  # in one call where every call reads the item table from disk
PAIRS = 1 << 18  # users x listed items of such a call, at max_users: a few MB


def held_out(split: Split, part: str, max_users: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users and items, int64 [n], of the part "val" or "test".

    max_users: keep the interactions of so many users; 0: of all. Who they are is drawn at random, for a split always the same, so
        that epochs, runs and seeds compare.
    """
    if part not in ("val", "test"):
        raise UserError(f"the part to evaluate must be val or test, found {part!r}")
    users, items = (split.val_users, split.val_items) if part == "val" else (split.test_users, split.test_items)
    everyone = np.unique(users)
    if not 0 < max_users < len(everyone):
        return users, items
    chosen = np.zeros(split.n_users, bool)
    chosen[np.random.default_rng(0).choice(everyone, max_users, replace=False)] = True
    return users[chosen[users]], items[chosen[users]]


def seen_items(split: Split, part: str, device: torch.device | str = "cpu", *, only: range | None = None) -> Seen:
    """What users are known to have before the part: train for "val", train and val for "test".

    only: the users whose rows to give; all by default.
    """
    users, items = split.train_users, split.train_items
    if part == "test":
        users, items = np.concatenate([users, split.val_users]), np.concatenate([items, split.val_items])
    if only is not None:
        own = (users >= only.start) & (users < only.stop)
        users, items = users[own] - only.start, items[own]
    pairs = [torch.from_numpy(ids).to(device) for ids in (users, items)]
    return Seen.from_pairs(pairs[0], pairs[1], split.n_users if only is None else len(only))


def ranks(
    model: Recommender,
    split: Split,
    part: str,
    *,
    batch_size: int = 256,
    seen: Seen | None = None,
    max_users: int = 0,
    partition: Partition | None = None,
) -> np.ndarray:
    """Exact rank of each held-out item among all items that its user is not known to have.

    Args:
        batch_size: users ranked at a time; fewer than asked, though not than 256, where they have very many held-out items.
        seen: `seen_items(split, part)` where the caller has it already.
        max_users: only so many users, see `held_out`; 0: all.
        partition: which users and items are here, where they lie on several processes; the model and `seen` contain only
            those, and all processes call this together.

    Returns:
        int64 [n], 1 = best, in the order of the interactions that `held_out` gives.
    """
    return ranks_of(model, split, part, *held_out(split, part, max_users), batch_size, seen, partition)


def ranks_of(
    model: Recommender,
    split: Split,
    part: str,
    users: np.ndarray,
    items: np.ndarray,
    batch_size: int,
    seen: Seen | None,
    partition: Partition | None = None,
) -> np.ndarray:
    """`ranks` of these interactions."""
    device = device_of(model)
    own_users = None if partition is None else partition.own_users
    seen = seen_items(split, part, device, only=own_users) if seen is None else seen
    if partition is not None and partition.shards is not None:
        require_factors(model, "evaluation on several processes")
        return ranks_of_all(model, partition, users, items, batch_size, seen)
    out = np.empty(len(users), dtype=np.int64)
    for user_ids, item_ids, rows, columns, positions in batches(users, items, batch_size):
        some = torch.from_numpy(user_ids).to(device)
        found = rank(scorer_of(model, some, split.n_items), torch.from_numpy(item_ids).to(device), seen.rows(some))
        out[positions] = found.cpu().numpy()[rows, columns]
    return out


def batches(users: np.ndarray, items: np.ndarray, batch_size: int) -> Iterator[tuple[Any, ...]]:
    """Group interactions by user: user ids [B], item ids [B, C], and row, column and position of each interaction.

    Users with equally many held-out items go together, so that little is padding (a repeat of the row's first item).
    """
    unique, group, sizes = np.unique(users, return_inverse=True, return_counts=True)
    by_size = np.argsort(sizes, kind="stable")
    place = np.empty_like(by_size)
    place[by_size] = np.arange(len(by_size))
    order = np.argsort(place[group], kind="stable")  # interactions, user by user
    starts = np.concatenate([[0], np.cumsum(sizes[by_size])])
    first = 0
    while first < len(unique):
        n = min(batch_size, len(unique) - first)
        while n > 256 and n * sizes[by_size[first + n - 1]] > PAIRS:
            n = max(256, n // 2)
        ids = by_size[first : first + n]
        begin, end = starts[first], starts[first + len(ids)]
        positions = order[begin:end]
        rows = np.repeat(np.arange(len(ids)), sizes[ids])
        columns = np.arange(end - begin) - (starts[first : first + len(ids)] - begin)[rows]
        padded = np.repeat(items[order[starts[first : first + len(ids)]]][:, None], sizes[ids].max(), axis=1)
        padded[rows, columns] = items[positions]
        yield unique[ids], padded, rows, columns, positions
        first += n


def ranks_of_all(
    model: Recommender, partition: Partition, users: np.ndarray, items: np.ndarray, batch_size: int, seen: Seen
) -> np.ndarray:
    """Exact ranks int64 [n] of the held-out interactions of all processes, on every one.

    Args:
        users, items: int64 [n], the interactions: the same on every process.
        seen: rows of this process's users.
    """
    none = np.empty(0, dtype=np.int64)
    nobody = (none, np.empty((0, 0), dtype=np.int64), none, none, none)
    exchange, device = partition.processes.exchange, seen.indptr.device
    owner = users // max(1, len(partition.processes.range(partition.n_users, 0)))
    mine = np.flatnonzero(owner == partition.processes.rank)
    found = np.empty(len(mine), dtype=np.int64)
    own = batches(users[mine] - partition.users.start, items[mine], batch_size)
    while True:  # as many calls on every process, with the widest list of any
        user_ids, item_ids, rows, columns, positions = next(own, nobody)
        width = max(partition.processes.agree("evaluate", item_ids.shape[1]))
        if not width:
            break
        some = torch.from_numpy(user_ids).to(device)
        listed = torch.from_numpy(
            np.pad(item_ids, ((0, 0), (0, width - item_ids.shape[1])), "edge" if len(item_ids) else "empty")
        )
        ranked = partition.rank(scorer_of(model, some), listed.to(device), seen.rows(some))
        found[positions] = ranked.cpu().numpy()[rows, columns]
    sizes = np.bincount(owner, minlength=partition.processes.size).tolist()
    everyones: Tensor = exchange.gather(torch.from_numpy(found), sizes)
    out = np.empty(len(users), dtype=np.int64)
    out[np.argsort(owner, kind="stable")] = everyones.numpy()
    return out
