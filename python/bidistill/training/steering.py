"""What callbacks may ask of a run: to end, another learning rate, a number in the history."""

from __future__ import annotations

import math

from bidistill.config import Config
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.logs import log
from bidistill.training.engine import Engine
from bidistill.training.phases import TITLES, Progress, Row

ELSEWHERE = "a callback asked for it elsewhere"


class Steered:
    """The part of a `Trainer` that callbacks steer. All of it is in the checkpoints, so a resumed run goes on with it.

    Attributes:
        stopped: why the run trains no more, or "". Resumed, it trains no more either, unless this is set to "" before `fit`.
    """

    config: Config
    partition: Partition
    engine: Engine
    progress: Progress
    history: list[Row]

    def __init__(self) -> None:
        self.stopped = ""
        self.notes: dict[str, float] = {}  # numbers for the next row of the history
        self._row: Row | None = None  # the row that callbacks see at the moment
        self._columns: frozenset[str] = frozenset()  # those that the run has filled itself in the last row

    def stop(self, reason: str) -> None:
        """Train no more, after the running step: `fit` returns the best states so far and `Result.stopped` gives the reason.

        The phases that are left are evaluated where they would begin, and not trained, so the run is finished as any other. An
        epoch that is not whole has no row in the history. Where several programs train together, one that asks is enough.

        reason: words for the log.
        """
        self.stopped = _reason("stop", reason)
        self._told(f"the run is stopped: {reason}")

    def end_phase(self, reason: str) -> None:
        """End the running phase after the running step, as patience does: its best states are kept and the next phase begins."""
        self.progress.ended = _reason("end_phase", reason)
        self._told(f"{TITLES[self.progress.phase]} is ended: {reason}")

    def lr(self, name: str) -> float:
        """The learning rate of the "teacher" or the "student"."""
        return self.engine.learner(name).lr

    def set_lr(self, name: str, value: float) -> None:
        """From the next step of the running phase on, the "teacher" or the "student" learns at this rate.

        A phase begins with the rate of the settings, and an `lr_scheduler` may change the rate after each epoch. Programs that
        train together must all ask for the same rate.

        Raises:
            UserError: no such model, or a rate that the settings may not have.
        """
        self.engine.learner(name).set_lr(self.config.checked(f"{name}.lr", value))

    def log(self, name: str, value: float) -> None:
        """Put a number into a column of the history: of the epoch's row in `on_epoch`, before that of the row that comes next.

        The last number counts. metrics.csv, TensorBoard and `Result.history` have it.

        Raises:
            UserError: the number is not finite, or the name is that of a column which the run fills itself.
        """
        if not isinstance(name, str) or not name:
            raise UserError(f"log: the name of a column must be text, found {name!r}")
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"log: {name!r} must be a number, found {value!r}") from error
        if not math.isfinite(number):
            raise UserError(f"log: {name!r} must be a finite number, found {number}: leave it out of the history")
        self._refuse(name)
        (self.notes if self._row is None else self._row)[name] = number

    def _noted(self, row: Row) -> Row:
        """A row with the numbers that were logged for it."""
        self._columns = frozenset(row)
        notes, self.notes = self.notes, {}
        for name, value in notes.items():
            self._refuse(name)
            row[name] = value
        return row

    def _refuse(self, name: str) -> None:
        if name in self._columns:
            raise UserError(f"log: the history has a column {name!r} of its own: choose another name")

    def _told(self, words: str) -> None:
        if self.config.run.progress and self.partition.main:
            log.info(words)


def _reason(function: str, reason: str) -> str:
    if not isinstance(reason, str) or not reason.strip():
        raise UserError(f"{function} needs a reason, which the log and the result tell, found {reason!r}")
    return reason
