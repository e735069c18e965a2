"""What the processes of test_distributed_rounds.py run, told in FOLDER/RANK.json: `python rounds.py FOLDER` forks four."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from draws import numbered
from shards import forked

import bdkernels as bd
from bdkernels import checks
from bdkernels.backends import choice, cpu
from bdkernels.distributed import ShardedCatalog, ShardError, collectives
from bdkernels.distributed.sampler import ShardedItems

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))
from no_wait import NoWait

WORLDS, PROCESSES = (2, 3), 4
N, D, K, C = 501, (6, 3), 4, 32  # C: proposals of a round, for these K
USERS = (9, 0, 7, 5)  # of each process


class Waits(NoWait):
    """Writes down what would wait for a device, and goes on."""

    def __init__(self, events: list[Any]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except AssertionError as wait:
            self.events.append(("waits", str(wait)))
            return func(*args, **kwargs or {})


def bytes_of(name: str, tensors: tuple[torch.Tensor, ...]) -> int:
    """What a process sends in a collective: a ring passes on twice the size of a sum; the result of all_gather comes first."""
    return tensors[name == "all_to_all_single"].nbytes * (1 + (name == "all_reduce"))


@contextmanager
def watched() -> Iterator[list[Any]]:
    """What happens inside: ("round", sizes) where one begins, a collective and its bytes, ("read",), or ("waits", by what)."""
    events: list[Any] = []
    there, gather, begins = {name: getattr(dist, name) for name in NAMES}, collectives._all_gather, ShardedItems.open

    def noted(name: str, call: Any) -> Any:
        def run(*tensors: Any, **more: Any) -> Any:
            events.append((name, bytes_of(name, tensors)))
            return call(*tensors, **more)

        return run

    def opened(items: ShardedItems, is_open: torch.Tensor) -> torch.Tensor:
        events.append(("round", sizes := []))
        rows = begins(items, is_open)
        sizes += items._sizes
        return rows

    def note(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in ("tolist", "numpy"):
            events.append(("read",))

    for name, call in there.items():
        setattr(dist, name, noted(name, call))
    collectives._all_gather, ShardedItems.open = noted("all_gather", gather), opened  # type: ignore[method-assign]
    sys.setprofile(note)
    try:
        with Waits(events):
            yield events
    finally:
        sys.setprofile(None)
        for name, call in there.items():
            setattr(dist, name, call)
        collectives._all_gather, ShardedItems.open = gather, begins  # type: ignore[method-assign]


NAMES = (
    "all_reduce",
    "all_to_all_single",
    "broadcast",
    "barrier",
    "send",
    "isend",
    "all_gather",
    "reduce_scatter_tensor",
)


class World:
    """The first processes, and what they sample: the same on one process and in parts."""

    def __init__(self, group: Any, size: int, place: int) -> None:
        self.size, self.place = size, place
        generator = torch.Generator().manual_seed(1)
        n = sum(USERS[:size])
        first = sum(USERS[:place])
        self.users = slice(first, first + USERS[place])
        bounds = [N * p // size for p in range(size)] + [N]
        self.shards = ShardedCatalog(bounds[place + 1] - bounds[place], group=group)
        self.whole = [
            bd.Factors(
                *(torch.randn(rows, d, generator=generator) for rows in (n, N)), torch.randn(N, generator=generator)
            )
            for d in D
        ]
        pairs = (torch.randint(0, most, (40 * n,), generator=generator) for most in (n, N))
        self.seen = bd.Seen.from_pairs(*pairs, n)
        self.asked = numbered(self.whole[0], seed=3)

    def own(self, f: bd.Factors) -> bd.Factors:
        assert f.item_bias is not None
        items = self.shards.slice
        return bd.Factors(f.user_factors[self.users], f.item_factors[items], f.item_bias[items])

    def sample(self, **more: Any) -> bd.Samples:
        own = [self.own(f) for f in self.whole]
        asked = self.asked | {"user_ids": self.asked["user_ids"][self.users]} | more
        return self.shards.sample(
            *own, K, self.seen.rows(torch.arange(len(self.asked["user_ids"]))[self.users]), **asked
        )

    def same(self, **more: Any) -> None:
        """As on one process."""
        for ours, theirs in zip(
            self.sample(**more), bd.sample(*self.whole, K, self.seen, **self.asked, **more), strict=True
        ):
            assert torch.equal(ours.ids, theirs.ids[self.users]), (ours.ids, theirs.ids[self.users])


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """Nothing is asked of the values on the CPU that would not be asked of a GPU's."""
    before, checks.ASSERTS = checks.ASSERTS, ("cpu",)
    try:
        yield
    finally:
        checks.ASSERTS = before


def rounds_of(events: list[Any]) -> list[list[Any]]:
    """What happened in each round, first how many rows it has of each process; and last, what came after the rounds."""
    starts = [at for at, event in enumerate(events) if event[0] == "round"]
    return [events[a:b] for a, b in zip(starts, [*starts[1:], len(events)], strict=True)]


def counted(w: World) -> None:
    """Collectives of a round by kind, what a process sends in each, and what the host reads or waits for."""
    for more in ({}, {"subset": 60}):
        with like_a_gpu():
            w.sample(**more)  # the first call may look at what later ones know
            before = w.shards.traffic
            with watched() as events:
                w.sample(**more)
            sent = w.shards.traffic - before
            w.same(**more)
        *rounds, last = rounds_of(events)
        assert len(rounds) > 1 and rounds[0][0][1] == list(USERS[: w.size]), events
        for (_, sizes), *happened in rounds:
            everyone, most = sum(sizes), max(sizes)
            assert happened == [
                ("all_to_all_single", w.size * 6 * 8),
                ("read",),
                ("all_gather", w.size * most * 4 * (1 + C)),
                ("all_reduce", 2 * everyone * 2 * 4 * C),
                ("all_to_all_single", everyone * 2 * 4 * C),
            ], (sizes, happened)
        assert last[:3] == [("round", [0] * w.size), ("all_to_all_single", w.size * 6 * 8), ("read",)], last
        assert sent == sum(event[1] for event in events if event[0] in NAMES)


def the_watch_sees(w: World) -> None:
    """What `counted` must not find, where it is there."""
    t = torch.arange(3)
    with watched() as events:
        dist.all_reduce(t, group=w.shards._exchange.group)
        t.tolist()
        bool(t.any())
    assert [event[0] for event in events] == ["all_reduce", "read", "waits"] and events[0][1] == 2 * 3 * 8


@contextmanager
def stage(**changed: Any) -> Iterator[None]:
    before = choice.BACKENDS["cpu"]
    choice.BACKENDS["cpu"] = replace(cpu.BACKEND, stages=cpu.STEPS._replace(**changed))
    try:
        yield
    finally:
        choice.BACKENDS["cpu"] = before


def one_fails_in_a_round(w: World) -> None:
    """Nobody waits for it: all go through the round, all raise at the next agreement, and all can go on."""
    calls = 0

    def score(f: bd.Factors, ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3 and w.place == 1:  # of the second round
            raise RuntimeError("no room")
        return cpu.score(f, ids)

    with stage(score=score), pytest.raises(RuntimeError if w.place == 1 else ShardError) as found:
        w.sample()
    assert str(found.value) == (
        "no room" if w.place == 1 else "sample: round: rank 1 failed with RuntimeError: no room"
    )
    assert calls == 4  # the student's scores too, and then no more
    w.same()


def a_nan_in_a_round(w: World) -> None:
    """Whether there is one is asked for with the number of rows that are open; the message names it as ever."""
    teacher, student = w.whole
    bias = torch.where(torch.arange(N) == N // 2, torch.nan, 0.0)
    w.whole = [teacher, student._replace(item_bias=bias)]
    message = f"student: expected finite scores, got NaN for user row .* of rank .*, item {N // 2}$"
    for more in ({}, {"subset": 400}):
        with like_a_gpu(), pytest.raises(ValueError, match=message):
            w.sample(**more)
    w.whole = [teacher, student]
    w.same()


CHECKS = [counted, the_watch_sees, one_fails_in_a_round, a_nan_in_a_round]


def lost(w: World) -> None:
    """Process 1 is killed while the others wait in a ring, where only its neighbours are told: all say that it was this one."""

    def score(f: bd.Factors, ids: torch.Tensor) -> torch.Tensor:
        if w.place == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return cpu.score(f, ids)

    with stage(score=score), pytest.raises(ShardError) as found:
        w.sample()
    assert "sample: round: failed on rank" in str(found.value) and "; rank 1 did not answer" in str(found.value), found


def main(rank: int, folder: Path) -> None:
    groups = {size: dist.new_group(range(size)) for size in WORLDS}
    done: dict[str, str] = {}

    def attempt(name: str, check: Any, w: World) -> None:
        """Whoever fails ends here: the others would wait for what it does next."""
        try:
            check(w)
            done[name] = ""
        except BaseException:
            done[name] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(done))
        if done[name]:
            os._exit(0)

    for size in WORLDS:
        if rank < size:
            w = World(groups[size], size, rank)
            for check in CHECKS:
                attempt(f"{check.__name__}: {size}", check, w)
        dist.barrier()
    attempt("lost", lost, World(None, PROCESSES, rank))


if __name__ == "__main__":
    import torch._dynamo  # which a dispatch mode imports at its first collective, in every process

    folder = Path(sys.argv[1])
    rank = forked(PROCESSES)
    torch.set_num_threads(1)
    store, wait = f"file://{folder / 'store'}", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=wait)
    main(rank, folder)
    os._exit(0)  # a group that lost a process cannot be taken down
