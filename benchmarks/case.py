"""A case: one job, several contenders, one check. It measures itself; the workloads, one file each, only build cases.

Contenders take turns in one process: every round of pytest-benchmark times the library's call, and the hook that
pytest-benchmark runs before each round, which it does not time, gives each peer one timed turn. So pytest-benchmark runs and
records, and a busy or slow minute of the machine meets everybody alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bdkernels.tools.measure import Work, seconds


class UnavailableError(Exception):
    """A contender cannot run here; the message says why."""


@dataclass
class Timing:
    """Seconds of one contender: its first call, which warms up (and compiles, if it does), and the timed ones."""

    first_s: float = 0.0
    times: list[float] = field(default_factory=list)


@dataclass
class Case:
    """One workload at one size.

    Attributes:
        sizes: what the job is, for the row.
        contenders: name: call. The first is the library's; a call may carry a `note` that the row shall tell.
        check: gets what each contender's first call returned; raises AssertionError where one is wrong, before any timing.
        work: what one call must do at least; None where contenders do unlike things.
        absent: contender: why it does not run.
        slow: contenders that only the full suite has time for.
        threads: torch threads meanwhile; None for all.
        memory: whether the peak memory of each contender is of interest.
    """

    sizes: dict[str, Any]
    contenders: dict[str, Callable[[], Any]]
    check: Callable[[dict[str, Any]], None]
    work: Work | None
    absent: dict[str, str] = field(default_factory=dict)
    slow: frozenset[str] = frozenset()
    threads: int | None = None
    memory: bool = True

    def leave_out_slow(self) -> None:
        """Keep to what the short suite has time for."""
        for name in self.slow & self.contenders.keys():
            del self.contenders[name]
            self.absent[name] = "only in make bench-full"

    def measure(self, benchmark: Any, repeats: int, limit_s: float) -> dict[str, Timing]:
        """Check, then time in at most `repeats` rounds: about `limit_s` of the library, and at least three.

        How long the library takes is asked of its second call: the first may compile and tune for minutes. A peer that has used
        up `limit_s` sits out further rounds, but not before it has two timings; one that runs out of memory is absent.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or threads)
        try:
            timings = self._first_calls()
            own, *peers = timings

            def one_round_of_peers() -> None:
                for name in peers:
                    times = timings[name].times
                    if name not in self.absent and (len(times) < 2 or sum(times) < limit_s):
                        try:
                            times.append(seconds(self.contenders[name]))
                        except torch.OutOfMemoryError as error:
                            self._leave_out(name, error)

            call = partial(seconds, self.contenders[own])  # which waits for a GPU
            rounds = max(3, min(repeats, int(limit_s / call())))
            benchmark.pedantic(call, setup=one_round_of_peers, rounds=rounds, iterations=1)
            timings[own].times = list(benchmark.stats.stats.data)
        finally:
            torch.set_num_threads(threads)
        return {name: timing for name, timing in timings.items() if name not in self.absent}

    def release(self) -> None:
        """Let go of all inputs, which the check has too, end the children, and give a GPU's memory back."""
        self.contenders, self.check = {}, _nothing
        torch.cuda.empty_cache()

    def _leave_out(self, name: str, error: Exception) -> None:
        del self.contenders[name]
        self.absent[name] = str(error).splitlines()[0]

    def _first_calls(self) -> dict[str, Timing]:
        results: dict[str, Any] = {}
        timings: dict[str, Timing] = {}
        for name, call in list(self.contenders.items()):
            try:
                first = seconds(lambda name=name, call=call: results.__setitem__(name, call()))
            except (UnavailableError, torch.OutOfMemoryError) as error:
                if not timings:  # the library itself
                    raise
                self._leave_out(name, error)
            else:
                timings[name] = Timing(first)
        self.check(results)
        results.clear()
        torch.cuda.empty_cache()  # of what the check needed
        return timings


def _nothing(results: dict[str, Any]) -> None:
    pass
