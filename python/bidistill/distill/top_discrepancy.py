"""The items of the largest discrepancy, without chance: an ablation of the bidirectional method's draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdkernels import Draws, Scorer, Seen, topk
from bidistill.distill.lists import of_ids
from bidistill.distill.method import GUIDES, Method, Request, register_method
from bidistill.models import Recommender
from bidistill.models.scoring import take

RANKED = 1 << 20  # users x items whose ranks are held at a time


@dataclass
class TopDiscrepancy(Method):
    """The unseen items whose rank under the guide exceeds that under the learner by most, ties by id; none without a gap.

    The bidirectional method (arXiv 2106.02870) draws them by chance instead. Here all items are ranked for each user, which takes
    far longer than draws in a large catalog.

    Args:
        side: "over": items that the learner ranks higher than its guide; "under": lower.
    """

    side: str = "over"

    def __post_init__(self) -> None:
        if self.side not in ("over", "under"):
            raise ValueError(f"side must be over or under, found {self.side!r}")

    def draw(self, teacher: Recommender, student: Recommender, asked: Request) -> dict[str, Draws]:
        models = {"teacher": teacher, "student": student}
        n_items, k = teacher.n_items, min(asked.k, teacher.n_items)
        found: dict[str, list[Tensor]] = {name: [] for name in asked.learners}
        rows = torch.arange(len(asked.users), device=asked.users.device)
        for some in rows.split(max(1, RANKED // n_items)):
            part = asked._replace(
                users=asked.users[some], queries=take(asked.queries, some), seen=asked.seen.rows(some)
            )
            ranks = {name: all_ranks(part.scorer(model), n_items, part.seen) for name, model in models.items()}
            for name in asked.learners:
                gaps = (ranks[GUIDES[name]] - ranks[name]) * (
                    1 if self.side == "over" else -1
                )  # 0 where an item is seen
                best = gaps.sort(dim=1, descending=True, stable=True)
                ids = best.indices[:, :k].masked_fill(best.values[:, :k] <= 0, -1)
                found[name].append(torch.nn.functional.pad(ids, (0, asked.k - k), value=-1))
        return {name: of_ids(torch.cat(parts)) for name, parts in found.items()}


def all_ranks(scorer: Scorer, n_items: int, seen: Seen) -> Tensor:
    """[B, n_items] int64: the rank of each unseen item, 1 = best; 0 for a seen one."""
    order = topk(scorer, n_items, seen).ids
    places = torch.arange(1, n_items + 1, device=order.device).expand_as(order)
    ranks = order.new_zeros(len(order), n_items + 1)  # what is beyond the unseen goes into the last column
    return ranks.scatter_(1, order.where(order >= 0, n_items), places)[:, :n_items]


register_method("top_discrepancy", TopDiscrepancy)
