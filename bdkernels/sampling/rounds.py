"""The sampler's rounds where a backend does each of them on its device, in one stage (`Steps.draw_round`).

All rows of a call share one state in the device's memory, which every round changes in place (types/round.py). After a round the
host asks one question, how many rows are still open, and shapes the next launches for so many. A CUDA graph that is being
captured cannot ask: there all rounds are queued, and their blocks return at once where no open row is left.
"""

import math
from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.backend import Steps
from bdkernels.types.factors import Factors
from bdkernels.types.round import Round
from bdkernels.types.seen import Seen
from bdkernels.weights import WeightCode

# The first round is large enough to be the last for nearly all rows, as in csrc/cpu/sampler.cpp: the draws that are asked for and
# three standard deviations, at an acceptance of RATE, which models that agree closely still have at the released weights. What
# is left then is few rows, to which a pass over the catalog costs little, whatever it counts: those rounds are large.
RATE = 0.096
FEWEST, FIRST = 64, 512  # proposals of a row in the first round, at least and at most
FURTHER = 1024  # in those after it
IN_FLIGHT = 1 << 22  # proposals of the first round over all rows, at most: they take 40 bytes each of scratch memory


def first(k: int) -> int:
    """How many proposals of each row the first round has."""
    wanted = (k + 3 * math.sqrt(k)) / RATE
    return min(FIRST, max(FEWEST, math.ceil(wanted / FEWEST) * FEWEST))


def spans(k: int, probe: int, cap: int) -> Iterator[tuple[int, int]]:
    """First proposal of each round, and the one after its last: no round goes over `probe`, after which rows are closed."""
    start, size = 0, first(k)
    while start < cap:
        stop = min(start + size, cap if start >= probe else probe)
        yield start, stop
        start, size = stop, FURTHER


def may_ask(device: torch.device) -> bool:
    """Whether the host may wait for the device."""
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


class Drawn(NamedTuple):
    """What the rounds give.

    Attributes:
        ids: [2, B, k] int64 to the student and to the teacher, -1 where the rounds gave none.
        hits: [2, B] int64, how many they gave; may pass k.
        short: whether a row with candidates has fewer than k; False where that cannot be asked.
    """

    ids: Tensor
    hits: Tensor
    short: bool


def draw(
    steps: Steps,
    models: tuple[Factors, Factors],
    seen: Seen | None,
    row_keys: Tensor,
    candidates: Tensor,
    k: int,
    weights: tuple[WeightCode, WeightCode],
    numbers: tuple[Tensor, Tensor],
    limits: tuple[int, int, int],
) -> Drawn:
    """All rounds, of all rows. `models` are the teacher and the student, `numbers` the seed and the step, [] int64."""
    assert steps.draw_round is not None
    new = candidates.new_full
    ids, hits = new((2, len(candidates), k), -1), candidates.new_zeros(2, len(candidates))
    further, answers = new((len(candidates) + 5,), -1).split((len(candidates), 5))
    lengths, short, nan_at = answers[:2], answers[2], answers[3:]  # what the host asks for: rows left, short rows, NaN
    if seen is None:
        rows, live = torch.arange(len(candidates), device=candidates.device), new((), len(candidates))
    else:  # those with candidates first
        rows, live = candidates.argsort(descending=True), candidates.count_nonzero()
    state = Round(
        *models, seen, row_keys, candidates, weights, limits, *numbers,
        rows, live, ids, hits, further, lengths[0], short, nan_at,
    )  # fmt: skip
    asks, at_once = may_ask(rows.device), IN_FLIGHT // first(k)
    many, n_items = [0, 0, -1, -1, -1], models[0].n_items
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once]
        s = state._replace(rows=some, live=live if len(some) == len(rows) else (live - begin).clamp(0, len(some)))
        for odd, (start, stop) in zip(cycle((0, 1)), spans(k, limits[0], limits[2]), strict=False):
            s = s._replace(next_live=lengths[odd])
            steps.draw_round(s, start, stop)
            s = s.following()
            if asks:
                many = answers.to("cpu", copy=True).tolist()
                checks.no_nan_in_rows(max(many[3:]), n_items, some)
                if not (left := many[odd]):
                    break
                s = s._replace(rows=s.rows[:left])
    if not asks:
        checks.no_nan_at(nan_at.amax(), n_items)
    return Drawn(ids, hits, many[2] >= 0)
