"""How many operations the calls of the cost model dispatch (dispatches.py): those of the CUDA backend, on few users and items.

Nothing in a call's size changes the number but the rounds that a sampler needs, and the parts into which `topk` cuts a catalog:
those of `calls.py` have three.
"""

from functools import partial
from unittest import mock

import torch
from dispatches import dispatched

import bdkernels as bd
from bdkernels.backends import cuda

USERS, ITEMS, DRAWS, BEST = 8, 2000, (1, 8, 32), 100
FIRST_PART, MANY = 128, 40_000  # of a catalog that `topk` cuts into three parts


def counted(device: torch.device) -> dict[str, int]:
    """By the call: "rank" of two models, "topk", "step" with Adam, and "sample" with the number of draws."""
    torch.manual_seed(0)

    def factors(d: int) -> bd.Factors:
        return bd.Factors(torch.randn(USERS, d, device=device), torch.randn(ITEMS, d, device=device))

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(0, USERS, shape, device=device)

    both, users, listed = (factors(5), factors(2)), torch.arange(USERS, device=device), ids(USERS, 3)
    seen = bd.Seen.from_pairs(users, ids(USERS), USERS)
    optimizer = bd.SparseAdam([torch.randn(USERS, 5, device=device), torch.randn(ITEMS, 5, device=device)], lr=0.1)
    draws = bd.Draws(ids(4, 3), torch.ones(4, 3, dtype=torch.bool, device=device))
    batch = (ids(4), ids(4), ids(4, 2), draws, torch.randn(4, 3, device=device))
    scores = torch.randn(USERS, ITEMS, device=device)
    catalog = bd.Factors(both[0].user_factors, torch.randn(MANY, 5, device=device))

    def topk() -> object:
        with mock.patch.object(cuda, "FIRST_PART", FIRST_PART):
            return bd.topk(catalog, BEST, seen, backend="cuda")

    calls = {
        "rank": lambda: [bd.rank(f, listed, seen, backend="cuda") for f in both],
        "search": lambda: bd.count_above_block(scores, scores[:, :3].contiguous(), listed, backend="cuda"),
        "topk": topk,
        "step": lambda: bd.fused_step(optimizer, *batch, backend="cuda"),
    } | {
        f"sample {k}": partial(bd.sample, *both, k, seen, user_ids=users, step=0, backend="cuda") for k in DRAWS
    }  # fmt: skip
    return {name: dispatched(call, "cuda").total() for name, call in calls.items()}
