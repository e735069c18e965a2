"""Full-catalog evaluation, (e) of issue 3: the rank of one held-out item a user, seen items excluded.

`rank` against matmul, mask, compare and sum in chunks of users, of which the fastest is the peer, and against a full sort.
"""

from functools import partial
from typing import Any

import torch

import bdkernels as bd
from bdkernels.tools.measure import Work
from benchmarks import peers
from benchmarks.case import Case
from benchmarks.sample import check_ranks

SEEN = 23  # a user, as in CiteULike
SIZES, TINY = {"e": (5_219, 25_187, 50)}, (150, 500, 4)
CHUNKS = (64, 256, 1024)


def build(name: str, *, tiny: bool) -> Case:
    """The case of this name in SIZES."""
    n_users, n_items, d = TINY if tiny else SIZES[name]
    torch.manual_seed(10)
    f = bd.Factors(*(torch.empty(n, d).uniform_(-1, 1) for n in (n_users, n_items)))
    pairs = torch.arange(n_users).repeat(SEEN), torch.randint(0, n_items, (SEEN * n_users,))
    seen = bd.Seen.from_pairs(*pairs, n_users)
    held = seen.nth_unseen(torch.randint(0, n_items - SEEN, (n_users, 1)), n_items)
    contenders: dict[str, Any] = {"bdkernels": lambda: bd.rank(f, held, seen)[:, 0]}
    for chunk in CHUNKS:
        contenders[f"chunked_{chunk}"] = partial(peers.evaluate_chunked, f, held[:, 0], seen, chunk)
    contenders["dense_sort"] = partial(peers.evaluate_sorted, f, held[:, 0], seen)
    scores = n_users * n_items
    return Case(
        {"users": n_users, "items": n_items, "dims": [d]},
        contenders,
        partial(check, f, held, seen),
        Work(scores, 2 * scores * d, 4 * (n_users + n_items) * d + 16 * n_users),
    )


def check(f: bd.Factors, held: torch.Tensor, seen: bd.Seen, results: dict[str, Any]) -> None:
    """A few users against float64 counts; every contender's ranks against ours."""
    ours = results["bdkernels"]
    check_ranks([f], held, seen, [ours[:, None]])
    for name, ranks in results.items():
        assert (ranks - ours).abs().max() <= 4, (
            f"{name} ranks otherwise"
        )  # products that round otherwise swap neighbours
