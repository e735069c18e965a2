"""The 100 best of a million items for 64 users: `topk` against torch.topk in chunks of several sizes and faiss-cpu IndexFlatIP.

Nothing is excluded, since faiss cannot. Of the chunk sizes the fastest is the peer.
"""

from functools import partial
from typing import Any

import torch

import bdkernels as bd
from bdkernels.tools.measure import Work
from benchmarks import peers
from benchmarks.case import Case, UnavailableError

K = 100
SIZES, TINY = {"b": (64, 1_000_000, 64)}, (5, 900, 3)
CHUNKS = (16_384, 131_072, 1_000_000)


def build(name: str, *, tiny: bool) -> Case:
    """The case of this name in SIZES."""
    n_users, n_items, d = TINY if tiny else SIZES[name]
    torch.manual_seed(9)
    f = bd.Factors(*(torch.empty(n, d).uniform_(-1, 1) for n in (n_users, n_items)))
    contenders: dict[str, Any] = {"bdkernels": partial(bd.topk, f, K)}
    contenders |= {f"torch_topk_{chunk}": partial(peers.topk_chunked, f, K, chunk) for chunk in CHUNKS}
    absent = {}
    try:
        contenders["faiss"] = peers.TopkFaiss(f, K)
    except UnavailableError as error:
        absent["faiss"] = str(error)
    pairs = n_users * n_items
    return Case(
        {"users": n_users, "items": n_items, "dims": [d], "k": K},
        contenders,
        partial(check, f),
        Work(pairs, 2 * pairs * d, 4 * (n_users + n_items) * d + n_users * K * 12),
        absent,
    )


def check(f: bd.Factors, results: dict[str, Any]) -> None:
    """The float64 scores of what was found, against a float64 sort, for two users; and the scores that came with it."""
    scores = f.user_factors[:2].double() @ f.item_factors.double().T
    want = scores.sort(1, descending=True).values[:, :K]
    for name, (found, ids) in results.items():
        own = scores.gather(1, ids[:2])
        assert all(len(row.unique()) == K for row in ids[:2]), f"{name} lists an item twice"
        torch.testing.assert_close(own, want, rtol=0, atol=1e-4, msg=f"{name} differs from a float64 sort")
        torch.testing.assert_close(found[:2].double(), own, rtol=0, atol=1e-4, msg=f"{name} tells wrong scores")
