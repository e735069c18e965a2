"""Where the rows of a split come from: how many were read, which were dropped and why, what was left to chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bidistill.data.interactions import Interactions

NOTABLE = 0.01  # share of users with ties at the cut from which a split is no longer one by time


class Ties(NamedTuple):
    """Users whose cut between the parts lies within interactions of equal time, of `evaluated` users."""

    users: int
    evaluated: int
    seed: int  # of the lots that decided

    @property
    def share(self) -> float:
        return self.users / self.evaluated


@dataclass(frozen=True)
class Origin:
    """What happened to the rows of the source on the way into a Split.

    rows: how many the source has, which is the rows of all parts and those dropped.
    dropped: rows for each reason; a reason without a row is left out.
    ties: of a split by time. notes: sentences about what was done.
    """

    rows: int
    dropped: Mapping[str, int]
    ties: Ties | None = None
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """For Split.describe (JSON-ready)."""
        found: dict[str, Any] = {"rows_read": self.rows, "rows_dropped": dict(self.dropped)}
        if self.ties is not None:
            found |= {"ties_at_cut_users": self.ties.users, "ties_at_cut_share": self.ties.share}
        return found

    def sentences(self) -> list[str]:
        """The same for people."""
        found = list(self.notes)
        lost = sum(self.dropped.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        found.append(
            f"{self.rows:,} rows = {self.rows - lost:,} kept + {lost:,} dropped" + (f" ({reasons})" if lost else "")
        )
        if self.ties is not None and self.ties.users:
            users, evaluated, seed = self.ties
            found.append(
                f"ties at the cut: {users:,} of {evaluated:,} evaluated users ({self.ties.share:.1%}) have interactions of"
                f" equal time on both sides of the cut; a hash with the seed {seed} decides which of these are held out"
            )
            if self.ties.share >= NOTABLE:
                found.append(
                    "warning: for these users the split is not one by time; give a finer time column, or choose a random"
                    " split (leave_one or ratio)"
                )
        return found


def dropped_rows(data: Interactions) -> dict[str, int]:
    """Rows that reading dropped, for each reason."""
    counts = {"rated below `min_rating`": data.below_threshold, "repeated (user, item) pair": data.duplicates}
    return {reason: count for reason, count in counts.items() if count}


def reading_notes(*read: Interactions) -> tuple[str, ...]:
    """A sentence about each source that was read: what it was taken for."""
    return tuple(f"{data.reading.source}: {data.reading.sentence()}" for data in read if data.reading is not None)
