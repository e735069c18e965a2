"""Every operator as a function of one `Problem`, its gradients included: for tests of what must hold for all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from draws import numbered
from torch import Tensor
from torch.utils._pytree import tree_map_only

import bdkernels as bd


class Problem(NamedTuple):
    """Inputs of every stage: B users, N items, and tables of U users."""

    teacher: bd.Factors
    student: bd.Factors
    seen: bd.Seen
    ids: Tensor
    scores: Tensor
    tables: tuple[Tensor, Tensor, Tensor]
    batch: tuple[Tensor, ...]  # users, positives, negatives
    draws: bd.Draws
    guide: Tensor

    def to(self, device: torch.device) -> "Problem":
        return tree_map_only(Tensor, lambda t: t.to(device, copy=True), self)

    def floats(self) -> list[Tensor]:
        return [t for t in torch.utils._pytree.tree_leaves(self) if t.is_floating_point()]


def problem(b: int = 5, n: int = 203, d: int = 5) -> Problem:
    """Random ones, on the CPU."""
    torch.manual_seed(4)
    teacher, student = (bd.Factors(torch.randn(b, dim), torch.randn(n, dim), torch.randn(n)) for dim in (d, d // 3))
    mask = torch.rand(2 * b, 3) < 0.7
    draws = bd.Draws(torch.randint(0, n, (2 * b, 3)).masked_fill(~mask, -1), mask)
    batch = torch.randint(0, b, (2 * b,)), torch.randint(0, n, (2 * b,)), torch.randint(0, n, (2 * b, 2))
    return Problem(
        teacher,
        student,
        bd.Seen.from_pairs(torch.randint(0, b, (20 * b,)), torch.randint(0, n, (20 * b,)), b),
        torch.randint(0, n, (b, 6)),
        torch.randn(b, n),
        (torch.randn(b, d), torch.randn(n, d), torch.randn(n)),
        batch,
        draws,
        torch.randn(2 * b, 3),
    )


def sample(p: Problem, seed: int | Tensor = 3, step: int | Tensor = 0) -> tuple[Tensor, ...]:
    drawn = bd.sample(p.teacher, p.student, 9, p.seen, **numbered(p.teacher, seed=seed, step=step))
    return drawn.to_student.ids, drawn.to_teacher.ids


def distill(p: Problem) -> tuple[Tensor, ...]:
    learner = p.guide.clone().requires_grad_()
    loss = bd.distill_loss(learner, p.guide.flip(0), 0.7, 2.0, p.draws.mask)
    return loss.detach(), *torch.autograd.grad(loss, learner)


def step_loss(p: Problem) -> tuple[Tensor, ...]:
    tables = [t.clone().requires_grad_() for t in p.tables]
    out = bd.fused_loss(*tables, *p.batch, p.draws, p.guide, cf="bpr", sparse=False)
    return out.loss.detach(), *torch.autograd.grad(out.loss, tables)


def step_update(p: Problem) -> tuple[Tensor, ...]:
    optimizer = bd.Adagrad([t.clone() for t in p.tables], lr=0.1)
    loss = bd.fused_step(optimizer, *p.batch, p.draws, p.guide).loss
    return loss, *(t.clone() for t in (optimizer.user_table, optimizer.item_table, optimizer.item_bias))


STAGES: dict[str, Callable[[Problem], tuple[Tensor, ...]]] = {
    "score": lambda p: (bd.score(p.teacher, p.ids),),
    "rank": lambda p: (bd.rank(p.teacher, p.ids, p.seen),),
    "count_above": lambda p: (bd.count_above(p.teacher, p.scores[:, :70], p.ids[:, :1].expand(-1, 70), p.seen, 7),),
    "count_above_block": lambda p: (bd.count_above_block(p.scores, p.scores.gather(1, p.ids), p.ids, p.seen),),
    "topk": lambda p: tuple(bd.topk(p.teacher, 50, p.seen)),
    "sample": sample,
    "distill_loss": distill,
    "fused_loss": step_loss,
    "fused_step": step_update,
}


def same(stage: Callable, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    """The same bits, but for the sums of the losses, whose order is a backend's own."""
    sums = stage in (distill, step_loss, step_update)
    for one, other in zip(got, want, strict=True):
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if sums and one.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one.cpu(), other.cpu(), **tolerance)
