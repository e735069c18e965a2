"""What a softmax over many negatives costs: a training step of one model with SparseAdam, batch 4,096, nothing distilled.

`fused_step` with cf "softmax" and 64 negatives against the same with "bce" and 4, on tables of their own, in turns. Negatives are
uniform, so in a catalog of 25,000 items each is listed about ten times in a batch, and in one of a million hardly any twice.

`shared_64` and `batch_64` are steps of train.negative_source shared and batch with 64 negatives, from the draw of these on with
the mask of what a user has, as a trainer takes them; beside them `drawn_bce_4` is BCE with 4 of a row's own, which are drawn
in that time too. The negatives of the other steps are there already.
"""

import itertools
from typing import Any

import torch
from bidistill.config import ModelConfig
from bidistill.training.negatives import NegativeSampler, SharedSampler
from bidistill.training.types import Batch, SharedNegatives, Terms
from bidistill.training.updates import SharedUpdate
from torch import Tensor

import bdkernels as bd
from benchmarks.case import Case

BATCH, BATCHES, LR = 4096, 8, 0.01
NEGATIVES = {"bdkernels": ("softmax", 64), "bce_4": ("bce", 4), "bce_64": ("bce", 64)}
SHARED = {"shared_64": ("shared", 64), "batch_64": ("batch", 64)}
EACH = 20  # interactions of a user in training, of which the batches are drawn and by which shared negatives are masked
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


class DrawnStep(Step):
    """The same with negatives that are drawn in each step, as many as the batches list."""

    def __init__(self, sampler: NegativeSampler, cf: str, tables: list[Tensor], batches: list[Any]) -> None:
        super().__init__(cf, tables, batches)
        self.sampler = sampler
        self.turn = map(self.drawn, itertools.count(), self.turn)

    def drawn(self, number: int, batch: Any) -> Any:
        """The batch with the negatives of this step."""
        users, positives, listed = batch
        generator = torch.Generator().manual_seed(number)
        return users, positives, self.sampler.draw(users, listed.shape[1], generator).ids


class SharedStep:
    """The step of a trainer on the next of the batches (users, positives), from the draw of its negatives on.

    Args:
        sampler: of the negatives.
        tables: starting values [U, d], [N, d]; copied.
    """

    def __init__(self, sampler: SharedSampler, tables: list[Tensor], batches: list[tuple[Tensor, Tensor]]) -> None:
        user, item = (t.clone() for t in tables)
        settings = ModelConfig(optimizer="sparse_adam", lr=LR)
        self.update = SharedUpdate(torch.nn.Module(), (user, item, None), settings, Terms("softmax", "bce", 0, 1, 1))  # type: ignore[arg-type]
        for each in self.update.optimizer.row_state():
            each.zero_()
        self.sampler, self.turn = sampler, itertools.cycle(enumerate(batches))
        none = batches[0][0].new_empty(len(batches[0][0]), 0)
        self.nothing = bd.Draws(none, none.bool()), none.float()

    def negatives(self, number: int, users: Tensor, positives: Tensor) -> SharedNegatives:
        """The draws of the batch of this number."""
        return self.sampler.draw(users, positives, torch.Generator().manual_seed(number))

    def __call__(self) -> Tensor:
        number, (users, positives) = next(self.turn)
        return self.update(Batch(users, positives, self.negatives(number, users, positives), *self.nothing))["cf"]


def build(name: str, *, tiny: bool) -> Case:
    """The case of this name in SIZES."""
    n_users, n_items, d, n = TINY if tiny else SIZES[name]
    torch.manual_seed(12)
    tables = [torch.empty(rows, d).uniform_(-0.1, 0.1) for rows in (n_users, n_items)]
    owners, had = torch.arange(n_users).repeat(EACH), torch.randint(n_items, (EACH * n_users,))
    seen, popularity = bd.Seen.from_pairs(owners, had, n_users), had.bincount(minlength=n_items)
    chosen = [torch.randint(len(had), (n,)) for _ in range(BATCHES)]
    batches = [(owners[some], had[some]) for some in chosen]
    steps: dict[str, Any] = {}
    firsts = {}
    for contender, (cf, m) in NEGATIVES.items():
        listed = [(*batch, torch.randint(n_items, (n, m))) for batch in batches]
        steps[contender] = Step(cf, tables, listed)
        firsts[contender] = wanted(cf, tables, *listed[0])
        if contender == "bce_4":
            drawn = DrawnStep(NegativeSampler(seen, n_items), cf, tables, listed)
            steps["drawn_bce_4"], firsts["drawn_bce_4"] = drawn, wanted(cf, tables, *drawn.drawn(0, listed[0]))
    for contender, (source, m) in SHARED.items():
        sampler = SharedSampler(seen, popularity, source, m)
        steps[contender] = SharedStep(sampler, tables, batches)
        found = steps[contender].negatives(0, *batches[0])
        firsts[contender] = wanted("softmax", tables, *batches[0], *found.of_rows(), found.log_q)

    def check(results: dict[str, Any]) -> None:
        """The losses of the first steps are those of plain PyTorch."""
        for contender, loss in results.items():
            torch.testing.assert_close(loss.double(), firsts[contender], rtol=1e-5, atol=0)

    sizes = {"users": n_users, "items": n_items, "dims": [d], "batch": n}
    return Case(sizes, steps, check, None, memory=False)


def wanted(
    cf: str,
    tables: list[Tensor],
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    mask: Tensor | None = None,
    log_q: Tensor | None = None,
) -> Tensor:
    """The loss in float64."""
    user, item = (t.double() for t in tables)
    ids = torch.cat([positives[:, None], negatives], 1)
    scores = torch.stack([item[row] @ u for row, u in zip(ids, user[users], strict=True)])
    if log_q is not None:
        scores = scores - log_q[ids]
    if mask is not None:
        scores[:, 1:] = scores[:, 1:].masked_fill(~mask, -torch.inf)
    if cf == "softmax":
        return -scores.log_softmax(1)[:, 0].mean()
    labels = torch.zeros_like(scores).index_fill_(1, torch.tensor([0]), 1.0)
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="none").sum(1).mean()
