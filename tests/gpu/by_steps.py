"""A round of the sampler made of the reference's other stages: what `draw_round` of a backend is compared with."""

from collections.abc import Callable
from typing import Any

import torch

from bdkernels.backends import reference
from bdkernels.types.factors import Factors
from bdkernels.types.round import Round
from bdkernels.types.seen import Seen
from bdkernels.weights import WeightCode

Weights = tuple[WeightCode, WeightCode]


def draw_round(s: Round, start: int, stop: int) -> None:
    """As `Steps.draw_round`, written for the eye; what it leaves undefined becomes nonsense here."""
    (probe, min_hits, cap), k = s.limits, s.ids.shape[2]
    rows = s.rows[: int(s.live)]
    seed, step, row_keys, n = int(s.seed), int(s.step), s.row_keys[rows], s.candidates[rows]
    seen = None if s.seen is None else s.seen.rows(rows)
    proposed = reference.propose(seed, step, row_keys, start, stop, s.teacher.n_items, seen)
    ranks = []
    for f in (s.teacher, s.student):
        f = f._replace(user_factors=f.user_factors[rows])
        ranks.append(1 + reference.count_above(f, reference.score(f, proposed), proposed, seen, 0))
    is_open, is_short = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
    for to_teacher, weight in enumerate(s.weights):
        if not weight[0]:
            continue
        guide, learner = ranks[to_teacher], ranks[1 - to_teacher]
        hit = reference.accept(seed, step, row_keys, start, guide, learner, n, weight, bool(to_teacher))
        for place, row in enumerate(rows.tolist()):
            had = int(s.hits[to_teacher, row])
            if had >= k or (start >= probe and had < min_hits):  # closed
                is_short[place] |= had < k
                continue
            accepted = proposed[place][hit[place]]
            new = accepted[: k - had]
            s.ids[to_teacher, row, had : had + len(new)] = new
            s.hits[to_teacher, row] = has = had + len(accepted)
            takes_more = has < k and stop < cap and (stop < probe or has >= min_hits)
            is_open[place] |= takes_more
            is_short[place] |= has < k and not takes_more
    s.next_rows.fill_(-12345)
    s.next_rows[: int(is_open.sum())] = rows[is_open].flip(0)  # any order
    s.next_live.fill_(is_open.sum())
    s.short.add_((is_short & ~is_open).sum())


def assert_same_round(stage: Callable[[Round, int, int], None], state: Round, start: int, stop: int) -> Round:
    """The stage does to a state what the reference's stages do. Returns the state after it, whose tensors are its own."""
    got, want = (copied(state) for _ in range(2))
    stage(got, start, stop)
    draw_round(want, start, stop)
    live = int(want.next_live)
    assert int(got.next_live) == live
    assert got.next_rows[:live].sort().values.equal(want.next_rows[:live].sort().values)
    for one, other in ((got.ids, want.ids), (got.short, want.short)):
        assert one.equal(other), (one, other)
    k = got.ids.shape[2]  # beyond it a number of hits has no meaning
    assert got.hits.clamp(max=k).equal(want.hits.clamp(max=k))
    assert (got.nan_at == -1).all()
    return got


def first_round(
    teacher: Factors, student: Factors, k: int, seen: Seen | None, weights: Weights, **changed: Any
) -> Round:
    """The state before the first round, of all rows with candidates; the last of them come first."""
    b, n = len(teacher.user_factors), teacher.n_items
    device = teacher.user_factors.device
    candidates = reference.candidate_counts(n, b, seen, device)
    rows = candidates.flip(0).sort(stable=True).indices  # those without candidates, if any, to the end
    rows = (b - 1 - rows).roll(-int((candidates == 0).sum()))
    zero = torch.zeros((), dtype=torch.int64, device=device)
    state = Round(
        teacher, student, seen, torch.arange(b, device=device) - 2 << 39, candidates, weights, (1024, 16, 4096),
        zero + 7, zero + 3, rows, (candidates > 0).sum(), torch.full((2, b, k), -1, device=device),
        torch.zeros(2, b, dtype=torch.int64, device=device), torch.full_like(rows, -1), zero + 99, zero + 5,
        torch.full((2,), -1, device=device),
    )  # fmt: skip
    return state._replace(**changed)


def copied(state: Round) -> Round:
    """The same state in memory of its own."""
    return state._replace(**{name: getattr(state, name).clone() for name in CHANGED})


CHANGED = ("rows", "live", "ids", "hits", "next_rows", "next_live", "short", "nan_at")
