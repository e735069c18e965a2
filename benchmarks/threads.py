"""Two threads against one: sampling at (b), each in a process of its own with OMP_NUM_THREADS set, in turn."""

import os
from typing import Any

from bdkernels.tools.measure import Work
from benchmarks import sample
from benchmarks.case import Case
from benchmarks.child import Child

SIZES = ("b",)


def build(name: str, *, tiny: bool) -> Case:
    """Two children of the sampling case of this name; they end with the process."""
    children = {n: Child(f"sample/{name}", "bdkernels", tiny=tiny, threads=n) for n in (2, 1)}
    n_users, n_items, dims = sample.TINY if tiny else sample.SIZES[name]
    pairs = n_users * n_items
    return Case(
        {"users": n_users, "items": n_items, "dims": list(dims), "draws": sample.K, "cores": os.cpu_count()},
        {f"threads_{n}": child.call for n, child in children.items()},
        check,
        Work(2 * pairs, 2 * pairs * sum(dims), sum(4 * (n_users + n_items) * d for d in dims)),
        memory=False,
    )


def check(results: dict[str, Any]) -> None:
    """Both draw the same items; that they are right is checked by sample/b."""
    assert results["threads_1"] == results["threads_2"], "draws depend on the number of threads"
