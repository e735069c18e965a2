"""The calls that the cost model knows: their launches and operations, and the table of what they need."""

from collections.abc import Callable, Iterator, Mapping
from math import ceil, inf
from typing import NamedTuple

from costs import GPUS, OPERATION, Gpu, Launch, together
from recipes import Kernels, named, rank, rank_of_block, topk

from bdkernels.sampling.rounds import FURTHER, first

LIMITS = ("issue", "fp32", "alu", "shared", "l2", "memory")
HEAD = """# What the CUDA kernels need, by a model

**Derived, not measured: no kernel has been timed.** `make gpu-model` writes this page from the instructions of the compiled
kernels (sm_{target}; an {peak.name} with {sms} multiprocessors at {ghz} GHz) and the shapes of their launches. All times in ms.

- Floor: operations at {peak.tflops[fp32]} TFLOP/s of float32, or bytes at {peak.tbs} TB/s.
- Each limit is what the call would take if nothing else were limited: instructions issued; of them those of float32, and integer
  ones and comparisons; wavefronts of shared memory; bytes from the L2 cache; bytes from memory. The host needs
  {operation:.0f} µs for each operation that torch dispatches.
- Derived: from the best that all limits together allow to the time that it takes if the phases of a kernel, whole waves of its
  blocks and the host come one after the other.
- Not in it: latency, misses of caches, bank conflicts other than of the product's and the search's reads, the work of torch's own
  kernels. The step is bytes and launches alone.
- A target holds if the worst time is within it, and is open if only the best one is.

"""
UNITS = """
## What a warp does

Instructions issued and wavefronts for one unit of each phase of a kernel, and how many units there are.

| launch | unit | units | issued | float32 | integer | wavefronts |
|---|---|---|---|---|---|---|
"""


class Call(NamedTuple):
    """A row of the table: its work on the device and on the host, and what no kernel can do without."""

    name: str  # by which predict() has it
    what: str
    target: float  # ms that the work on these kernels was to reach; inf: none was set
    operations: str  # which of operations.py it dispatches
    launches: Callable[[Kernels], list[Launch]]
    flop: float = 0
    read_bytes: float = 0


MILLION = 1_000_000
WIDE, NARROW = 64, 16  # factors of the teacher and the student
AGAIN = 0.01  # of the users that the first round of a sampler leaves open, about: three standard deviations
STEP_ROWS, STEP_BYTES = 4096 * 14, 4 * WIDE * 7  # a row is read for its score; with two moments read again and written


def ranks(users: int, items: int, thresholds: int) -> Callable[[Kernels], list[Launch]]:
    """Teacher and student."""
    return lambda kernels: [rank(kernels, users, items, d, thresholds) for d in (WIDE, NARROW)]


def samples(users: int, items: int, k: int) -> Callable[[Kernels], list[Launch]]:
    """A round for all users, and one for those whom it leaves open; of each, the rows of all proposals and the counts."""

    def launches(kernels: Kernels) -> list[Launch]:
        rounds = ((users, first(k)), (ceil(AGAIN * users), FURTHER))
        gathered = sum(n * c for n, c in rounds) * 4 * (WIDE + NARROW)
        counts = [launch for n, c in rounds for launch in ranks(n, items, c)(kernels)]
        return [*counts, Launch("rows of the proposals", (), 1, 1, gathered)]

    return launches


def flop(users: int, items: int) -> float:
    return 2 * users * items * (WIDE + NARROW)


def calls() -> Iterator[Call]:
    for k in (1, 8, 32):
        name = "sample a" + (f", k = {k}" if k != 32 else "")
        yield Call(name, f"sample, 256 x 25k, k = {k}", 0.5, f"sample {k}", samples(256, 25_000, k), flop(256, 25_000))
    full = flop(1024, MILLION)
    yield Call("sample 1M", "sample, 1,024 x 1M, k = 32", 15, "sample 32", samples(1024, MILLION, 32), full)
    for thresholds, target in ((64, 9), (256, 12.5), (512, 13), (1, inf)):
        name, what = f"rank {thresholds}", f"rank, 1,024 x 1M, {named(thresholds)}"
        yield Call(name if thresholds > 1 else "product", what, target, "rank", ranks(1024, MILLION, thresholds), full)
    for thresholds in (64, 256):
        yield Call(
            f"search {thresholds}", f"search of 1,024 x 1M scores, {thresholds} thresholds", inf, "search",
            lambda kernels, c=thresholds: [rank_of_block(kernels, 1024, MILLION, c)], 0, 4 * 1024 * MILLION,
        )  # fmt: skip
    for users, target in ((64, 0.3), (1024, 4.2)):
        yield Call(
            f"topk {users}", f"topk, {users:,} x 1M, d = 64, k = 100", target, "topk",
            lambda kernels, n=users: topk(kernels, n, MILLION, WIDE, 100), 2 * users * MILLION * WIDE, 4 * MILLION * WIDE,
        )  # fmt: skip
    yield Call(
        "step", "step with Adam, 4,096 x 13", 0.1, "step", lambda _: [Launch("step", (), 1, 1, STEP_ROWS * STEP_BYTES)],
        0, STEP_ROWS * STEP_BYTES,
    )  # fmt: skip


class Row(NamedTuple):
    """A line of the table, in ms."""

    call: Call
    floor: float
    best: float
    worst: float
    limits: dict[str, float]
    operations: int
    blocks: str

    @property
    def verdict(self) -> str:
        if self.call.target == inf:
            return ""
        return "holds" if self.worst <= self.call.target else "open" if self.best <= self.call.target else "missed"


def row(call: Call, launches: list[Launch], operations: int, gpu: Gpu) -> Row:
    limits = {name: sum(launch.bounds(gpu)[name] for launch in launches) for name in LIMITS}
    largest = max(launches, key=lambda launch: launch.ms(gpu))
    blocks = f"{largest.blocks:,} in {largest.places * gpu.sms}" if largest.phases else ""
    best, worst = together(launches, operations, gpu)
    return Row(call, gpu.floor(call.flop, call.read_bytes), best, worst, limits, operations, blocks)


def rows(kernels: Kernels, operations: Mapping[str, int], gpu: Gpu) -> list[tuple[Row, list[Launch]]]:
    found = [(call, call.launches(kernels)) for call in calls()]
    return [(row(call, launches, operations[call.operations], gpu), launches) for call, launches in found]


def page(kernels: Kernels, operations: Mapping[str, int], target: int) -> str:
    gpu = GPUS[target]
    found = rows(kernels, operations, gpu)
    lines = [HEAD.format(target=target, operation=OPERATION * 1e6, **vars(gpu))]
    lines.append(
        f"| name | call | floor | derived | {' | '.join(LIMITS)} | operations | blocks in places | target | |\n"
    )
    lines.append("|" + "---|" * (len(LIMITS) + 8) + "\n")
    for r, _ in found:
        limits = " | ".join(map(ms, r.limits.values()))
        lines.append(
            f"| {r.call.name} | {r.call.what} | {ms(r.floor)} | {ms(r.best)} - {ms(r.worst)} | {limits} | {r.operations} "
            f"| {r.blocks} | {'' if r.call.target == inf else f'{r.call.target:g}'} | {r.verdict} |\n"
        )
    lines.append(UNITS)
    for launch in {launch.name: launch for _, launches in found for launch in launches}.values():
        for name, work, times in launch.phases:
            each = " | ".join(f"{n:.1f}" for n in (work.issue, work.fp32, work.alu, work.shared))
            lines.append(f"| {launch.name} | {name} | {times:,.0f} | {each} |\n")
    return "".join(lines)


def ms(time: float) -> str:
    return f"{time:.2f}" if time >= 1 else f"{time:.3f}"
