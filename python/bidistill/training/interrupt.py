"""Ctrl-C, and a launcher's request to stop, that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Inside, the first Ctrl-C sets `asked` and a second one interrupts at once. No effect off the main thread.

    A signal that was ignored when this program was started (a shell does so for its background jobs) stays ignored.

    launched: a launcher started this program, and stops it by SIGTERM, which is then like Ctrl-C; a second signal interrupts
        nothing, since others wait for this program's part of the checkpoint.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.asked, self.launched = False, launched
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGINT, signal.SIGTERM) if self.launched else (signal.SIGINT,):
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self._before[each] = signal.signal(each, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self.launched:
            raise KeyboardInterrupt
        self.asked = True
