"""How fast a call is and how much memory it takes, next to what this machine reaches: for `profile` and the benchmarks."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

STREAM_FLOATS = {"cpu": 1 << 25, "cuda": 1 << 28}  # 128 MB and 1 GB an array: more than any cache holds
GEMM_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # those below are the launch's time on a GPU


class Work(NamedTuple):
    """What one call must do at least, whoever does it.

    Attributes:
        scores: (user, item, model) triples scored, or entries of a loss.
        flops: operations of the products, 2 for each multiply-add; 0 where there is no product.
        bytes: inputs read once and outputs written once.
    """

    scores: int
    flops: int
    bytes: int


class Peaks(NamedTuple):
    """The best that torch itself reaches here, with the threads it has now; not the data sheet's numbers.

    Attributes:
        gflops: fp32 GFLOP/s of torch.mm on square matrices, the best size.
        gbs: GB/s of memory, the best of copy (2 arrays), triad (3 arrays) and sum (1 array), counting each array once.
    """

    gflops: float
    gbs: float


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call, with all that it started on a GPU."""
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def device_seconds(call: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of one call, the mean of `calls` in a row: between two events of the GPU where one is in use, else wall time.

    The events lie on the current stream, and nothing else is queued there: what the host takes to launch is part of the time
    where the GPU has to wait for it.
    """

    def all_of_them() -> None:
        for _ in range(calls):
            call()

    if not torch.cuda.is_initialized():
        return seconds(all_of_them) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _synchronize()
    start.record()
    all_of_them()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls


def quartiles(times: list[float]) -> dict[str, float]:
    """{"median_s", "q25_s", "q75_s"} of measured seconds."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median_s": median, "q25_s": low, "q75_s": high}


def peaks(device: torch.device | str = "cpu", floats: int | None = None, repeats: int = 5) -> Peaks:
    """Measure the machine's peaks (a second or two).

    Args:
        device: where.
        floats: length of the arrays that are streamed, fp32; None for that of the device in STREAM_FLOATS.
        repeats: the best of so many counts.
    """

    def best(call: Callable[[], Any]) -> float:
        call()
        return min(seconds(call) for _ in range(repeats))

    kind = torch.device(device).type
    floats = floats or STREAM_FLOATS[kind]
    gflops = 0.0
    for n in GEMM_SIZES[kind]:
        x, y, out = (torch.rand(n, n, device=device) for _ in range(3))
        gflops = max(gflops, 2 * n**3 / best(lambda x=x, y=y, out=out: torch.mm(x, y, out=out)) / 1e9)  # type: ignore[misc]
    a, b, c = (torch.ones(floats, device=device) for _ in range(3))
    streams = {2: lambda: a.copy_(b), 3: lambda: torch.add(b, c, alpha=0.5, out=a), 1: lambda: b.sum()}
    return Peaks(gflops, max(4 * floats * arrays / best(call) for arrays, call in streams.items()) / 1e9)


def rates(work: Work, median_s: float, best: Peaks) -> dict[str, float | None]:
    """{"ns_a_score", "gflops", "gbs", "percent_of_peak_gflops", "percent_of_peak_gbs"}; None for products where there is none."""
    gflops, gbs = work.flops / median_s / 1e9, work.bytes / median_s / 1e9
    return {
        "ns_a_score": median_s * 1e9 / work.scores,
        "gflops": gflops or None,
        "percent_of_peak_gflops": 100 * gflops / best.gflops or None,
        "gbs": gbs,
        "percent_of_peak_gbs": 100 * gbs / best.gbs,
    }


def extra_mb(call: Callable[[], Any]) -> float | None:
    """MB above what was there before, at the peak of one call: of the GPU where it is in use, else of this process.

    A GPU: torch counts what its tensors take. It is the second call that counts, since the first may tune kernels, with buffers
    that no later call needs. Linux: the high-water mark of /proc is set back to now, and the first call counts: a process that
    did such work before may have memory to spare, which hides the need, so measure each contender in a process of its own.
    None on other systems.
    """
    if torch.cuda.is_initialized():
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _high_water_kb()
    call()
    return (_high_water_kb() - before) / 1024


def _high_water_kb() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
