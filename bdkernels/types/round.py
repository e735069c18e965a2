"""What one round of the sampler is given where a backend does all of it in one stage: `Steps.draw_round`."""

from typing import NamedTuple

from torch import Tensor

from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen
from bdkernels.weights import WeightCode


class Round(NamedTuple):
    """The models, what was drawn so far, and the rows that take proposals. All tensors lie on one device and are contiguous but
    the factors, `seen` and `row_keys`; `draw_round` changes the last seven in place, and waits for nothing.

    Two directions share the proposals: number 0 is to the student, number 1 to the teacher. A direction whose weight has the
    kind "" is off.

    Attributes:
        teacher, student: of all B rows.
        seen: of all B rows, or None.
        row_keys: [B] int64, whose random numbers each row draws (bdkernels/sampling/keys.py).
        candidates: [B] int64, how many items each row has not seen.
        weights: of the two directions.
        limits: probe, min_hits and cap: after `probe` proposals a direction is closed for a row that has fewer than min_hits
            accepted, and after `cap` for every row.
        seed, step: [] int64.
        rows: [R] int64, those of the B rows that take proposals; all of them have candidates. In any order.
        live: [] int64: only so many of them, the first.
        ids: [2, B, k] int64, the draws of each direction; -1 where there are none yet. The accepted proposals of a round come
            behind those that are there, in the order of their counters, up to k.
        hits: [2, B] int64, how many were accepted; may pass k, and what it is then does not matter.
        next_rows: [R] int64; becomes those of `rows` that take more proposals, in any order, with anything behind them.
        next_live: [] int64; becomes how many they are.
        short: [] int64; grows, from whatever it is, by one for each of `rows` that takes no more proposals and has fewer than k
            draws in a direction.
        nan_at: [2] int64, of the teacher and the student. Where a score of one of `rows` is NaN, it becomes place * N + item of
            one such score; `place` is that in `rows`. -1 before.
    """

    teacher: Factors
    student: Factors
    seen: Seen | None
    row_keys: Tensor
    candidates: Tensor
    weights: tuple[WeightCode, WeightCode]
    limits: tuple[int, int, int]
    seed: Tensor
    step: Tensor
    rows: Tensor
    live: Tensor
    ids: Tensor
    hits: Tensor
    next_rows: Tensor
    next_live: Tensor
    short: Tensor
    nan_at: Tensor

    def following(self) -> "Round":
        """The state of the next round, once this one is done: the lists of rows change their places."""
        return self._replace(rows=self.next_rows, live=self.next_live, next_rows=self.rows, next_live=self.live)
