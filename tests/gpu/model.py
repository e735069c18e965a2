"""The cost model: what the compiled CUDA kernels need for the calls that matter, beside their floors and their targets.

    python tests/gpu/model.py LIBRARY [--target 90]

LIBRARY is built by `python setup.py build_cuda`. Prints the tables; for the target 90, writes them to model.md, the page that
`predict` reads and `make gpu-proof` holds the kernels to. Derived, not measured: see costs.py for what is in a time, recipes.py
for what a kernel does.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from costs import GPUS, Gpu, Launch, together
from recipes import Kernels, rank, topk

PAGE = Path(__file__).with_name("model.md")
TARGET = 90  # of the page
SLOWER = 1.02  # of what the page says, before it is a loss
LIMITS = ("issue", "fp32", "alu", "shared", "l2", "memory")
HEAD = """# What the CUDA kernels need, by a model

**Derived, not measured: no kernel has been timed.** `make gpu-model` writes this page from the instructions of the compiled
kernels (sm_{target}; {sms} multiprocessors at {ghz} GHz) and the shapes of their launches. All times are in ms.

- Floor: operations at {tflops} TFLOP/s of float32, or bytes at {tbs} TB/s.
- Each limit is what the call would take if nothing else were limited: instructions issued; of them those of float32, and integer
  ones and comparisons; wavefronts of shared memory; bytes from the L2 cache; bytes from memory; and the host, which needs
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
    operations: int  # dispatched
    launches: Callable[[Kernels], list[Launch]]
    flop: float = 0
    read_bytes: float = 0


def ranks(users: int, items: int, thresholds: int) -> Callable[[Kernels], list[Launch]]:
    """Teacher and student, of 64 and 16 factors."""
    return lambda kernels: [rank(kernels, users, items, d, thresholds) for d in (64, 16)]


def samples(users: int, items: int, thresholds: int) -> Callable[[Kernels], list[Launch]]:
    """A first round for all users and a second one for those whom the first has not given 32 draws."""
    rounds = (users, round(users * AGAIN))
    return lambda kernels: [launch for n in rounds if n for launch in ranks(n, items, thresholds)(kernels)]


def flop(users: int, items: int) -> float:
    return 2 * users * items * (64 + 16)


MILLION = 1_000_000
AGAIN = 167 / 256  # of the users, after a round of 256 proposals: counted for the catalog of the paper, with 32 draws
STEP_ROWS, STEP_BYTES = (
    4096 * 14,
    4 * 64 * 7,
)  # a row is read for its score; with two moments it is read again and written


def calls() -> Iterator[Call]:
    for k, operations in ((1, 12587), (8, 6315), (32, 1611)):
        name = "sample a" + (f", k = {k}" if k != 32 else "")
        work = samples(256, 25_000, min(256, max(32, 8 * k)))
        yield Call(name, f"sample, 256 x 25k, k = {k}", 0.5, operations, work, flop(256, 25_000))
    work = samples(1024, MILLION, 256)
    yield Call("sample 1M", "sample, 1,024 x 1M, k = 32", 15, 1611, work, flop(1024, MILLION))
    for thresholds, target in ((64, 9), (256, 12.5), (512, 13)):
        work = ranks(1024, MILLION, thresholds)
        yield Call(
            f"rank {thresholds}", f"rank, 1,024 x 1M, {thresholds} thresholds", target, 40, work, flop(1024, MILLION)
        )
    yield Call("product", "rank, 1,024 x 1M, 1 threshold", math.inf, 40, ranks(1024, MILLION, 1), flop(1024, MILLION))
    for users, target in ((64, 0.3), (1024, 4.2)):
        yield Call(
            f"topk {users}", f"topk, {users:,} x 1M, d = 64, k = 100", target, 18,
            lambda kernels, n=users: topk(kernels, n, MILLION, 64, 100), 2 * users * MILLION * 64, 4 * MILLION * 64,
        )  # fmt: skip
    yield Call(
        "step", "step with Adam, 4,096 x 13", 0.1, 19, lambda _: [Launch("step", (), 1, 1, STEP_ROWS * STEP_BYTES)],
        0, STEP_ROWS * STEP_BYTES,
    )  # fmt: skip


class Row(NamedTuple):
    """A line of the table, in ms."""

    call: Call
    floor: float
    best: float
    worst: float
    limits: dict[str, float]
    host: float
    blocks: str

    @property
    def verdict(self) -> str:
        if self.call.target == math.inf:
            return ""
        return "holds" if self.worst <= self.call.target else "open" if self.best <= self.call.target else "missed"


def row(call: Call, kernels: Kernels, gpu: Gpu) -> tuple[Row, list[Launch]]:
    launches = call.launches(kernels)
    limits = {name: sum(launch.bounds(gpu)[name] for launch in launches) for name in LIMITS}
    blocks = ", ".join(f"{launch.blocks:,} in {launch.places * gpu.sms}" for launch in launches[:1] if launch.phases)
    best, worst = together(launches, call.operations, gpu)
    floor = gpu.floor(call.flop, call.read_bytes)
    return Row(call, floor, best, worst, limits, together([], call.operations, gpu)[0], blocks), launches


def page(kernels: Kernels, target: int) -> str:
    gpu = GPUS[target]
    found = [row(call, kernels, gpu) for call in calls()]
    operation = together([], 1, gpu)[0] * 1e3
    lines = [HEAD.format(target=target, operation=operation, **vars(gpu))]
    lines.append(f"| name | call | floor | derived | {' | '.join(LIMITS)} | host | blocks in places | target | |\n")
    lines.append("|" + "---|" * (len(LIMITS) + 8) + "\n")
    for r, _ in found:
        limits = " | ".join(map(ms, r.limits.values()))
        lines.append(
            f"| {r.call.name} | {r.call.what} | {ms(r.floor)} | {ms(r.best)} - {ms(r.worst)} | {limits} | {ms(r.host)} "
            f"| {r.blocks} | {'' if r.call.target == math.inf else f'{r.call.target:g}'} | {r.verdict} |\n"
        )
    lines.append(UNITS)
    for launch in {launch.name: launch for _, launches in found for launch in launches}.values():
        for name, work, times in launch.phases:
            each = " | ".join(f"{n:.1f}" for n in (work.issue, work.fp32, work.alu, work.shared))
            lines.append(f"| {launch.name} | {name} | {times:,.0f} | {each} |\n")
    return "".join(lines)


def ms(time: float) -> str:
    return f"{time:.2f}" if time >= 1 else f"{time:.3f}"


def committed() -> dict[str, tuple[float, float]]:
    """Best and worst ms of each call, as model.md has them."""
    found = re.findall(r"^\| ([^|]+) \| [^|]+ \| [\d.]+ \| ([\d.]+) - ([\d.]+) \|", PAGE.read_text(), re.MULTILINE)
    return {name: (float(best), float(worst)) for name, best, worst in found}


def predict() -> dict[str, float]:
    """ms of each call by its name: the middle of its range in model.md, which needs neither nvcc nor triton."""
    return {name: (best + worst) / 2 for name, (best, worst) in committed().items()}


def hold(kernels: Kernels) -> None:
    """To model.md: the calls are its calls, and none has become slower."""
    page = committed()
    found = {call.name: row(call, kernels, GPUS[TARGET])[0] for call in calls()}
    assert found.keys() == page.keys(), found.keys() ^ page.keys()
    slower = {
        name: (r.best, r.worst, page[name])
        for name, r in found.items()
        if r.best > SLOWER * page[name][0] or r.worst > SLOWER * page[name][1]
    }
    assert not slower, f"slower than model.md: {slower}"


def read(library: Path, target: int) -> Kernels:
    from compiled import in_library  # needs triton, which `predict` does not

    found = {kernel.name: kernel for kernel in in_library(library) if kernel.cc == target}
    if not found:
        raise SystemExit(f"{library}: no kernel for sm_{target}")
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("library", type=Path, metavar="LIBRARY")
    options.add_argument("--target", type=int, choices=sorted(GPUS), default=TARGET)
    given = options.parse_args()
    text = page(read(given.library, given.target), given.target)
    if given.target == TARGET:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
