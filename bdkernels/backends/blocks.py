"""The stages of a backend over scores that come in blocks of items: those that the caller has, or those that an object makes.

A pass asks for the blocks from first to last, counts in one at a time with `count_above_block`, and lets it go. Scores of listed
items are compared with those that the counting pass meets, so a scorer that changes its mind is an error and no wrong rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import reference
from bdkernels.backends.backend import Steps
from bdkernels.types.factors import Factors
from bdkernels.types.scorers import ItemScorer, Scores
from bdkernels.types.seen import Seen

ELEMENTS = 1 << 20  # users x items of a block; tests change it, results do not
GPU_ELEMENTS = 1 << 22  # the same on a GPU, where a small block is mostly the launch
MEMBERS = ("n_rows", "n_items", "device", "block")


@contextmanager
def plain(device: torch.device) -> Iterator[None]:
    """As the operators run: no gradient, no autocast, which a scorer may switch on again for itself."""
    cast = torch.is_autocast_enabled(device.type)
    with torch.no_grad(), torch.autocast(device.type, enabled=False) if cast else nullcontext():
        yield


class Blocks:
    """The rows of a scorer that a call is about, block by block, checked.

    Args:
        name: of the argument, for errors.
        scorer: what the caller gave, or what its `take` made.
        rows: [B] int64, which of the scorer's rows these are; None: all, in their order.
        numbers: [B] int64, which rows of the call these are, for errors; None: all, in their order.

    Attributes:
        n_rows, n_items, device: B, N, and where the scores are.
    """

    def __init__(
        self, name: str, scorer: Scores | ItemScorer, rows: Tensor | None = None, numbers: Tensor | None = None
    ) -> None:
        self.name, self.scorer, self.rows, self.numbers = name, scorer, rows, numbers
        self.n_rows = scorer.n_rows if rows is None else len(rows)
        self.n_items, self.device = scorer.n_items, torch.empty(0, device=scorer.device).device  # "cuda" has a number

    @classmethod
    def of(cls, name: str, scorer: object) -> Blocks:
        """All rows of what the caller gave. Raises TypeError where it is no scorer, ValueError where its sizes are wrong."""
        if isinstance(scorer, Scores):
            checks.instance(f"{name}.scores", scorer.scores, Tensor)
            scores = scorer.scores.detach()
            checks.tensor(f"{name}.scores", scores, ("B", "N"), (torch.float32,), scores.device)
            found = cls(name, Scores(scores.resolve_neg()))
        elif all(hasattr(scorer, member) for member in MEMBERS):
            for member in ("n_rows", "n_items"):
                checks.int64(f"{name}.{member}", getattr(scorer, member))
                checks.integer(f"{name}.{member}", getattr(scorer, member), 0)
            checks.instance(f"{name}.device", scorer.device, torch.device, str)  # type: ignore[attr-defined]
            found = cls(name, scorer)  # type: ignore[arg-type]
        else:
            raise TypeError(
                f"{name}: expected Factors, Scores or an object with {', '.join(MEMBERS)}, got {type(scorer).__name__}"
            )
        checks.integer(f"{name}.n_items", found.n_items, 0, checks.MAX_ITEMS - 1)
        return found

    @property
    def dear(self) -> bool:
        """Whether a block has to be made."""
        return not isinstance(self.scorer, Scores)

    @property
    def lists(self) -> bool:
        """Whether it gives scores of listed items without a pass."""
        return not self.dear or hasattr(self.scorer, "listed")

    def take(self, rows: Tensor) -> Blocks:
        """Some of the rows, [R] int64, rising."""
        if len(rows) == self.n_rows:
            return self
        numbers = rows if self.numbers is None else self.numbers[rows]
        made = getattr(self.scorer, "take", None) if self.rows is None else None
        if made is None:
            return Blocks(self.name, self.scorer, rows if self.rows is None else self.rows[rows], numbers)
        some = Blocks.of(f"{self.name}.take(rows)", made(rows))
        checks.same(f"{some.name}.n_rows", some.n_rows, len(rows))
        checks.same(f"{some.name}.n_items", some.n_items, self.n_items)
        some.name, some.numbers = self.name, numbers
        return some

    def among(self, ids: Tensor) -> Among:
        """The same rows over the items `ids` [m], rising, alone."""
        return Among(self, ids)

    def edges(self) -> list[int]:
        """Where blocks begin and end: the same in every pass, so that each item is always scored beside the same others."""
        most = GPU_ELEMENTS if self.device.type == "cuda" else ELEMENTS
        width = max(1, most // max(1, self.scorer.n_rows if self.dear else self.n_rows))
        return [*range(0, self.n_items, width), self.n_items]

    def passes(self) -> Iterator[tuple[int, Tensor]]:
        """One pass: the first item and the scores [B, n] of each block."""
        for first, stop in pairwise(self.edges()):
            yield first, self.block(first, stop)

    def block(self, first: int, stop: int) -> Tensor:
        """[B, stop - first] float32 scores of a block, none of them NaN."""
        return self.finite(self.any_block(first, stop), partial(_shifted, first))

    def listed(self, ids: Tensor) -> Tensor:
        """[B, C] float32 scores of listed items, ids [B, C], none of them NaN."""
        if not self.lists:
            return self._gathered(ids)
        return self.finite(self.any_listed(ids), lambda row, column: int(ids[row, column]))

    def finite(self, scores: Tensor, item: Callable[[int, int], int]) -> Tensor:
        """The scores [B, n], of which none is NaN; `item` gives the id at a row and a column."""
        checks.no_nan_scores(self.name, scores, self.numbers, item)
        return scores

    def any_block(self, first: int, stop: int) -> Tensor:
        """`block` that may have a NaN."""
        if isinstance(self.scorer, Scores):
            found = self.scorer.scores[:, first:stop]
        else:
            shape = self.scorer.n_rows, stop - first
            found = self._checked(f"block({first}, {stop})", self.scorer.block(first, stop), shape)
        return found if self.rows is None else found[self.rows]

    def any_listed(self, ids: Tensor) -> Tensor:
        """`listed` that may have a NaN, of a scorer that `lists`."""
        if isinstance(self.scorer, Scores):
            rows = torch.arange(self.n_rows, device=ids.device) if self.rows is None else self.rows
            return self.scorer.scores[rows[:, None], ids]
        asked = ids
        if self.rows is not None:  # of the others, any item
            asked = ids.new_zeros(self.scorer.n_rows, ids.shape[1])
            asked[self.rows] = ids
        found = self._checked("listed(ids)", self.scorer.listed(asked), tuple(asked.shape))  # type: ignore[attr-defined]
        return found if self.rows is None else found[self.rows]

    def _checked(self, call: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
        checks.instance(f"{self.name}.{call}", found, Tensor)
        checks.tensor(f"{self.name}.{call}", found, shape, (torch.float32,), self.device)
        return found.detach().resolve_neg()

    def _gathered(self, ids: Tensor) -> Tensor:
        """The same from those blocks that have one of them."""
        out = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
        edges = self.edges()
        for (first, stop), (places, rows, items) in zip(pairwise(edges), by_block(ids, edges), strict=True):
            if len(places):
                out.view(-1)[places] = self.block(first, stop)[rows, items - first]
        return out

    def counts(self, ids: Tensor, seen: Seen | None, steps: Steps) -> Tensor:
        """[B, C] int64: how many unseen items come before the listed ones, ids [B, C]."""
        scores = self.listed(ids).contiguous()
        counts = torch.zeros_like(ids, memory_format=torch.contiguous_format)
        for (first, block), (places, rows, items) in zip(self.passes(), by_block(ids, self.edges()), strict=True):
            checks.same_scores(
                self.name, scores.view(-1)[places], block[rows, items - first], rows, items, self.numbers
            )
            counts += steps.count_above_block(block, scores, ids, seen, first)
        return counts


class Among:
    """Some of the items of `Blocks`: item i of these is item ids[i] of those. A NaN is named by its item's number here."""

    def __init__(self, whole: Blocks, ids: Tensor) -> None:
        self.whole, self.ids = whole, ids
        self.n_rows, self.n_items, self.device = whole.n_rows, len(ids), whole.device

    def take(self, rows: Tensor) -> Among:
        """Some of the rows, [R] int64, rising."""
        return Among(self.whole.take(rows), self.ids)

    def passes(self) -> Iterator[tuple[int, Tensor]]:
        """One pass: the number here of the first item, and the scores [B, n] of each block."""
        whole, edges = self.whole, self.whole.edges()
        if whole.lists:
            for begin, end in pairwise([*range(0, self.n_items, edges[1]), self.n_items]):
                found = whole.any_listed(self.ids[begin:end].expand(self.n_rows, -1))
                yield begin, whole.finite(found, partial(_shifted, begin))
            return
        places = torch.searchsorted(self.ids, torch.tensor(edges, device=self.ids.device)).tolist()
        for (first, stop), (begin, end) in zip(pairwise(edges), pairwise(places), strict=True):
            if begin < end:
                found = whole.any_block(first, stop)[:, self.ids[begin:end] - first]
                yield begin, whole.finite(found, partial(_shifted, begin))


def _shifted(first: int, row: int, column: int) -> int:
    return first + column


Model: TypeAlias = Any  # Factors, Blocks or Among: the stages of `blocked` take them all where `Steps` say Factors


def by_block(ids: Tensor, edges: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each block the listed items in it: their places in the flattened ids [B, C], their rows and their ids."""
    items, order = ids.flatten().sort()
    bounds = torch.searchsorted(items, torch.tensor(edges, device=ids.device)).tolist()
    for begin, end in pairwise(bounds):
        places = order[begin:end]
        yield places, places // max(1, ids.shape[1]), items[begin:end]


def blocked(steps: Steps, *, dear: bool) -> Steps:
    """The stages of `steps` for `Factors` and for `Blocks`; the sampler is made of them. dear: a block has to be made."""
    return steps._replace(
        score=partial(score, steps),
        score_block=partial(score_block, steps),
        count_above=partial(count_above, steps),
        topk=partial(topk, steps),
        draw=None,
        draw_round=None,
        queued=False,
        few_rounds=dear or steps.few_rounds,
    )


def take(f: Model, rows: Tensor) -> Model:
    """Some of the users, rows [R] int64, rising."""
    return f._replace(user_factors=f.user_factors[rows]) if isinstance(f, Factors) else f.take(rows)


def score(steps: Steps, f: Model, ids: Tensor) -> Tensor:
    assert not isinstance(f, Among)
    return steps.score(f, ids) if isinstance(f, Factors) else f.listed(ids)


def score_block(steps: Steps, f: Model) -> Tensor:
    if isinstance(f, Factors):
        return steps.score_block(f)
    out = torch.empty(f.n_rows, f.n_items, dtype=torch.float32, device=f.device)
    for first, block in f.passes():
        out[:, first : first + block.shape[1]] = block
    return out


def count_above(
    steps: Steps, f: Model, thresholds: Tensor, tie_ids: Tensor, seen: Seen | None, item_offset: int
) -> Tensor:
    if isinstance(f, Factors):
        return steps.count_above(f, thresholds, tie_ids, seen, item_offset)
    counts = torch.zeros_like(tie_ids, memory_format=torch.contiguous_format)
    for first, block in f.passes():
        counts += steps.count_above_block(block, thresholds, tie_ids, seen, item_offset + first)
    return counts


def counts_of(steps: Steps, f: Model, ids: Tensor, seen: Seen | None, **live: Tensor) -> Tensor:
    """[B, C] int64: how many unseen items come before the listed ones, ids [B, C]; `live` as in `Steps`."""
    if isinstance(f, Blocks):
        return f.counts(ids, seen, steps)
    return steps.count_above(f, steps.score(f, ids), ids, seen, 0, **live)


def topk(steps: Steps, f: Model, k: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    if isinstance(f, Factors):
        return steps.topk(f, k, seen)
    best = torch.full((f.n_rows, k), reference.NO_KEY, dtype=torch.int64, device=f.device)
    tile = max(k, reference.tile_size(f.n_rows))  # keys take several times the memory of scores
    for first, block in f.passes():
        for part in block.split(tile, dim=1):
            best = reference.merge_best(best, part, first, seen)
            first += part.shape[1]
    return reference.listed_keys(best)
