"""Full-catalog evaluation from exact ranks: no top-K list, no table of all scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bdkernels import Seen
from bidistill.data import Split
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.evaluation.ranks import held_out, ranks_of, seen_items
from bidistill.metrics import means, metrics_of
from bidistill.models import Recommender
from bidistill.models.base import device_of


def evaluate(
    model: Recommender,
    split: Split,
    part: str = "val",
    ks: Sequence[int] = (10, 50),
    batch_size: int = 256,
    *,
    seen: Seen | None = None,
    max_users: int = 0,
    partition: Partition | None = None,
) -> dict[str, float]:
    """Metrics averaged over the users who have held-out items in the part, or over `max_users` of them, see `held_out`.

    The metrics are those of the table METRICS: hr@k, ndcg@k, recall@k and precision@k, mrr, and what else was registered; see
    `bidistill.metrics`. "users" is how many were averaged. For `seen` and `partition` see `ranks`.

    Raises:
        UserError: the part is empty, a k is larger than the catalog, or a metric does not give a finite number for each user.
    """
    return means(per_user(model, split, part, ks, batch_size, seen=seen, max_users=max_users, partition=partition))


def per_user(
    model: Recommender,
    split: Split,
    part: str = "val",
    ks: Sequence[int] = (10, 50),
    batch_size: int = 256,
    *,
    seen: Seen | None = None,
    max_users: int = 0,
    partition: Partition | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of each user, whose means are what `evaluate` gives. Arguments and errors are those of `evaluate`.

    `interval(found["ndcg@10"])` says how far the mean may be off. Of two models, which are ranked for the same users,
    `interval(a["ndcg@10"] - b["ndcg@10"])` says the same of their difference.

    Returns:
        "users": int64 [n], rising; and each metric: float64 [n].
    """
    users, items = held_out(split, part, max_users)
    if not len(users):
        raise UserError(f"the split holds out no {part} interactions: nothing to evaluate on; choose another split")
    if max(ks) > split.n_items or min(ks) < 1:
        raise UserError(f"ks must lie between 1 and the catalog's {split.n_items} items, found {list(ks)}")
    return metrics_of(users, ranks_of(model, split, part, users, items, batch_size, seen, partition), ks)


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
    teacher: Recommender,
    student: Recommender,
    split: Split,
    part: str = "test",
    *,
    batch_size: int = 256,
    max_users: int = 0,
) -> Comparison:
    """Rank the part's interactions, or those of `max_users` users (see `held_out`), under both models."""
    users, items = held_out(split, part, max_users)
    if not len(users):
        raise UserError(f"the split holds out no {part} interactions: nothing to compare on; choose another split")
    device = device_of(teacher)
    seen = seen_items(split, part, device)
    pair = (ranks_of(model, split, part, users, items, batch_size, seen) for model in (teacher, student))
    return Comparison(users, items, *pair)
