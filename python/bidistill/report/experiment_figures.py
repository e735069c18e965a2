"""The pictures of an experiment: gains with their spread, learning curves, and quality by a swept value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from bidistill.experiments.cell import MODELS
from bidistill.experiments.folder import ExperimentFolder
from bidistill.experiments.results import ExperimentResults, Found
from bidistill.metrics import heading
from bidistill.report.experiment_tables import PARTS
from bidistill.report.svg import GREY, STUDENT, TEACHER, new_figure, styled, to_svg

COLOURS = (STUDENT, TEACHER, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7700", "#7a5cc0")  # after Okabe and Ito
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
Line = Sequence[tuple[float, float, float]]  # place, mean, spread over seeds


def figures(found: ExperimentResults, home: ExperimentFolder) -> Iterator[tuple[str, str, str]]:
    """Title, caption and SVG of each picture."""
    number = count(1)
    for data, rows in found.rows.items():
        lines = {
            row.variant: [
                (seed, 100 * (value / base - 1)) for seed, value, base in _pairs(found, data, row.variant) if base
            ]
            for row in rows
            if row.control and row.models
        }
        if any(lines.values()):
            yield (
                f"{data}: gain of the student by seed",
                f"Each dot is a seed: {heading(found.metric[data])} of the run over that of its control of the same seed. The bar"
                " is the mean.",
                gains(f"x{next(number)}", data, {name: each for name, each in lines.items() if each}),
            )
    cells = Found.of(home)
    for data in found.rows:
        for name in reversed(MODELS):
            curves = _curves(cells, data, name, found.metric[data])
            if curves:
                yield (
                    f"{data}: learning curves of the {name}",
                    "Mean over seeds on validation, epoch by epoch as far as all seeds have it: the pretraining, then the joint"
                    " phase, which goes on from the pretraining's best epoch (of several seeds: its mean). Runs that share a"
                    " pretraining share its line.",
                    lines_of(
                        f"x{next(number)}", curves, "epochs of training", heading(found.metric[data]), data, low=0.6
                    ),
                )
    for data in found.rows:
        yield (
            f"{data}: ranks under student and teacher",
            "How many times lower the student ranks a held-out item than the teacher does, all seeds together. Left of the line"
            " the student ranks it higher.",
            rank_ratios(f"x{next(number)}", data, _ratios(cells, data, found.part)),
        )
    for sweep, by_data in found.sweeps.values():
        for data, by_run in by_data.items():
            for name in reversed(MODELS):
                points: dict[str, list[tuple[float, float, float]]] = {}
                for run, values in by_run.items():
                    known = [(at, value, found.row(data, variant).models) for at, (value, variant) in enumerate(values)]
                    points[run] = [
                        (_place(at, value), models[name].after.mean, np.nan_to_num(models[name].after.spread))
                        for at, value, models in known
                        if models
                    ]
                points = {run: each for run, each in points.items() if each}
                if points:
                    words = [value for values in by_run.values() for value, _ in values if _word(value)]
                    ticks = [str(value) for value in sweep.values] if words else None
                    yield (
                        f"{data}: {name} by {sweep.option}",
                        f"{heading(found.metric[data])} on the {PARTS[found.part]} part, mean over seeds; bars: standard"
                        " deviation.",
                        lines_of(
                            f"x{next(number)}",
                            points,
                            sweep.option,
                            heading(found.metric[data]),
                            data,
                            marked=True,
                            ticks=ticks,
                        ),
                    )


def _word(value: object) -> bool:
    return isinstance(value, (str, bool))


def _place(at: int, value: object) -> float:
    """Where a value stands on its axis: numbers at themselves, words one after the other."""
    return float(at) if _word(value) else float(value)  # type: ignore[arg-type]


def _pairs(found: ExperimentResults, data: str, variant: str) -> list[tuple[int, float, float]]:
    """Seed, value, and the control's value of the student."""
    row = found.row(data, variant)
    base = found.row(data, row.control).models if row.control else {}
    if not row.models or not base:
        return []
    values, others = row.models["student"].values, base["student"].values
    return [(seed, value, others[seed]) for seed, value in values.items() if seed in others]


def _curves(cells: Found, data: str, name: str, metric: str) -> dict[str, Line]:
    """The monitored metric by epoch: of each distinct pretraining, and of each run's joint phase. Swept ones are left out."""
    found: dict[str, Line] = {}
    known: list[Line] = []
    for run in cells.grid.runs:
        records = [record for _, record in cells.of_variant(data, run).values()]
        start = _rows(records, f"pretrain_{name}", f"{name}/{metric}", [0] * len(records))
        if start and start not in known:
            known.append(start)
            found[f"pretraining ({run})" if len(known) > 1 else "pretraining"] = start
        kept = [record.epochs[name].get("pretraining", [0, 0])[1] for record in records]
        if joint := _rows(
            records, "joint", f"{name}/{metric}", [round(float(np.mean(kept)))] * len(records) if records else []
        ):
            found[run] = joint
    return found


def _rows(records: Sequence[object], phase: str, column: str, starts: Sequence[int]) -> Line:
    """Mean and spread over the records of a column, at the epochs that all of them have."""
    tables: list[Mapping[int, float]] = []
    for record in records:
        history = getattr(record, "history", [])
        tables.append({row["epoch"]: row[column] for row in history if row["phase"] == phase and column in row})
    epochs = sorted(set.intersection(*(set(each) for each in tables))) if tables else []
    start = starts[0] if starts else 0
    values = [[each[epoch] for each in tables] for epoch in epochs]
    return [
        (start + epoch, float(np.mean(each)), float(np.std(each, ddof=1)) if len(each) > 1 else 0.0)
        for epoch, each in zip(epochs, values, strict=True)
    ]


def _ratios(cells: Found, data: str, part: str) -> dict[str, np.ndarray]:
    """Of each run, float64 [n]: log2 of the student's rank over the teacher's, for the held-out items of all seeds."""
    found = {}
    for run in cells.grid.runs:
        ranks = [cells.folder.ranks(cell, record) for cell, record in cells.of_variant(data, run).values()]
        if ranks:
            found[run] = np.concatenate([np.log2(each[f"{part}_student"] / each[f"{part}_teacher"]) for each in ranks])
    return found


@styled
def rank_ratios(name: str, data: str, ratios: Mapping[str, np.ndarray]) -> str:
    """A histogram of each run. ratios: as `_ratios` gives them."""
    figure, ax = new_figure(6.4, 4.0)
    most = float(np.clip(np.ceil(max(np.quantile(np.abs(each), 0.995) for each in ratios.values())), 1, 30))
    edges = np.linspace(-most, most, 49)
    for at, (run, values) in enumerate(ratios.items()):
        counts, _ = np.histogram(np.clip(values, -most, most), edges)
        dashes = DASHES[at // len(COLOURS) % len(DASHES)]
        ax.stairs(100 * counts / len(values), edges, color=COLOURS[at % len(COLOURS)], linestyle=dashes, label=run)
    ax.axvline(0, color=GREY, linewidth=1.2)
    ticks = [place for place in range(-int(most), int(most) + 1) if place % max(1, round(most / 4)) == 0]
    ax.set_xticks(ticks, [f"{2**place:,}" if place >= 0 else f"1/{2**-place:,}" for place in ticks])
    ax.set_xlabel("rank under the student / rank under the teacher")
    ax.set_ylabel("held-out interactions, %")
    figure.legend(loc="outside lower left", fontsize=9, ncols=2)
    told = ", ".join(f"{run} {np.mean(values < 0):.0%}" for run, values in ratios.items())
    return to_svg(
        figure, name, f"Histogram: student's rank over teacher's on {data}. The student ranks higher: {told}."
    )


@styled
def gains(name: str, data: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Dots for seeds and a bar for their mean, a row for each run; gains in percent."""
    figure, ax = new_figure(6.4, 1.3 + 0.36 * len(lines))
    labels = list(lines)
    for at, run in enumerate(labels):
        values = [value for _, value in lines[run]]
        ax.plot(values, [at] * len(values), "o", color=STUDENT, alpha=0.6, markersize=6)
        ax.plot([np.mean(values)] * 2, [at - 0.3, at + 0.3], color=STUDENT, linewidth=2.4)
    ax.axvline(0, color=GREY, linewidth=1.2)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlabel("gain over the control, %")
    means = ", ".join(f"{run} {np.mean([value for _, value in each]):+.1f} %" for run, each in lines.items())
    return to_svg(figure, name, f"Dot plot: gain of the student over its control on {data} by seed. Means: {means}.")


@styled
def lines_of(
    name: str,
    lines: Mapping[str, Line],
    across: str,
    up: str,
    data: str,
    *,
    low: float = 0.0,
    marked: bool = False,
    ticks: Sequence[str] | None = None,
) -> str:
    """Means over seeds by what is across, one line for each run.

    low: values below this share of the best one are cut off. marked: show each point with its spread. ticks: words across.
    """
    figure, ax = new_figure(6.4, 4.2)
    for at, (label, line) in enumerate(lines.items()):
        places, means, spreads = (np.array([each[column] for each in line], dtype=float) for column in range(3))
        order = np.argsort(places, kind="stable")
        grey = label.startswith("pretraining")
        style: dict[str, Any] = {"color": GREY if grey else COLOURS[at % len(COLOURS)], "label": label}
        dashes = DASHES[at // len(COLOURS) % len(DASHES)]
        if marked:
            ax.errorbar(places[order], means[order], spreads[order], marker="o", capsize=3, linestyle=dashes, **style)
        else:
            dot = "o" if len(line) == 1 else ""
            ax.plot(places[order], means[order], linewidth=1.4 if grey else 2.0, marker=dot, linestyle=dashes, **style)
    best = max(each[1] for line in lines.values() for each in line)
    if low:
        ax.set_ylim(bottom=max(low * best, ax.get_ylim()[0]))
    if ticks is not None:
        ax.set_xticks(range(len(ticks)), ticks)
    elif marked:
        all_places = sorted({each[0] for line in lines.values() for each in line})
        if all_places[0] > 0 and all_places[-1] >= 20 * all_places[0]:
            ax.set_xscale("log")
        ax.set_xticks(all_places, [f"{place:g}" for place in all_places])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    figure.legend(loc="outside lower left", fontsize=9, ncols=2)
    told = ", ".join(f"{label} {max(each[1] for each in line):.4f}" for label, line in lines.items())
    return to_svg(figure, name, f"Line chart: {up} by {across} on {data}, means over seeds. Best values: {told}.")
