"""What the sampler is compared with (design: section 7), each as a user would write it; nobody else defines a peer.

All of them answer the same request: k items a user and direction, exact draws by the discrepancy of ranks, seen items never.
"""

import torch
from torch import Tensor

import bdkernels as bd


def _ranks(scores: Tensor) -> Tensor:
    """[B, N] int64 ranks, 1 = best; ties as the sort leaves them, since an exact order would slow it down."""
    order = scores.argsort(dim=1, descending=True)
    place = torch.arange(1, scores.shape[1] + 1).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


def _draw(rank_t: Tensor, rank_s: Tensor, unseen: Tensor, n: Tensor, k: int) -> tuple[Tensor, Tensor]:
    gap = (rank_t - rank_s).float() / n
    to_student = torch.tanh(252.0 * gap.clamp(min=0)) * unseen
    to_teacher = torch.exp(2.5 * -gap) * unseen
    return (
        torch.multinomial(to_student + 1e-30 * unseen, k, replacement=True),
        torch.multinomial(to_teacher, k, replacement=True),
    )


def dense_eager(t: bd.Factors, s: bd.Factors, seen: bd.Seen, k: int) -> tuple[Tensor, Tensor]:
    """Vectorised PyTorch: both score matrices, a sort each, weights, multinomial."""
    rows, unseen = seen.row_of_each(), torch.ones(t.users.shape[0], t.n_items)
    unseen[rows, seen.indices] = 0
    ranks = []
    for f in (t, s):
        scores = f.users @ f.items.T
        scores[rows, seen.indices] = -torch.inf
        ranks.append(_ranks(scores))
    return _draw(ranks[0], ranks[1], unseen, unseen.sum(1, keepdim=True), k)


def per_user_argsort(t: bd.Factors, s: bd.Factors, seen: bd.Seen, k: int) -> tuple[Tensor, Tensor]:
    """The published procedure: one user at a time, two argsorts for each model."""
    out = []
    for row in range(t.users.shape[0]):
        mine = seen.rows(torch.tensor([row]))
        unseen = torch.ones(1, t.n_items)
        unseen[0, mine.indices] = 0
        ranks = []
        for f in (t, s):
            scores = f.users[row] @ f.items.T
            scores[mine.indices] = -torch.inf
            ranks.append(scores.argsort(descending=True).argsort()[None] + 1)
        out.append(_draw(ranks[0], ranks[1], unseen, unseen.sum(1, keepdim=True), k))
    return torch.cat([a for a, _ in out]), torch.cat([b for _, b in out])


def floor(t: bd.Factors, s: bd.Factors, seen: bd.Seen, k: int) -> None:
    """The two score products alone, in tiles that stay in cache: no sampler can be faster."""
    tile = torch.empty(64, 2048)
    for f in (t, s):
        for user in range(0, f.users.shape[0], 64):
            u = f.users[user : user + 64]
            for item in range(0, f.n_items, 2048):
                v = f.items[item : item + 2048]
                torch.mm(u, v.T, out=tile[: u.shape[0], : v.shape[0]])


def bdkernels(t: bd.Factors, s: bd.Factors, seen: bd.Seen, k: int) -> tuple[Tensor, Tensor]:
    """This library, with the backend that it chooses."""
    out = bd.sample(t, s, k, seen)
    assert out.to_student is not None and out.to_teacher is not None
    return out.to_student.ids, out.to_teacher.ids


CONTENDERS = {f.__name__: f for f in (bdkernels, dense_eager, per_user_argsort, floor)}
