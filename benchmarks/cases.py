"""Every case by its name, workload/size: the workload's file, and a key of what that builds."""

from importlib import import_module

from benchmarks.case import Case

BENCH = [
    "sample/a",
    "sample/b",
    "sample/1e4",
    "sample/1e5",
    "rank/search",
    "rank/product-50",
    "rank/product-64",
    "topk/b",
    "evaluate/e",
    "loss/step",
    "softmax/25k-50",
    "softmax/25k-5",
    "softmax/1m-50",
    "softmax/1m-5",
    "epoch/f",
    "threads/b",
]
FULL = [*BENCH, "sample/c", "sample/1e7", "rank/product-16", "rank/product-128"]
TINY = ["sample/a", *BENCH[4:6], *BENCH[7:11], *BENCH[14:]]  # one of each kind
GPU = ["sample/a", "sample/b", "sample/c", "sample/10m", "topk/b", "loss/step"]
SUITES = {  # cases, rounds, seconds after which a peer sits out
    "bench": (BENCH, 7, 6.0),
    "full": (FULL, 15, 45.0),
    "gpu": (GPU, 15, 20.0),
    "tiny": (TINY, 2, 0.1),
}


def build(name: str, *, tiny: bool, data: str | None = None) -> Case:
    """The case of this name.

    Args:
        tiny: at sizes that a test has time for.
        data: .npz for the epoch; see `epoch.build`.
    """
    workload, size = name.split("/")
    more = {"data": data} if workload == "epoch" else {}
    return import_module(f"benchmarks.{workload}").build(size, tiny=tiny, **more)
