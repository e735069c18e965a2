"""Full-catalog evaluation from exact ranks: no top-K list, no table of all scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bdkernels import Seen
from bidistill.data import Split
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.evaluation.catalog import catalog_metrics
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
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Metrics averaged over the users who have held-out items in the part, or over `max_users` of them, see `held_out`.

    The metrics are those of the table METRICS: hr@k, ndcg@k, recall@k and precision@k, mrr, and what else was registered; see
    `bidistill.metrics`. "users" is how many were averaged. For `seen` and `partition` see `ranks`.

    metrics: names of metrics of the catalog that are wanted too, such as "coverage": see `bidistill.catalog_metrics`.

    Raises:
        UserError: the part is empty, a k is larger than the catalog, a metric does not give a finite number for each user, or one
            of the catalog is not defined on these data or is asked for on several processes.
    """
    users, items = _held_out(split, part, ks, max_users)
    ranks = ranks_of(model, split, part, users, items, batch_size, seen, partition)
    found = means(metrics_of(users, ranks, ks))
    if metrics:
        if partition is not None:
            partition.require_whole(f"eval.metrics has {metrics[0]}, which is counted")
        held = users, items, ranks
        found |= catalog_metrics(model, split, part, ks, metrics, held, batch_size=batch_size, seen=seen)
    return found


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
    """The metrics of each user from ranks, whose means are what `evaluate` gives. Arguments and errors are those of `evaluate`.

    `interval(found["ndcg@10"])` says how far the mean may be off. Of two models, which are ranked for the same users,
    `interval(a["ndcg@10"] - b["ndcg@10"])` says the same of their difference.

    Returns:
        "users": int64 [n], rising; and each metric: float64 [n].
    """
    users, items = _held_out(split, part, ks, max_users)
    return metrics_of(users, ranks_of(model, split, part, users, items, batch_size, seen, partition), ks)


def _held_out(split: Split, part: str, ks: Sequence[int], max_users: int) -> tuple[np.ndarray, np.ndarray]:
    users, items = held_out(split, part, max_users)
    if not len(users):
        raise UserError(f"the split holds out no {part} interactions: nothing to evaluate on; choose another split")
    if max(ks) > split.n_items or min(ks) < 1:
        raise UserError(f"ks must lie between 1 and the catalog's {split.n_items} items, found {list(ks)}")
    return users, items


@dataclass(frozen=True)
class Comparison:
    """Ranks of the same held-out items under two models.

    Attributes:
        users, items: int64 [n], the held-out interactions.
        teacher_ranks, student_ranks: int64 [n], 1 = best.
        teacher_catalog, student_catalog: metrics of the catalog, such as "coverage@10", as far as they were asked for.
    """

    users: np.ndarray
    items: np.ndarray
    teacher_ranks: np.ndarray
    student_ranks: np.ndarray
    teacher_catalog: dict[str, float] = field(default_factory=dict)
    student_catalog: dict[str, float] = field(default_factory=dict)

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
    ks: Sequence[int] = (10, 50),
    metrics: Sequence[str] | None = None,
) -> Comparison:
    """Rank the part's interactions, or those of `max_users` users (see `held_out`), under both models.

    metrics: names of metrics of the catalog that are wanted too, at each of the `ks`: see `bidistill.catalog_metrics`.
    """
    users, items = held_out(split, part, max_users)
    if not len(users):
        raise UserError(f"the split holds out no {part} interactions: nothing to compare on; choose another split")
    device = device_of(teacher)
    seen = seen_items(split, part, device)
    found, catalogs = [], []
    for model in (teacher, student):
        found.append(ranks_of(model, split, part, users, items, batch_size, seen))
        held = users, items, found[-1]
        catalogs.append(
            catalog_metrics(model, split, part, ks, metrics, held, batch_size=batch_size, seen=seen) if metrics else {}
        )
    return Comparison(users, items, found[0], found[1], catalogs[0], catalogs[1])
