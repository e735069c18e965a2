"""Ranks from a random subset of the catalog: what `sample` costs then does not grow with the number of items.

Of m items drawn at random, the share that comes before an item estimates the share of the whole catalog that does. By Hoeffding's
inequality ("Probability inequalities for sums of bounded random variables", JASA 1963, which in section 6 covers drawing without
replacement) it is off by more than sqrt(ln(2 / delta) / (2 m)) with a probability of at most delta, whatever the catalog's size.
"""

import math

import torch
from torch import Tensor

from . import checks, reference, stored
from .factors import Factors
from .seen import Seen


def rank_error(m: int, delta: float = 0.05) -> float:
    """What the error of a rank counted over m items, as a share of the catalog, exceeds with a probability of at most delta.

    Args:
        m: items in the subset, at least 1.
        delta: in (0, 1).

    Raises:
        ValueError: m or delta is out of range.
    """
    if m < 1 or not 0 < delta < 1:
        raise ValueError(f"m, delta: expected m >= 1 and delta in (0, 1), got {m} and {delta}")
    return math.sqrt(math.log(2 / delta) / (2 * m))


def rank_errors(
    factors: Factors, ids: Tensor, m: int, seen: Seen | None = None, *, seed: int = 0, step: int = 0
) -> Tensor:
    """How far ranks that `sample(catalog=m)` estimates are off: what `rank_error` bounds, measured.

    Args:
        factors: users [B, d], items [N, d], item_bias [N] or None.
        ids: [B, C] int64 in [0, N), the items whose ranks are compared; unseen ones, as `sample` proposes.
        m: items that ranks are counted over, from 1 to N.
        seen: rows of the B users; None for nothing seen.
        seed, step: of the subset, as in `sample`.

    Returns:
        [B, C] float64: |estimated rank - exact rank| as a share of the user's unseen items.

    Raises:
        ValueError: m is out of range, or an argument is wrong as for `rank`.
    """
    checks.integer("m", m, 1, factors.n_items)
    pair = (None, None) if seen is None else seen
    exact = torch.ops.bdkernels.rank(*factors, ids, *pair)
    counted = draw(factors.n_items, m, seed, step).to(ids.device)
    some = None if seen is None else within(seen, counted)
    counts = torch.ops.bdkernels.count_above(
        *among(factors, counted),
        torch.ops.bdkernels.score(*factors, ids),
        torch.searchsorted(counted, ids.contiguous()),
        *((None, None) if some is None else some),
    )
    all_, few = (
        reference.candidate_counts(n, len(ids), rows, ids.device)[:, None]
        for n, rows in ((factors.n_items, seen), (m, some))
    )
    return (scaled(counts, all_, few) - exact).abs() / all_.clamp(min=1).double()


def scaled(counts: Tensor, all_: Tensor, some: Tensor) -> Tensor:
    """Ranks among all_ items, to the nearest, from how many of `some` of them come before."""
    some = some.clamp(min=1)
    return 1 + (counts * all_ + some // 2) // some


def among(f: Factors, ids: Tensor) -> Factors:
    """The same users over the items `ids` alone."""
    bias = None if f.item_bias is None else stored.take(f.item_bias, ids)
    return f._replace(items=stored.take(f.items, ids), item_bias=bias)


def draw(n_items: int, m: int, seed: int, step: int) -> Tensor:
    """[m] int64: m distinct items, any m as likely as any others; rising. On the CPU, so that every device has the same.

    The first m different ones among the numbers that Philox draws from (seed, step), uniform in [0, n_items); or, where m is
    more than half of the items, all but the first n_items - m.
    """
    few = min(m, n_items - m)
    distinct = first = torch.empty(0, dtype=torch.int64)
    length = few + few // 2 + 64
    while len(distinct) < few:
        index, user = torch.arange(length), torch.zeros((), dtype=torch.int64)
        hi, lo, _, _ = reference.philox(seed, index, reference.SUBSET, user, step)
        distinct, places = ((hi * n_items + (lo * n_items >> 32)) >> 32).unique(return_inverse=True)
        first = torch.full_like(distinct, length).scatter_reduce_(0, places, index, "amin")
        length *= 2
    chosen = distinct[first.argsort()[:few]].sort().values
    if few == m:
        return chosen
    left = torch.ones(n_items, dtype=torch.bool)
    left[chosen] = False
    return left.nonzero().squeeze(1)


def within(seen: Seen, ids: Tensor) -> Seen:
    """What of the items `ids` [m], rising, has been seen, by their numbers in the subset. On a GPU this waits for it."""
    places = torch.searchsorted(ids, seen.indices.contiguous())
    there = ids[places.clamp(max=len(ids) - 1)] == seen.indices
    before = torch.zeros(len(there) + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(there, 0, out=before[1:])
    return Seen(before[seen.indptr], places[there])
