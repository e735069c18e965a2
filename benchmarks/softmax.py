"""What a softmax over many negatives costs: a training step of one model with SparseAdam, batch 4,096, nothing distilled.

`fused_step` with cf "softmax" and 64 negatives against the same with "bce" and 4, on tables of their own, in turns. Negatives are
uniform, so in a catalog of 25,000 items each is listed about ten times in a batch, and in one of a million hardly any twice.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

import bdkernels as bd
from benchmarks.case import Case

BATCH, BATCHES, LR = 4096, 8, 0.01
NEGATIVES = {"bdkernels": ("softmax", 64), "bce_4": ("bce", 4), "bce_64": ("bce", 64)}
SIZES = {  # users, items, d, batch
    "25k-50": (6_000, 25_000, 50, BATCH),
    "25k-5": (6_000, 25_000, 5, BATCH),
    "1m-50": (100_000, 1_000_000, 50, BATCH),
    "1m-5": (100_000, 1_000_000, 5, BATCH),
}
TINY = (30, 80, 4, 16)


class Step:
    """`fused_step` on the next of the batches (users, positives, negatives); returns the loss.

    Args:
        tables: starting values [U, d], [N, d]; copied.
    """

    def __init__(self, cf: str, tables: list[Tensor], batches: list[Any]) -> None:
        self.cf, self.optimizer, self.batches = cf, bd.SparseAdam([t.clone() for t in tables], lr=LR), batches
        for each in self.optimizer.row_state():
            each.zero_()  # or the first steps on each row would wait for the system to give memory
        self.turn = itertools.cycle(batches)
        none = batches[0][0].new_empty(len(batches[0][0]), 0)
        self.draws, self.guide = bd.Draws(none, none.bool()), none.float()

    def __call__(self) -> Tensor:
        return bd.fused_step(self.optimizer, *next(self.turn), self.draws, self.guide, cf=self.cf).loss


def build(name: str, *, tiny: bool) -> Case:
    """The case of this name in SIZES."""
    n_users, n_items, d, n = TINY if tiny else SIZES[name]
    torch.manual_seed(12)
    tables = [torch.empty(rows, d).uniform_(-0.1, 0.1) for rows in (n_users, n_items)]
    steps = {}
    for contender, (cf, m) in NEGATIVES.items():
        batches = [
            (torch.randint(n_users, (n,)), torch.randint(n_items, (n,)), torch.randint(n_items, (n, m)))
            for _ in range(BATCHES)
        ]
        steps[contender] = Step(cf, tables, batches)
    firsts = {contender: wanted(step.cf, tables, step.batches[0]) for contender, step in steps.items()}

    def check(results: dict[str, Any]) -> None:
        """The losses of the first steps are those of plain PyTorch."""
        for contender, loss in results.items():
            torch.testing.assert_close(loss.double(), firsts[contender], rtol=1e-5, atol=0)

    sizes = {"users": n_users, "items": n_items, "dims": [d], "batch": n}
    return Case(sizes, steps, check, None, memory=False)


def wanted(cf: str, tables: list[Tensor], batch: Any) -> Tensor:
    """The loss in float64."""
    user, item = (t.double() for t in tables)
    users, positives, negatives = batch
    ids = torch.cat([positives[:, None], negatives], 1)
    scores = torch.stack([item[row] @ u for row, u in zip(ids, user[users], strict=True)])
    if cf == "softmax":
        return -scores.log_softmax(1)[:, 0].mean()
    labels = torch.zeros_like(scores).index_fill_(1, torch.tensor([0]), 1.0)
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="none").sum(1).mean()
