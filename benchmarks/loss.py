"""One training step of one model, batch 1,024: loss, gradients of the touched rows, update of those rows.

`fused_step` with SparseAdam, and `fused_loss` with torch.optim.SparseAdam, against eager autograd with sparse embeddings and
that optimizer. Every contender trains tables of its own from the same start, on the same batches in turn.
"""

import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bdkernels as bd
from bdkernels.tools.measure import Work
from benchmarks import peers
from benchmarks.case import Case

NEGATIVES, DISTILLED, BATCHES, LR = 4, 8, 16, 0.01
SIZES, TINY = {"step": (100_000, 1_000_000, 64, 1024)}, (30, 80, 4, 16)  # users, items, d, batch


class Eager:
    """Autograd and SparseAdam on two embeddings; the call trains on the next batch.

    Args:
        tables: starting values [U, d], [N, d]; copied.
        batches: (users [B], positives [B], negatives [B, M], distilled [B, k]) each.
        guide: [B, k] scores of the other model.
    """

    sets_up = True  # the optimizer's state, as large as the tables

    def __init__(self, tables: list[Tensor], batches: list[Any], guide: Tensor) -> None:
        self.user, self.item = (nn.Embedding.from_pretrained(t.clone(), freeze=False, sparse=True) for t in tables)
        self.optimizer = torch.optim.SparseAdam([self.user.weight, self.item.weight], lr=LR)
        self.batches, self.guide = itertools.cycle(batches), guide

    def __call__(self) -> tuple[Tensor, list[Tensor]]:
        return self.step(next(self.batches)), [self.user.weight, self.item.weight]

    def loss(self, batch: Any) -> Tensor:
        return peers.step_loss(self.user, self.item, batch, self.guide)

    def step(self, batch: Any) -> Tensor:
        """Loss, gradients, update; returns the loss."""
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class StepLoss(Eager):
    """`fused_loss` in the place of autograd."""

    def loss(self, batch: Any) -> Tensor:
        users, positives, negatives, distilled = batch
        drawn = bd.Draws(distilled, torch.ones_like(distilled, dtype=torch.bool))
        tables = self.user.weight, self.item.weight
        return bd.fused_loss(*tables, None, users, positives, negatives, drawn, self.guide).loss


class StepUpdate:
    """`fused_step`: loss, gradients and the rows' update in one call."""

    sets_up = True

    def __init__(self, tables: list[Tensor], batches: list[Any], guide: Tensor) -> None:
        self.optimizer = bd.SparseAdam([t.clone() for t in tables], lr=LR)
        self.batches, self.guide = itertools.cycle(batches), guide

    def __call__(self) -> tuple[Tensor, list[Tensor]]:
        users, positives, negatives, distilled = next(self.batches)
        drawn = bd.Draws(distilled, torch.ones_like(distilled, dtype=torch.bool))
        loss = bd.fused_step(self.optimizer, users, positives, negatives, drawn, self.guide).loss
        return loss, [self.optimizer.user_table, self.optimizer.item_table]


CONTENDERS = {"bdkernels": StepUpdate, "bdkernels_unfused": StepLoss, "eager": Eager}


def build(name: str, *, tiny: bool) -> Case:
    """The case of this name in SIZES."""
    n_users, n_items, d, n = TINY if tiny else SIZES[name]
    torch.manual_seed(11)
    tables = [torch.empty(rows, d).uniform_(-0.1, 0.1) for rows in (n_users, n_items)]

    def items(*shape: int) -> Tensor:
        return torch.randint(0, n_items, shape)

    batches = [
        (torch.randint(0, n_users, (n,)), items(n), items(n, NEGATIVES), items(n, DISTILLED)) for _ in range(BATCHES)
    ]
    guide = torch.randn(n, DISTILLED)
    scores = n * (1 + NEGATIVES + DISTILLED)
    rows = (scores + n) * d * 4
    return Case(
        {"users": n_users, "items": n_items, "dims": [d], "batch": n, "negatives": NEGATIVES, "distilled": DISTILLED},
        {name: make(tables, batches, guide) for name, make in CONTENDERS.items()},
        partial(check, batches[0]),
        Work(scores, 6 * scores * d, 7 * rows),  # rows read; rows and two moments read and written by the update
    )


def check(batch: Any, results: dict[str, Any]) -> None:
    """After the first step everyone has the same loss, and the same rows; Adam's step has the sign of the gradient, times LR."""
    want_loss, want_tables = results["eager"]
    for loss, tables in results.values():
        torch.testing.assert_close(loss, want_loss, rtol=1e-4, atol=1e-5)
        for ids, table, want in zip((batch[0], batch[1]), tables, want_tables, strict=True):
            apart = (table[ids] - want[ids]).abs() > LR / 100
            assert apart.float().mean() < 1e-3  # a gradient next to 0 may differ in sign
