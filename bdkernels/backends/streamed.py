"""The stages of a backend over item tables that are mapped from disk: slice by slice, front to back, each then given back.

Counts add up over slices and the best of each slice are merged in the total order, so nothing differs from a table in memory, bit
for bit. What is in memory goes to the backend whole.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bdkernels.backends import reference
from bdkernels.backends.backend import Steps
from bdkernels.storage import mapped
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen

SLICE_BYTES = 32 << 20  # of a table, resident at once; tests change it, results do not
PAIR_BYTES = 4 << 20  # of the item rows that `score` gathers at a time


def streamed(steps: Steps) -> Steps:
    """The stages of `steps` for factors whose item tables may be mapped; the sampler is made of them, in few rounds."""
    return steps._replace(
        score=partial(score, steps),
        score_block=partial(score_block, steps),
        count_above=partial(count_above, steps),
        topk=partial(topk, steps),
        draw=None,
        draw_round=None,
        queued=False,
        few_rounds=True,
    )


def slices(f: Factors) -> Iterator[tuple[int, Factors]]:
    """First item and factors of each slice of the items; just one where no table is mapped."""
    tables = [t for t in (f.item_factors, f.item_bias) if t is not None]
    found = [(t, mapping) for t in tables if (mapping := mapped.mapping_of(t)) is not None]
    if not found:
        yield 0, f
        return
    rows = max(1, SLICE_BYTES // max(_row_bytes(t) for t in tables))
    for t, mapping in found:
        mapping.in_order(True)
        mapping.read_ahead(*mapping.extent(t[:rows]))
    for start in range(0, f.n_items, rows):
        stop = start + rows
        for t, mapping in found:
            mapping.check()
            mapping.read_ahead(*mapping.extent(t[stop : stop + rows]))
        yield start, reference.slice_items(f, start, stop)
        for t, mapping in found:
            mapping.release(*mapping.extent(t[start:stop]))


def _row_bytes(t: Tensor) -> int:
    """What a row takes of the pages; a view of some columns takes those between them too."""
    return t.element_size() * max(1, t.stride(0), t[:1].numel())


def score(steps: Steps, f: Factors, ids: Tensor) -> Tensor:
    """Pair by pair, in the order of the items, so that each page is read once."""
    if not mapped.any_mapped(f[1:]):
        return steps.score(f, ids)
    out = torch.empty(ids.shape, dtype=torch.float32)
    items, places = ids.flatten().sort()
    at_once = max(1, PAIR_BYTES // (4 * max(1, f.item_factors.shape[1])))
    for some, at in zip(items.split(at_once), places.split(at_once), strict=True):
        if len(some):  # one empty piece, where there are no ids
            users = f.user_factors[at // ids.shape[1]]
            bias = None if f.item_bias is None else mapped.take(f.item_bias, some)
            pairs = Factors(users, mapped.take(f.item_factors, some), bias)
            out.view(-1)[at] = steps.score(pairs, torch.arange(len(some))[:, None]).squeeze(1)
    return out


def score_block(steps: Steps, f: Factors) -> Tensor:
    out = torch.empty(f.user_factors.shape[0], f.n_items, dtype=torch.float32)
    for start, part in slices(f):
        out[:, start : start + part.n_items] = steps.score_block(part)
    return out


def count_above(
    steps: Steps, f: Factors, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int
) -> Tensor:
    counts = torch.zeros_like(tie_ids, memory_format=torch.contiguous_format)
    for start, part in slices(f):
        counts += steps.count_above(part, thresholds, tie_ids, seen, item_offset + start)
    return counts


def topk(steps: Steps, f: Factors, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    worst = torch.iinfo(torch.int64).min
    best = torch.full((f.user_factors.shape[0], k), worst, dtype=torch.int64)
    for start, part in slices(f):
        inside = None if seen is None else seen.between(start, start + part.n_items)
        try:
            scores, ids = steps.topk(part, min(k, part.n_items), inside)
        except ValueError:  # a NaN, named by the item's number in the slice; this names it by the one in the table
            none = torch.zeros(len(best), 1)
            steps.count_above(part, none, none.long(), None, start)
            raise
        keys = reference.order_key(scores, ids + start).masked_fill_(ids < 0, worst)
        best = torch.cat([best, keys], 1).topk(k, dim=1).values
    return reference.listed_keys(best)
