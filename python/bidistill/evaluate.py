"""Full-catalog evaluation from exact ranks: no top-K list, no table of all scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bdkernels import Seen, rank
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.models import Recommender
from bidistill.part import Part

MAPPED_USERS = 8192  # in one call where every call reads the item table from disk
PAIRS = 1 << 18  # users x listed items of such a call, at most: a few MB


def held_out(split: Split, part: str, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users and items, int64 [n], of the part "val" or "test".

    most: keep the interactions of so many users; 0: of all. Who they are is drawn at random, for a split always the same, so
        that epochs, runs and seeds compare.
    """
    if part not in ("val", "test"):
        raise UserError(f"the part to evaluate must be val or test, found {part!r}")
    users, items = (split.val_users, split.val_items) if part == "val" else (split.test_users, split.test_items)
    everyone = np.unique(users)
    if not 0 < most < len(everyone):
        return users, items
    chosen = np.zeros(split.n_users, bool)
    chosen[np.random.default_rng(0).choice(everyone, most, replace=False)] = True
    return users[chosen[users]], items[chosen[users]]


def known(split: Split, part: str, device: torch.device | str = "cpu", *, of: range | None = None) -> Seen:
    """What users are known to have before the part: train for "val", train and val for "test".

    of: the users whose rows to give; all unless given.
    """
    users, items = split.train_users, split.train_items
    if part == "test":
        users, items = np.concatenate([users, split.val_users]), np.concatenate([items, split.val_items])
    if of is not None:
        own = (users >= of.start) & (users < of.stop)
        users, items = users[own] - of.start, items[own]
    pairs = [torch.from_numpy(ids).to(device) for ids in (users, items)]
    return Seen.from_pairs(pairs[0], pairs[1], split.n_users if of is None else len(of))


def ranks(
    model: Recommender,
    split: Split,
    part: str,
    *,
    batch: int = 256,
    seen: Seen | None = None,
    most: int = 0,
    of: Part | None = None,
) -> np.ndarray:
    """Exact rank of each held-out item among all items that its user is not known to have.

    Args:
        batch: users ranked at a time; fewer than asked, though not than 256, where they have very many held-out items.
        seen: `known(split, part)` where the caller has it already.
        most: only so many users, see `held_out`; 0: all.
        of: what the model and `seen` are of, where they lie on several processes, which all call this together.

    Returns:
        int64 [n], 1 = best, in the order of the interactions that `held_out` gives.
    """
    return _ranks(model, split, part, *held_out(split, part, most), batch, seen, of)


def _ranks(
    model: Recommender,
    split: Split,
    part: str,
    users: np.ndarray,
    items: np.ndarray,
    batch: int,
    seen: Seen | None,
    of: Part | None = None,
) -> np.ndarray:
    """`ranks` of these interactions."""
    device = next(iter(model.parameters())).device
    if of is not None and of.shards is not None:
        from bidistill.sharded.ranks import ranks_of_all

        return ranks_of_all(
            model, of, users, items, batch, known(split, part, device, of=of.users) if seen is None else seen
        )
    seen = known(split, part, device) if seen is None else seen
    out = np.empty(len(users), dtype=np.int64)
    for user_ids, item_ids, rows, columns, positions in batches(users, items, batch):
        some = torch.from_numpy(user_ids).to(device)
        found = rank(model.factors(some), torch.from_numpy(item_ids).to(device), seen.rows(some))
        out[positions] = found.cpu().numpy()[rows, columns]
    return out


def evaluate(
    model: Recommender,
    split: Split,
    part: str = "val",
    ks: Sequence[int] = (10, 50),
    batch: int = 256,
    *,
    seen: Seen | None = None,
    most: int = 0,
    of: Part | None = None,
) -> dict[str, float]:
    """Metrics averaged over the users who have held-out items in the part, or over `most` of them, see `held_out`.

    hr@k: whether any held-out item is in the top k. recall@k: the share of them that is. precision@k: hits / k.
    ndcg@k: gain 1 for each hit, discount log2(1 + rank), over the best that the user's number of held-out items allows.
    mrr: 1 / rank of the first hit, at any depth. "users" is how many were averaged. For `seen` and `of` see `ranks`.

    Raises:
        UserError: the part is empty, or a k is larger than the catalog.
    """
    return means(per_user(model, split, part, ks, batch, seen=seen, most=most, of=of))


def per_user(
    model: Recommender,
    split: Split,
    part: str = "val",
    ks: Sequence[int] = (10, 50),
    batch: int = 256,
    *,
    seen: Seen | None = None,
    most: int = 0,
    of: Part | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of each user, whose means are what `evaluate` gives. Arguments and errors are those of `evaluate`.

    `interval(found["ndcg@10"])` says how far the mean may be off. Of two models, which are ranked for the same users,
    `interval(a["ndcg@10"] - b["ndcg@10"])` says the same of their difference.

    Returns:
        "users": int64 [n], rising; and each metric: float64 [n].
    """
    users, items = held_out(split, part, most)
    if not len(users):
        raise UserError(f"the split holds out no {part} interactions: nothing to evaluate on; choose another split")
    if max(ks) > split.n_items or min(ks) < 1:
        raise UserError(f"ks must lie between 1 and the catalog's {split.n_items} items, found {list(ks)}")
    return metrics(users, _ranks(model, split, part, users, items, batch, seen, of), ks)


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


@dataclass(frozen=True)
class Comparison:
    """Ranks of the same held-out items under two models.

    Attributes:
        users, items: int64 [n], the held-out interactions.
        teacher_ranks, student_ranks: int64 [n], 1 = best.
    """

    users: np.ndarray
    items: np.ndarray
    teacher_ranks: np.ndarray
    student_ranks: np.ndarray

    @property
    def student_better(self) -> float:
        """Share of the interactions that the student ranks strictly better than the teacher."""
        return float((self.student_ranks < self.teacher_ranks).mean())

    @property
    def teacher_better(self) -> float:
        """Share of the interactions that the teacher ranks strictly better than the student."""
        return float((self.teacher_ranks < self.student_ranks).mean())


def compare(
    teacher: Recommender, student: Recommender, split: Split, part: str = "test", *, batch: int = 256, most: int = 0
) -> Comparison:
    """Rank the part's interactions, or those of `most` users (see `held_out`), under both models."""
    users, items = held_out(split, part, most)
    if not len(users):
        raise UserError(f"the split holds out no {part} interactions: nothing to compare on; choose another split")
    device = next(iter(teacher.parameters())).device
    seen = known(split, part, device)
    pair = (_ranks(model, split, part, users, items, batch, seen) for model in (teacher, student))
    return Comparison(users, items, *pair)


def batches(users: np.ndarray, items: np.ndarray, batch: int) -> Iterator[tuple[Any, ...]]:
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
        n = min(batch, len(unique) - first)
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
