"""Ranks from a random subset of the catalog: what `sample` costs then does not grow with the number of items.

Of m items drawn at random, the share that comes before an item estimates the share of the whole catalog that does. By Hoeffding's
inequality ("Probability inequalities for sums of bounded random variables", JASA 1963, which in section 6 covers drawing without
replacement) it is off by more than sqrt(ln(2 / delta) / (2 m)) with a probability of at most delta, whatever the catalog's size.
"""

import math

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import reference, steps
from bdkernels.backends.blocks import Blocks, count_above, plain
from bdkernels.storage import mapped
from bdkernels.types.factors import Factors
from bdkernels.types.scorers import Scorer
from bdkernels.types.seen import Seen


def rank_error(m: int, delta: float = 0.05) -> float:
    """What the error of a rank counted over m items, as a share of the catalog, exceeds with a probability of at most delta.

    Args:
        m: items in the subset, at least 1.
        delta: in (0, 1).

    Raises:
        ValueError: m or delta is out of range.
    """
    checks.int64("m", m)
    checks.float64("delta", delta)
    if m < 1 or not 0 < delta < 1:
        raise ValueError(f"m, delta: expected m >= 1 and delta in (0, 1), got {m} and {delta}")
    return math.sqrt(math.log(2 / delta) / (2 * m))


def rank_errors(
    scorer: Scorer, ids: Tensor, subset: int | Tensor, seen: Seen | None = None, *, seed: int = 0, step: int = 0
) -> Tensor:
    """How far ranks that `sample(subset=m)` estimates are off: what `rank_error` bounds, measured.

    Args:
        scorer: `Factors`, `Scores` or an `ItemScorer`, as for `rank`.
        ids: [B, C] int64 in [0, N), the items whose ranks are compared; unseen ones, as `sample` proposes.
        subset: items that ranks are counted over: how many random ones, from 1 to N, or their ids [m] int64, rising.
        seen: rows of the B users; None for nothing seen.
        seed, step: of random items, as in `sample`.

    Returns:
        [B, C] float64: |estimated rank - exact rank| as a share of the user's unseen items.

    Raises:
        ValueError: an argument is wrong, as for `sample` and `rank`.
    """
    n_items = scorer.n_items if isinstance(scorer, Factors) else Blocks.of("scorer", scorer).n_items
    some_items = counted_items(n_items, subset, seed, step).to(ids.device)
    some = None if seen is None else seen_among(seen, some_items)
    exact, counts = _exact_and_estimated(scorer, ids, some_items, seen, some)
    all_, few = (
        reference.candidate_counts(n, len(ids), rows, ids.device)[:, None]
        for n, rows in ((n_items, seen), (len(some_items), some))
    )
    errors: Tensor = (scaled(counts, all_, few) - exact).abs() / all_.clamp(min=1).double()
    return errors


def _exact_and_estimated(
    scorer: Scorer, ids: Tensor, some_items: Tensor, seen: Seen | None, some: Seen | None
) -> tuple[Tensor, Tensor]:
    """Exact ranks [B, C], and how many of `some_items`, of which `some` have been seen, come before."""
    ties = torch.searchsorted(some_items, ids.contiguous())
    if not isinstance(scorer, Factors):
        f = Blocks.of("scorer", scorer)
        with plain(f.device):
            checks.tensor("ids", ids, (f.n_rows, "C"), (torch.int64,), f.device)
            checks.seen(seen, f.n_rows, f.device)
            ids, seen, run = checks.own_ids("ids", ids, f.n_items), checks.own_seen(seen, f.n_items), steps(f.device)
            return 1 + f.counts(ids, seen, run), count_above(run, f.among(some_items), f.listed(ids), ties, some, 0)
    users, items, bias = scorer.user_factors, scorer.item_factors, scorer.flat_bias
    factors = Factors(users.detach(), items.detach(), None if bias is None else bias.detach())
    pair, few = (None, None) if seen is None else seen, (None, None) if some is None else some
    exact = torch.ops.bdkernels.rank(*factors, ids, *pair)
    return exact, torch.ops.bdkernels.count_above(
        *among(factors, some_items), torch.ops.bdkernels.score(*factors, ids), ties, *few
    )


def scaled(counts: Tensor, all_: Tensor, some: Tensor) -> Tensor:
    """Ranks among all_ items, to the nearest, from how many of `some` of them come before."""
    some = some.clamp(min=1)
    return 1 + (counts * all_ + some // 2) // some


def among(f: Factors, ids: Tensor) -> Factors:
    """The same users over the items `ids` alone."""
    bias = None if f.item_bias is None else mapped.take(f.item_bias, ids)
    return f._replace(item_factors=mapped.take(f.item_factors, ids), item_bias=bias)


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


def counted_items(n_items: int, subset: int | Tensor, seed: int, step: int) -> Tensor:
    """The items that `subset` means: so many random ones, or those."""
    seed, step = numbered(seed, step)
    if isinstance(subset, Tensor):
        checks.tensor("subset", subset, ("m",), (torch.int64,), subset.device)
        return checks.own_rising_ids("subset", subset, n_items)
    checks.int64("subset", subset)
    checks.integer("subset", subset, 1, n_items)
    return draw(n_items, subset, seed, step)


def numbered(seed: int, step: int) -> tuple[int, int]:
    """Both as Python's integers; TypeError or ValueError unless they are a seed and a step, as for `sample`."""
    checks.int64("seed", seed)
    checks.int64("step", step)
    checks.integer("step", step, 0, 2**32 - 1)
    return int(seed), int(step)


def items_of(n_items: int, m: int, seed: int, step: int) -> Tensor | None:
    """`draw`, or None where it would be all items: m is 0, or as many as there are."""
    return draw(n_items, m, seed, step) if 0 < m < n_items else None


class PopularityStrata:
    """Items by popularity, to draw some of each kind: one from every m-th part of the items in that order.

    Which items come before another depends much on popularity, so a subset that has them in proportion estimates ranks better
    than one drawn from all alike; `make subset` measures how much. Draws of the parts are independent, so Hoeffding's bound
    holds as it does for `draw` (theorem 2, which asks for no equal distributions).

    Args:
        popularity: [N] numbers of any dtype, such as interactions of each item.
    """

    def __init__(self, popularity: Tensor) -> None:
        checks.instance("popularity", popularity, Tensor)
        checks.tensor("popularity", popularity, ("N",), (popularity.dtype,), popularity.device)
        self.order = popularity.cpu().argsort(stable=True)

    def draw(self, m: int, seed: int = 0, step: int = 0) -> Tensor:
        """[m] int64: distinct items, rising, for `sample(subset=...)`; m from 1 to N. On the CPU, the same on every device.

        Where m does not divide N, parts differ by one item, and so do by 1 / (N / m) the chances of their items.
        """
        n = len(self.order)
        checks.int64("m", m)
        checks.integer("m", m, 1, n)
        seed, step = numbered(seed, step)
        index, user = torch.arange(m), torch.zeros((), dtype=torch.int64)
        _, _, hi, _ = reference.philox(seed, index, reference.SUBSET, user, step)
        edges = torch.arange(m + 1) * n // m
        return self.order[edges[:-1] + (hi * edges.diff() >> 32)].sort().values


def seen_among(seen: Seen, ids: Tensor) -> Seen:
    """What of the items `ids` [m], rising, has been seen, by their numbers in the subset. On a GPU this waits for it."""
    places = torch.searchsorted(ids, seen.indices.contiguous())
    there = ids[places.clamp(max=len(ids) - 1)] == seen.indices
    before = torch.zeros(len(there) + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(there, 0, out=before[1:])
    return Seen(before[seen.indptr], places[there])
