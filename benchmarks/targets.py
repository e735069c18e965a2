"""What issue 3 asks for, each figure computed from the rows of the results."""

from collections.abc import Callable
from typing import Any, NamedTuple

Rows = dict[tuple[str, str], dict[str, Any]]  # by case and contender; those that did not run are not among them
CATALOGS = ("sample/1e4", "sample/1e5", "sample/b", "sample/1e7")  # (d)


class Target(NamedTuple):
    """One line of the table.

    Attributes:
        figure: what is measured.
        bound: the figure that was asked for.
        at_most: whether the bound is an upper one.
        unit: behind both numbers.
        measure: the figure from the rows; KeyError where one is missing.
    """

    figure: str
    bound: float
    at_most: bool
    unit: str
    measure: Callable[[Rows], float]


def faster(case: str, *peers: str) -> Callable[[Rows], float]:
    """How many times the library's time the fastest of the peers takes; a peer is the start of a contender's name."""

    def ratio(rows: Rows) -> float:
        return fastest(rows, case, *peers)["median_s"] / fastest(rows, case, "bdkernels")["median_s"]

    return ratio


def fastest(rows: Rows, case: str, *starts: str) -> dict[str, Any]:
    """The row with the least time among the contenders whose names start so."""
    found = [row for (where, who), row in rows.items() if where == case and who.startswith(starts)]
    if not found:
        raise KeyError(f"{case}: {starts}")
    return min(found, key=lambda row: row["median_s"])


def per_item(rows: Rows, case: str) -> float:
    row = rows[case, "bdkernels"]
    return row["median_s"] / row["items"]


def memory(*cases: str) -> Callable[[Rows], float]:
    """The most extra memory of the library in these cases, all of which must be there."""
    return lambda rows: max(rows[case, "bdkernels"]["peak_extra_mb"] for case in cases)


TARGETS = [
    Target("sampling at (b), against dense eager", 50, False, "x faster", faster("sample/b", "dense_eager")),
    Target("sampling at (a), against dense eager", 20, False, "x faster", faster("sample/a", "dense_eager")),
    *(
        Target(f"sampling at ({s}), against the floor", 2.3, True, "x its time",
               lambda rows, s=s: rows[f"sample/{s}", "bdkernels"]["times_the_floor"])
        for s in "ab"
    ),
    *(
        Target(f"search + histogram a score and core, {c} thresholds", bound, True, "ns",
               lambda rows, c=c: rows["rank/search", f"fused_{c}"]["ns_a_score"] - rows["rank/search", "fused_1"]["ns_a_score"])
        for c, bound in ((64, 1.0), (256, 1.5))
    ),
    *(
        Target(f"product, d = {d}, against library GEMM", 0.9, False, "of its speed", faster(f"rank/product-{d}", "floor"))
        for d in (16, 50, 64, 128)
    ),
    Target("extra memory at (c)", 64, True, "MB", memory("sample/c")),
    Target("extra memory in (d), the most", 64, True, "MB", memory(*CATALOGS)),
    Target("time an item in (d), 10^7 items against 10^5", 1.3, True, "x",
           lambda rows: per_item(rows, "sample/1e7") / per_item(rows, "sample/1e5")),
    Target("evaluation (e), against the best chunked PyTorch", 2, False, "x faster", faster("evaluate/e", "chunked")),
    Target("topk k=100 at (b), against chunked torch.topk", 3, False, "x faster", faster("topk/b", "torch_topk")),
    Target("topk k=100 at (b), against faiss-cpu IndexFlatIP", 1.2, False, "x faster", faster("topk/b", "faiss")),
    Target("training step (loss, backward, update), batch 1,024, against eager", 3, False, "x faster",
           faster("loss/step", "eager")),
    *(
        Target(f"step, softmax of 64 negatives against BCE of 4, {n} items, d = {d}", 2.5, True, "x its time",
               lambda rows, case=f"softmax/{n}-{d}": rows[case, "bdkernels"]["median_s"] / rows[case, "bce_4"]["median_s"])
        for n in ("25k", "1m") for d in (50, 5)
    ),
    *(
        Target(f"the same, train.negative_source {source}, draws included, the most of these", 2.5, True, "x its time",
               lambda rows, who=f"{source}_64": max(
                   rows[f"softmax/{size}", who]["median_s"] / rows[f"softmax/{size}", "drawn_bce_4"]["median_s"]
                   for size in ("25k-50", "25k-5", "1m-50", "1m-5")))
        for source in ("shared", "batch")
    ),
    Target("epoch (f) with fresh draws, against published, ranks of every tenth epoch", 10, False, "x faster",
           faster("epoch/f", "published_every_tenth_epoch")),
    Target("epoch (f) with fresh draws, against published, ranks of every epoch", 40, False, "x faster",
           faster("epoch/f", "published_every_epoch")),
    Target("sampling at (b), two threads against one", 1.8, False, "x faster",
           lambda rows: rows["threads/b", "threads_1"]["median_s"] / rows["threads/b", "threads_2"]["median_s"]),
]  # fmt: skip


def verdict(target: Target, rows: Rows) -> tuple[str, str]:
    """The measured figure and whether it meets the bound, as text."""
    try:
        found = target.measure(rows)
    except (KeyError, TypeError):  # a row, or its memory, is missing
        return "not measured", ""
    met = found <= target.bound if target.at_most else found >= target.bound
    return f"{found:.2f}" if found < 10 else f"{found:.0f}", "met" if met else "missed"
