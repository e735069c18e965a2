"""Inputs of what is timed, made on the device: never zeros, which can run faster than what a user has."""

from typing import NamedTuple

import torch
from torch import Tensor

import bdkernels as bd
from phases.row import Setting

MILLION, PAPER = (1024, 1_000_000, (64, 16)), (256, 25_187, (50, 5))  # users, items, factors of teacher and student
TINY, FEW_LISTED = (6, 150, (5, 2)), 4
SEEN, DRAWS, BEST = 25, 32, 100
STEP = (100_000, 1_000_000, 64, 4096)  # users, items, factors, rows of a batch
TINY_STEP = (40, 90, 5, 16)
NEGATIVES, DISTILLED, BATCHES, LR = 4, 8, 16, 0.01
CHECKED = 4  # users whose results are compared with the C++ backend's


class Models(NamedTuple):
    """Teacher, and a student whose factors are the teacher's first ones and noise; what each user has seen."""

    teacher: bd.Factors
    student: bd.Factors
    seen: bd.Seen

    @property
    def both(self) -> tuple[bd.Factors, bd.Factors]:
        return self.teacher, self.student

    @property
    def pairs(self) -> int:
        """Of users and items."""
        return self.teacher.user_factors.shape[0] * self.teacher.n_items

    @property
    def flops(self) -> int:
        """Of both products."""
        return 2 * self.pairs * sum(f.user_factors.shape[1] for f in self.both)

    @property
    def bytes(self) -> int:
        return sum(4 * t.numel() for f in self.both for t in f[:2])

    def few(self) -> "Models":
        """The first users, on the CPU."""
        users = torch.arange(min(CHECKED, self.teacher.user_factors.shape[0]))
        parts = (f._replace(user_factors=f.user_factors[: len(users)]).to("cpu") for f in self.both)
        return Models(*parts, self.seen.to("cpu").rows(users))


def models(setting: Setting, sizes: tuple[int, int, tuple[int, int]]) -> Models:
    users, items, (wide, narrow) = TINY if setting.rehearse else sizes
    torch.manual_seed(7)

    def table(rows: int, d: int) -> Tensor:
        return torch.empty(rows, d, device=setting.device).uniform_(-1, 1)

    teacher = bd.Factors(table(users, wide), table(items, wide))
    student = bd.Factors(
        teacher.user_factors[:, :narrow].clone(), table(items, narrow).add_(teacher.item_factors[:, :narrow])
    )
    rows = torch.arange(users, device=setting.device).repeat_interleave(SEEN)
    return Models(teacher, student, bd.Seen.from_pairs(rows, ids(setting, items, rows.numel()), users))


def ids(setting: Setting, items: int, *shape: int) -> Tensor:
    return torch.randint(0, items, shape, device=setting.device)


class Batch(NamedTuple):
    """Of a training step, after `users` in the order of `fused_step`."""

    users: Tensor
    positives: Tensor
    negatives: Tensor
    draws: bd.Draws
    guide: Tensor

    def to(self, device: str) -> "Batch":
        users, positives, negatives, draws, guide = self
        there = bd.Draws(*(t.to(device) for t in draws))
        return Batch(users.to(device), positives.to(device), negatives.to(device), there, guide.to(device))


def training(setting: Setting) -> tuple[list[Tensor], list[Batch]]:
    """Tables of users and items, and batches."""
    users, items, d, rows = TINY_STEP if setting.rehearse else STEP
    torch.manual_seed(11)
    tables = [torch.empty(n, d, device=setting.device).uniform_(-0.1, 0.1) for n in (users, items)]
    batches = []
    for _ in range(BATCHES):
        drawn = ids(setting, items, rows, DISTILLED)
        draws = bd.Draws(drawn, torch.ones_like(drawn, dtype=torch.bool))
        guide = torch.empty(rows, DISTILLED, device=setting.device).uniform_(-2, 2)
        listed = ids(setting, items, rows), ids(setting, items, rows, NEGATIVES)
        batches.append(Batch(ids(setting, users, rows), *listed, draws, guide))
    return tables, batches


def all_in(mine: Tensor, theirs: Tensor, what: str) -> None:
    """Raises AssertionError where they are not the same."""
    assert torch.equal(mine.cpu(), theirs), f"{what}: another result than the C++ backend's"
