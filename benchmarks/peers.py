"""What the library is compared with (design: section 7), each as a user would write it; nobody else defines a peer.

Sampling: k items a user and direction, exact draws by the discrepancy of ranks, seen items never. Evaluation: the rank of one
held-out item a user. Top-k: the k best of each user. Step: losses, gradients and update of one batch. `floor.py` has the floor.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from bdkernels import Factors, Seen
from benchmarks.case import UnavailableError

DENSE_BYTES = 44  # a (user, item) pair at the peak of `dense_eager`: 2,708 MiB for the 64 million pairs of (b)


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


def _dense(t: Factors, s: Factors, rows: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    unseen = torch.ones(t.user_factors.shape[0], t.n_items)
    unseen[rows, columns] = 0
    ranks = []
    for f in (t, s):
        scores = f.user_factors @ f.item_factors.T
        scores[rows, columns] = -torch.inf
        ranks.append(_ranks(scores))
    return _draw(ranks[0], ranks[1], unseen, unseen.sum(1, keepdim=True), k)


def dense_eager(t: Factors, s: Factors, seen: Seen, k: int) -> tuple[Tensor, Tensor]:
    """Vectorised PyTorch: both score matrices, a sort each, weights, multinomial."""
    return _dense(t, s, seen.row_of_each(), seen.indices, k)


def dense_compiled(t: Factors, s: Factors, seen: Seen, k: int) -> tuple[Tensor, Tensor]:
    """The same under torch.compile, for these very sizes."""
    try:
        return _compiled()(t, s, seen.row_of_each(), seen.indices, k)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UnavailableError(f"torch.compile failed: {str(error).splitlines()[0]}") from error


@cache
def _compiled() -> Any:
    return torch.compile(_dense, dynamic=False)


def per_user_argsort(t: Factors, s: Factors, seen: Seen, k: int) -> tuple[Tensor, Tensor]:
    """The published procedure: one user at a time, two argsorts for each model."""
    out = []
    for row in range(t.user_factors.shape[0]):
        mine = seen.indices[seen.indptr[row] : seen.indptr[row + 1]]
        unseen = torch.ones(1, t.n_items)
        unseen[0, mine] = 0
        ranks = []
        for f in (t, s):
            scores = f.user_factors[row] @ f.item_factors.T
            if f.item_bias is not None:
                scores += f.item_bias
            scores[mine] = -torch.inf
            ranks.append(scores.argsort(descending=True).argsort()[None] + 1)
        out.append(_draw(ranks[0], ranks[1], unseen, unseen.sum(1, keepdim=True), k))
    return torch.cat([a for a, _ in out]), torch.cat([b for _, b in out])


def evaluate_chunked(f: Factors, held: Tensor, seen: Seen, chunk: int) -> Tensor:
    """[B] int64 rank of each user's held-out item: matmul, mask, compare, sum, `chunk` users at a time."""
    rows, starts, out = seen.row_of_each(), seen.indptr[::chunk].tolist(), []
    ends = [*starts[1:], seen.indices.shape[0]]
    for first, start, end in zip(range(0, len(held), chunk), starts, ends, strict=False):
        scores = f.user_factors[first : first + chunk] @ f.item_factors.T
        own = scores.gather(1, held[first : first + chunk, None])
        scores[rows[start:end] - first, seen.indices[start:end]] = -torch.inf
        out.append((scores > own).sum(1) + 1)
    return torch.cat(out)


def evaluate_sorted(f: Factors, held: Tensor, seen: Seen) -> Tensor:
    """[B] int64 rank of each user's held-out item: the whole matrix, sorted."""
    scores = f.user_factors @ f.item_factors.T
    scores[seen.row_of_each(), seen.indices] = -torch.inf
    return _ranks(scores).gather(1, held[:, None])[:, 0]


def topk_chunked(f: Factors, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Scores and ids [B, k]: torch.topk of `chunk` items at a time, then of the winners."""
    scores, ids = [], []
    for first in range(0, f.n_items, chunk):
        best = (f.user_factors @ f.item_factors[first : first + chunk].T).topk(min(k, f.n_items - first))
        scores.append(best.values)
        ids.append(best.indices + first)
    best = torch.cat(scores, 1).topk(k)
    return best.values, torch.cat(ids, 1).gather(1, best.indices)


class TopkFaiss:
    """Scores and ids [B, k] by faiss-cpu's IndexFlatIP, with torch's number of threads; the index is built before."""

    def __init__(self, f: Factors, k: int) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UnavailableError("faiss-cpu is not installed: pip install '.[bench]'") from error
        if f.user_factors.is_cuda:
            raise UnavailableError("faiss-cpu is for the CPU")
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.note = f"faiss {faiss.__version__}, {faiss.omp_get_max_threads()} threads"
        self.users, self.k, self.index = f.user_factors.numpy(), k, faiss.IndexFlatIP(f.user_factors.shape[1])
        self.index.add(f.item_factors.numpy())

    def __call__(self) -> tuple[Tensor, Tensor]:
        scores, ids = self.index.search(self.users, self.k)
        return torch.from_numpy(scores), torch.from_numpy(ids)


def step_loss(user: nn.Embedding, item: nn.Embedding, batch: Any, guide: Tensor) -> Tensor:
    """BCE of a positive and its negatives, plus BCE of the distilled items against the guide: eager, with autograd."""
    users, positives, negatives, distilled = batch
    ids = torch.cat([positives[:, None], negatives, distilled], 1)
    scores = (item(ids) @ user(users)[:, :, None])[:, :, 0]
    first = 1 + negatives.shape[1]
    labels = torch.zeros_like(scores[:, :first])
    labels[:, 0] = 1
    cf = bce(scores[:, :first], labels, reduction="sum") / len(users)
    return cf + bce(scores[:, first:], torch.sigmoid(guide))
