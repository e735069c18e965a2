"""The report's pictures, from plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from bidistill.metrics import heading
from bidistill.report.svg import GREY, INK, STUDENT, TEACHER, new_figure, styled, to_svg


@dataclass(frozen=True)
class Curve:
    """One line of a learning curve: ``style`` is "pretraining", "control" or "distilled"; ``label`` what it is called, if not as
    usual.
    """

    style: str
    epochs: Sequence[float]
    values: Sequence[float]
    label: str | None = None

    @property
    def title(self) -> str:
        """What the line is called."""
        return str(_LINES[self.style]["label"]) if self.label is None else self.label


# Neither end of viridis, so that single interactions show on a dark page and crowded cells on a white one.
_DENSITY = LinearSegmentedColormap.from_list("density", colormaps["viridis"](np.linspace(0.25, 0.95, 64)))
_LINES: dict[str, dict[str, Any]] = {
    "pretraining": {"linestyle": "-", "linewidth": 1.4, "label": "pretraining, alone"},
    "control": {"linestyle": (0, (4, 2)), "linewidth": 1.8, "label": "more epochs, no distillation"},
    "distilled": {"linestyle": "-", "linewidth": 2.4, "label": "bidirectional distillation"},
}


@styled
def learning_curve(model: str, curves: Sequence[Curve], metric: str) -> str:
    """The validation metric of one model against the epoch, through pretraining and joint phase."""
    figure, ax = new_figure(4.8, 4.0)
    colour = TEACHER if model == "teacher" else STUDENT
    for curve in curves:
        ax.plot(
            curve.epochs,
            curve.values,
            color=colour if curve.style == "distilled" else GREY,
            marker="o" if len(curve.epochs) == 1 else "",
            **_LINES[curve.style] | {"label": curve.title},
        )
    best = max(max(curve.values) for curve in curves)
    ax.set_ylim(bottom=max(0.6 * best, ax.get_ylim()[0]))  # the first epochs would flatten all that matters
    ax.set_title(model.capitalize(), loc="left", fontweight="bold")
    ax.set_xlabel("epochs of training")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    ax.set_ylabel(f"{heading(metric)} on validation")
    figure.legend(loc="outside lower left", fontsize=10)
    bests = ", ".join(f"{curve.title} {max(curve.values):.4f}" for curve in curves)
    alt = f"Line chart: {heading(metric)} of the {model} on validation by epoch. Best values: {bests}."
    return to_svg(figure, f"curve-{model}", alt)


@styled
def rank_density(teacher_ranks: np.ndarray, student_ranks: np.ndarray) -> str:
    """Where each held-out item stands under both models, as a log-log density; ranks int64 [n], 1 = best."""
    wins, losses = float(np.mean(student_ranks < teacher_ranks)), float(np.mean(student_ranks > teacher_ranks))
    top = int(max(teacher_ranks.max(), student_ranks.max()))
    edges = np.unique(np.ceil(2 ** np.arange(0, np.log2(top + 1) + 0.5, 0.5)))  # 1 2 3 4 6 8 12 16 ...: whole ranks
    counts, _, _ = np.histogram2d(teacher_ranks, student_ranks, bins=(edges, edges))
    figure, ax = new_figure(5.4, 5.0)
    ends = edges[[0, -1]]
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = ax.pcolormesh(edges, edges, shown, cmap=_DENSITY, norm=LogNorm(1, max(counts.max(), 2)), antialiased=False)
    ax.plot(ends, ends, color=INK, linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    ax.grid(False)
    bar = figure.colorbar(mesh, ax=ax, shrink=0.8, label="held-out interactions in a cell")
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    for axis in (ax.xaxis, ax.yaxis, bar.ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("rank under the teacher (1 = best)")
    ax.set_ylabel("rank under the student (1 = best)")
    ax.set_title(f"above the line:\nteacher better, {losses:.1%}", loc="left", fontsize=11, color=TEACHER)
    ax.set_title(f"below the line:\nstudent better, {wins:.1%}", loc="right", fontsize=11, color=STUDENT)
    alt = (
        f"Density plot of the ranks of {len(teacher_ranks):,} held-out interactions under the teacher (horizontal) and "
        f"the student (vertical), both on a log scale. The student ranks {wins:.1%} of them better, the teacher "
        f"{losses:.1%}."
    )
    return to_svg(figure, "ranks", alt)


@styled
def wins_by_popularity(popularity: np.ndarray, teacher_ranks: np.ndarray, student_ranks: np.ndarray) -> str:
    """The share of held-out interactions that the student ranks better, in up to five groups by popularity.

    The groups are about equal in size, and items of the same popularity are in the same group.
    """
    bounds = np.unique(np.quantile(popularity, [0.2, 0.4, 0.6, 0.8], method="higher"))
    number = np.searchsorted(bounds, popularity, side="right")
    groups = [np.flatnonzero(number == each) for each in np.unique(number)]
    shares = [float(np.mean(student_ranks[group] < teacher_ranks[group])) for group in groups]
    ranges = [(popularity[group].min(), popularity[group].max()) for group in groups]
    labels = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in ranges]  # noqa: RUF001
    figure, ax = new_figure(5.4, 3.6)
    bars = ax.bar(range(len(groups)), [100 * share for share in shares], color=STUDENT, width=0.66)
    ax.bar_label(bars, labels=[f"{share:.0%}" for share in shares], padding=2)
    ax.axhline(50, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    ax.set_ylim(0, min(112.0, max(60.0, 100 * max(shares) + 12)))
    ax.set_yticks(range(0, int(min(100, ax.get_ylim()[1])) + 1, 20))
    ax.set_xticks(range(len(groups)), labels)
    ax.grid(False, axis="x")
    ax.set_xlabel("training interactions of the held-out item")
    ax.set_ylabel("student ranks it better (%)")
    alt = (
        "Bar chart: share of held-out interactions that the student ranks better, by popularity of the item: "
        + ", ".join(f"{label} training interactions {share:.0%}" for label, share in zip(labels, shares, strict=True))
    )
    return to_svg(figure, "popularity", alt + ".")
