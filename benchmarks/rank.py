"""What counting costs: the search of each score among the thresholds, and our product against the library's GEMM.

"search" runs on one thread. `block` counts scores that are there already; `fused` is the whole of `count_above`, so that its
time at C thresholds minus its time at one is what the search adds to a product.
"""

from functools import partial
from typing import Any

import torch

import bdkernels as bd
from bdkernels.tools.measure import Work
from benchmarks.case import Case
from benchmarks.floor import Floor

SEARCH, TINY = (64, 65_536, 64), (5, 700, 3)  # users, items, d: a block of 16 MB that streams
THRESHOLDS = (1, 64, 256, 1024)
PRODUCTS = {  # one model of the sampling workloads each
    "product-50": (256, 25_187, 50),
    "product-64": (64, 1_000_000, 64),
    "product-128": (256, 250_000, 128),
    "product-16": (64, 1_000_000, 16),
}


def build(name: str, *, tiny: bool) -> Case:
    """ "search", or a case in PRODUCTS."""
    n_users, n_items, d = TINY if tiny else PRODUCTS.get(name, SEARCH)
    torch.manual_seed(8)
    f = bd.Factors(*(torch.empty(n, d).uniform_(-1, 1) for n in (n_users, n_items)))
    pairs = n_users * n_items
    work = Work(pairs, 2 * pairs * d, 4 * (n_users + n_items) * d)
    sizes = {"users": n_users, "items": n_items, "dims": [d]}
    if name in PRODUCTS:
        some = torch.randint(0, n_items, (n_users, 1))
        ours = partial(bd.count_above, f, bd.score(f, some), some)
        contenders: dict[str, Any] = {"bdkernels": ours, "floor": Floor(f)}
        return Case(sizes, contenders, partial(check, f, {"bdkernels": some}), work, memory=False)
    scores = f.user_factors @ f.item_factors.T
    searches: dict[str, Any] = {}
    ties = {}
    for c in THRESHOLDS:
        some = torch.randint(0, n_items, (n_users, c))
        for kind, call, own in (
            ("block", partial(bd.count_above_block, scores), scores.gather(1, some)),
            ("fused", partial(bd.count_above, f), bd.score(f, some)),
        ):
            searches[f"{kind}_{c}"], ties[f"{kind}_{c}"] = partial(call, own, some), some
    search = work._replace(flops=0)  # the product is not what is asked
    return Case(sizes, searches, partial(check, f, ties), search, threads=1, memory=False)


def check(f: bd.Factors, ties: dict[str, torch.Tensor], results: dict[str, Any]) -> None:
    """Counts of two users against float64; fp32 may swap neighbours."""
    scores = f.user_factors[:2].double() @ f.item_factors.double().T
    ordered = scores.sort(1).values
    for name, ids in ties.items():
        own = scores.gather(1, ids[:2])
        want = f.n_items - torch.searchsorted(ordered, own, right=True)
        assert (results[name][:2] - want).abs().max() <= 2 + f.n_items // 100_000, f"{name} differs from a float64 sort"
    if "floor" in results:
        results["floor"].check()
