"""The README's plots: time and memory against the size of the catalog, and the ratio to the floor."""

from pathlib import Path

from benchmarks.targets import CATALOGS, Rows

COLOURS = {"bdkernels": "tab:blue", "dense_eager": "tab:red", "floor": "tab:gray"}
PLOTS = {  # file: key of the rows, label, scale, contenders
    "time": ("median_s", "seconds", "log", ("bdkernels", "dense_eager", "floor")),
    "memory": ("peak_extra_mb", "extra MB at the peak", "log", ("bdkernels", "dense_eager")),
    "floor": ("times_the_floor", "times the floor", "linear", ("bdkernels", "floor")),
}


def plot(rows: Rows, folder: Path) -> list[str]:
    """Write the plots that there are rows for; returns their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, (key, label, scale, contenders) in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(4.2, 3.0), dpi=100, layout="constrained")
        for who in contenders:
            points = [(row["items"], row[key]) for case in CATALOGS if (row := rows.get((case, who))) and row[key]]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[who], label=who.replace("_", " "))
        if axes.has_data():
            axes.set(xscale="log", yscale=scale, xlabel="items", ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()
            if scale == "linear":
                axes.set_ylim(bottom=0)
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            written.append(f"{name}.png")
        pyplot.close(figure)
    return written
