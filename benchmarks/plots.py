"""The README's plots: time and memory against the size of the catalog, and the ratio to the floor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.targets import CATALOGS, Rows

COLOURS = {"bdkernels": "tab:blue", "floor": "tab:gray", "dense_eager": "tab:red"}


def plot(rows: Rows, folder: Path) -> list[str]:
    """Write the plots that the rows suffice for; returns their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, tuple[str, bool, Callable[[dict[str, Any]], float | None]]] = {
        "time": ("seconds", True, lambda row: row["median_s"]),
        "memory": ("extra MB at the peak", True, lambda row: row["peak_extra_mb"]),
        "floor": ("times the floor", False, lambda row: row["times_the_floor"]),
    }
    written = []
    for name, (label, logarithmic, value) in lines.items():
        figure, axes = pyplot.subplots(figsize=(4.2, 3.0), dpi=100, layout="constrained")
        shown = [c for c in COLOURS if name == "time" or c != "floor"]
        if name == "floor":
            shown = ["bdkernels"]
        drawn = 0
        for contender in shown:
            found = [row for case in CATALOGS if (row := rows.get((case, contender))) and value(row)]
            drawn += len(found)
            axes.plot(
                [row["items"] for row in found], [value(row) for row in found],
                "o-", color=COLOURS[contender], label=contender.replace("_", " "),
            )  # fmt: skip
        axes.set(xscale="log", yscale="log" if logarithmic else "linear", xlabel="items", ylabel=label)
        if not logarithmic:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        if drawn:
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            written.append(f"{name}.png")
        pyplot.close(figure)
    return written
