"""The sampler's rounds where a backend does each of them on its device, in one stage (`Steps.draw_round`).

All rows of a call share one state in the device's memory, which every round changes in place (types/round.py). After a round the
host asks one question, how many rows are still open, and shapes the next launches for so many. A CUDA graph that is being
captured cannot ask: there all rounds are queued, and their blocks return at once where no open row is left.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.backend import Steps
from bdkernels.types.round import Round

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


def run(steps: Steps, state: Round, live: Tensor | None) -> bool:
    """All rounds of the rows of a state, of which the first `live`, int64 [], have candidates; None: all.

    Returns:
        whether a row needs the full row; False where it cannot be asked.
    """
    assert steps.draw_round is not None
    asks, all_rows, at_once = may_ask(state.rows.device), state.rows, IN_FLIGHT // first(state.ids.shape[2])
    for begin in range(0, len(all_rows), at_once):
        rows = all_rows[begin : begin + at_once]
        many = torch.full_like(state.live, len(rows)) if live is None else (live - begin).clamp(0, len(rows))
        s = state._replace(rows=rows, live=many)
        for start, stop in spans(s.ids.shape[2], *s.limits[::2]):
            steps.draw_round(s, start, stop)
            if start == 0:  # where every score of every row is met
                checks.no_nan_in_rows(s.nan_at, s.teacher.n_items, rows)
            s = s.following()
            if asks:
                if not (left := int(s.live)):
                    break
                s = s._replace(rows=s.rows[:left])
    return asks and bool(state.short)
