"""The exact sampler: propose, score, count, accept, in rounds; then the full row for the few users that need it.

The rounds are the same for every backend: a backend supplies the steps (`backends.Steps`). Draw i of a row is its i-th accepted
proposal in the order of the proposals' counters, so the size of a round, the batch and the number k asked for change nothing.

Where the steps are queued on a GPU, the host asks one question after a round: is any user left? A CUDA graph that is being
captured cannot ask, so there all rounds are queued, and a user who needs the full row gets fewer draws (they are exact), the
rest is -1. A backend that does a whole round on its device in one stage has rounds of its own (rounds.py).

Ranks may be counted over a random subset of the catalog instead (subset.py): proposals still come from all of it, and what the
full row would give comes from the subset's row.

Nor do the rounds know where the items are: they ask `Items`, whose tables are this process's own. On those of distributed.py,
which lie on several processes, all of them ask each question at once: every process goes through the same rounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import reference
from bdkernels.backends.backend import Steps
from bdkernels.backends.blocks import Blocks, Model, counts_of, take
from bdkernels.checks import NaNScore
from bdkernels.sampling import keys, rounds, subset
from bdkernels.types.seen import Seen
from bdkernels.weights import WeightCode

# A user who has fewer than MIN_HITS accepted among the first PROBE proposals, or fewer than asked among the first CAP, gets
# the rest of the draws from the full row, which costs about as much as the CAP. Both rules look at how many proposals were
# accepted and never at which, and neither looks at k: draws stay exact, and draw i stays draw i whatever k is.
PROBE, MIN_HITS, CAP = 1024, 16, 4096
ROUND = 256  # most proposals in one round
IN_FLIGHT = 1 << 18  # proposals of a round over all users, at most, where rounds are few; they bound the scratch memory
ROWS = 1024  # most users in flight, which bounds the scratch memory
ROW_ELEMENTS = 1 << 20  # users x items ranked at once by the fallback (one user at least)
OFF = WeightCode()  # of a direction that draws nothing


class Group(NamedTuple):
    """Users that are sampled together, of the rows of a call."""

    teacher: Model
    student: Model
    seen: Seen | None
    row_keys: Tensor  # [B] int64, whose random numbers each row draws: keys.py
    candidates: Tensor  # [B] int64, unseen items of each user
    subset: "Subset | None" = None  # of the items, to count ranks over; None: all

    def take(self, rows: Tensor, nnz: int | None = None) -> "Group":
        """The same for some rows, none of them twice; rising, unless a graph is being captured. nnz: of their seen items."""
        if nnz is None and self.seen is not None and len(rows) == len(self.row_keys):
            nnz = len(self.seen.indices)
        return Group(
            take(self.teacher, rows),
            take(self.student, rows),
            None if self.seen is None else self.seen.rows(rows, nnz),
            self.row_keys[rows],
            self.candidates[rows],
            None if self.subset is None else Subset(self.subset.ids, self.subset.batch.take(rows)),
        )

    def among(self, ids: Tensor, rows: Tensor) -> "Group":
        """The same users, with ranks from the items `ids`, rising, of which those in these rows of the tables are here."""
        seen = None if self.seen is None else subset.seen_among(self.seen, ids)
        candidates = reference.candidate_counts(len(ids), len(self.row_keys), seen, ids.device)
        teacher, student = (
            f.among(ids) if isinstance(f, Blocks) else subset.among(f, rows) for f in (self.teacher, self.student)
        )
        part = Group(teacher, student, seen, self.row_keys, candidates)
        return self._replace(subset=Subset(ids, part))

    @property
    def counted(self) -> "Group":
        """The same users with just the items that ranks are counted over."""
        return self if self.subset is None else self.subset.batch

    def ranks(self, counts: Tensor) -> Tensor:
        """[B, C] int64 in the catalog, from how many unseen ones of the counted items come before, to the nearest rank."""
        if self.subset is None:
            return 1 + counts
        return subset.scaled(counts, self.candidates[:, None], self.counted.candidates[:, None])


class Subset(NamedTuple):
    """Some items of a catalog: item i of the batch is item ids[i]."""

    ids: Tensor  # [m] int64, rising
    batch: Group

    @contextmanager
    def named(self) -> Iterator[None]:
        """A NaN's item is named as in the catalog."""
        try:
            yield
        except NaNScore as error:
            raise NaNScore(error.name, error.row, int(self.ids[error.item])) from None


class Items:
    """The items when all of them are in this process's tables: how many, and what the rounds ask of them.

    Attributes:
        steps: of the backend.
        n_items: N.
    """

    def __init__(self, steps: Steps, n_items: int) -> None:
        self.steps, self.n_items = steps, n_items

    def at_once(self, k: int) -> int:
        """Most users in flight, for k draws each."""
        return IN_FLIGHT // _first_round(self.steps, k) if self.steps.few_rounds else ROWS

    def subset(self, batch: Group, ids: Tensor) -> Group:
        """The batch with ranks from the items `ids` alone."""
        return batch.among(ids, ids)

    def turns(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """The rows [n], at most `size` at a time."""
        yield from rows.split(size) if rows.numel() else ()

    def meet(self, batch: Group) -> None:
        """The rows of the following questions are rows of this batch."""

    def open(self, is_open: Tensor) -> Tensor:
        """[R] int64, rising: the rows that ask in this round, given which are open, [B] bool."""
        return is_open.nonzero().squeeze(1)

    def any(self, rows: Tensor) -> bool:
        """Whether anyone has a row to ask for."""
        return bool(rows.numel())

    def take(self, batch: Group, rows: Tensor) -> Group:
        """The rows of the batch that ask in this round."""
        return batch.take(rows)

    def counts(self, b: Group, rows: Tensor, listed: Tensor, **live: Tensor) -> list[Tensor]:
        """Of the teacher and the student: [R, C] int64, how many unseen counted items come before the listed ids [R, C].

        `b` is rows [R] of the batch.
        """
        if b.subset is None:
            return [counts_of(self.steps, f, listed, b.seen, **live) for f in (b.teacher, b.student)]
        counts, ties, part = [], torch.searchsorted(b.subset.ids, listed), b.counted
        for f, among in ((b.teacher, part.teacher), (b.student, part.student)):
            scores = self.steps.score(f, listed)
            checks.no_nan_listed(_live(scores, **live), listed)
            with b.subset.named():
                counts.append(self.steps.count_above(among, scores, ties, part.seen, 0, **live))
        return counts

    def full_scores(self, b: Group, rows: Tensor, model: int) -> Tensor:
        """[R, n] float32 scores of all n counted items under the teacher (0) or the student (1); no NaN among them."""
        scores = self.steps.score_block((b.counted.teacher, b.counted.student)[model])
        with nullcontext() if b.subset is None else b.subset.named():
            reference.check_scores(scores, 0)
        return scores


class Direction(NamedTuple):
    """One direction of distillation: who learns, by which weight, and the draws so far."""

    to_teacher: int  # 0 or 1, its place in every pair
    weight: WeightCode
    ids: Tensor  # [B, k] int64, -1 where not drawn
    hits: Tensor  # [B] int64, how many were accepted; may pass k
    open: Tensor  # [B] bool, which users still take proposals


def sample(
    steps: Steps,
    teacher: Model,
    student: Model,
    k: int,
    seen: Seen | None,
    weights: tuple[WeightCode, WeightCode],
    seed: int | Tensor,
    step: int | Tensor,
    row_keys: Tensor,
    counted: Tensor | None = None,
    items: Items | None = None,
    independent_directions: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw k items a row and direction; returns their ids [B, k] to the student and to the teacher, -1 where none.

    `weights` are those to the student and to the teacher; a direction whose kind is "" is off and has no columns. Ranks are
    counted over the items `counted` [m], rising; over all by default. `items` says where they are: in the tables. Independent
    directions take a pass each, with row keys that have nothing in common. Seed and step may lie on the device, int64 [], where
    only a backend with `draw_round` leaves them.
    """
    draw = steps.draw if items is None else None
    if items is None and counted is None and steps.draw_round is not None:
        draw = partial(_draw_on_device, steps)
    else:
        seed, step = int(seed), int(step)
    items = items or Items(steps, teacher.n_items)
    candidates = reference.candidate_counts(items.n_items, len(row_keys), seen, row_keys.device)
    everyone = Group(teacher, student, seen, row_keys, candidates)
    if counted is not None:
        everyone = items.subset(everyone, counted.to(row_keys.device))
    draw = draw or partial(_draw, items)
    out: list[Tensor | None] = [None, None]
    passes = [(everyone, weights)]
    if independent_directions:
        other = everyone._replace(row_keys=keys.apart(row_keys))
        passes = [(everyone, (weights[0], OFF)), (other, (OFF, weights[1]))]
    for batch, codes in passes:
        if codes != (OFF, OFF):
            ids = draw(batch, k, codes, seed, step, (PROBE, MIN_HITS, CAP))
            out = [new if kind else old for old, new, (kind, _, _) in zip(out, ids, codes, strict=True)]
    to_student, to_teacher = (row_keys.new_empty(len(row_keys), 0) if ids is None else ids for ids in out)
    return to_student, to_teacher


def _draw(
    items: Items,
    everyone: Group,
    k: int,
    weights: tuple[WeightCode, WeightCode],
    seed: int,
    step: int,
    limits: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """`sample` made of the steps of a backend."""
    n_users = len(everyone.row_keys)
    out = [everyone.row_keys.new_full((n_users, k), -1) for _ in weights]
    for rows in items.turns(torch.arange(n_users, device=everyone.row_keys.device), items.at_once(k)):
        batch = everyone.take(rows)
        directions = [
            Direction(to_teacher, weight, ids[rows], torch.zeros_like(rows), batch.candidates > 0)
            for to_teacher, (weight, ids) in enumerate(zip(weights, out, strict=True))
            if weight[0]
        ]
        items.meet(batch)
        _accept_in_rounds(items, batch, directions, k, seed, step, limits)
        for d in directions:
            if rounds.may_ask(rows.device):
                _fill(items, batch, d, seed, step)
            out[d.to_teacher][rows] = d.ids
    to_student, to_teacher = out
    return to_student, to_teacher


def _draw_on_device(
    steps: Steps,
    everyone: Group,
    k: int,
    weights: tuple[WeightCode, WeightCode],
    seed: int | Tensor,
    step: int | Tensor,
    limits: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """`sample` where the backend does a whole round on its device."""
    b, new = everyone, everyone.candidates.new_full
    numbers = tuple(n if isinstance(n, Tensor) else new((), n) for n in (seed, step))
    models = b.teacher, b.student
    ids, hits, short = rounds.draw(
        steps, models, b.seen, b.row_keys, b.candidates, k, weights, (numbers[0], numbers[1]), limits
    )
    for to_teacher, weight in enumerate(weights):
        if short and weight[0]:
            direction = Direction(to_teacher, weight, ids[to_teacher], hits[to_teacher], b.candidates > 0)
            _fill(Items(steps, b.teacher.n_items), b, direction, int(seed), int(step))
    return ids[0].clone(), ids[1]  # with no memory in common


def _live(scores: Tensor, live: Tensor | None = None) -> Tensor:
    """The scores [R, C], and 0 in the rows after the first `live` ones, which nobody asks for."""
    return (
        scores if live is None else scores.where(torch.arange(len(scores), device=scores.device)[:, None] < live, 0.0)
    )


def _first_round(steps: Steps, k: int) -> int:
    """How many proposals of each user it counts."""
    return min(PROBE if steps.few_rounds else ROUND, max(32, 8 * k))


def _accept_in_rounds(
    items: Items, batch: Group, directions: list[Direction], k: int, seed: int, step: int, limits: tuple[int, int, int]
) -> None:
    steps = items.steps
    probe, min_hits, cap = limits
    size = _first_round(steps, k)
    start = 0
    while directions and start < cap:
        is_open = torch.stack([d.open for d in directions]).any(0)
        if steps.queued and not rounds.may_ask(is_open.device):  # all rows, the open ones first
            rows, live = is_open.logical_not().sort(stable=True).indices, {"live": is_open.sum()}
        else:
            rows, live = items.open(is_open), {}
        if not items.any(rows):
            return
        if steps.few_rounds:  # who is left takes the room of those who are done
            size = max(size, IN_FLIGHT // len(rows))
        stop = min(start + size, cap if start >= probe else probe)
        b = items.take(batch, rows)
        ids = steps.propose(seed, step, b.row_keys, start, stop, items.n_items, b.seen)
        listed = ids.clamp(min=0)  # of a user without candidates, who is not open, any item
        rank_t, rank_s = map(b.ranks, items.counts(b, rows, listed, **live))
        for d in directions:
            guide, learner = (rank_s, rank_t) if d.to_teacher else (rank_t, rank_s)
            hit = steps.accept(
                seed, step, b.row_keys, start, guide, learner, b.candidates, d.weight, bool(d.to_teacher)
            )
            _place(d, rows, ids, hit & d.open[rows, None], k)
            d.open.logical_and_(d.hits < k)
            if stop == probe:
                d.open.logical_and_(d.hits >= min_hits)
        start = stop


def _place(d: Direction, rows: Tensor, ids: Tensor, hit: Tensor, k: int) -> None:
    """Write the accepted proposals behind those that the users have already, up to k."""
    position = d.hits[rows, None] + hit.cumsum(1) - 1
    wide = torch.nn.functional.pad(d.ids[rows], (0, 1))  # by a column for all the others
    d.ids[rows] = wide.scatter(1, position.where(hit & (position < k), k), ids)[:, :k]
    d.hits[rows] += hit.sum(1)


def _fill(items: Items, batch: Group, d: Direction, seed: int, step: int) -> None:
    """The draws that the rounds have not given, of all rows of the batch that have candidates."""
    n_counted = items.n_items if batch.subset is None else len(batch.subset.ids)
    missing = ((d.hits < d.ids.shape[1]) & (batch.candidates > 0)).nonzero().squeeze(1)
    for some in items.turns(missing, max(1, ROW_ELEMENTS // n_counted)):
        _draw_from_full_rows(items, batch.take(some), d, some, seed, step)


def _draw_from_full_rows(items: Items, b: Group, d: Direction, rows: Tensor, seed: int, step: int) -> None:
    """Fill the missing draws of these rows from the cumulative weights of all candidates: float64, from log-weights."""
    kind, parameter, flipped = d.weight
    part = b.counted
    guide = d.to_teacher  # the student guides the teacher
    rank_guide = _full_ranks(items, b, rows, guide)
    delta = rank_guide - _full_ranks(items, b, rows, 1 - guide)
    log_w = reference.log_weight(kind, parameter, -delta if flipped else delta, b.candidates[:, None], rank_guide)
    del delta, rank_guide
    if part.seen is not None:
        log_w[part.seen.row_of_each(), part.seen.indices] = -torch.inf
    top = log_w.amax(1, keepdim=True)
    cumulative = (log_w - top).exp_().nan_to_num_(0.0).cumsum_(1)  # NaN: no weight anywhere
    total = cumulative[:, -1:].contiguous()
    index = torch.arange(d.ids.shape[1], device=rows.device)
    words = reference.philox(seed, index, reference.FALLBACK, b.row_keys[:, None], step)
    u = reference.uniform(*words[2:]) if d.to_teacher else reference.uniform(*words[:2])
    last = torch.searchsorted(cumulative, total)  # the last item with weight: u * total may round up to total
    drawn = torch.searchsorted(cumulative, u * total, right=True).minimum(last)
    drawn = torch.where(total > 0, drawn if b.subset is None else b.subset.ids[drawn], -1)
    d.ids[rows] = torch.where(index < d.hits[rows, None], d.ids[rows], drawn)


def _full_ranks(items: Items, b: Group, rows: Tensor, model: int) -> Tensor:
    """[B, n] integer ranks of the unseen ones of the n counted items by a model, and anything for seen ones. The widest
    moment of the library: a row takes about 40 bytes an item, which is why rows come one by one where the catalog is large."""
    seen, scores = b.counted.seen, items.full_scores(b, rows, model)
    keys = reference.order_bits(scores)  # integers: no float mode can make scores equal that are not
    order = keys.sort(dim=1, descending=True, stable=True).indices  # ties stay in the order of their ids
    del keys
    del scores
    places = torch.arange(1, order.shape[1] + 1, dtype=torch.int32, device=order.device).expand_as(order)
    if seen is not None:
        is_seen = torch.zeros_like(order, dtype=torch.bool)
        is_seen[seen.row_of_each(), seen.indices] = True
        places = places - is_seen.gather(1, order).cumsum(1, dtype=torch.int32)
    ranks = torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(1, order, places)
    return ranks if b.subset is None else b.ranks(ranks - 1)
