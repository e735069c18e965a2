"""The tables of an experiment, as texts: for Markdown, HTML and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from bidistill.experiments.cell import MODELS
from bidistill.experiments.results import ExperimentResults, Outcome, Row
from bidistill.experiments.statistics import Summary
from bidistill.metrics import heading

PARTS = {"val": "validation", "test": "test"}
LEVEL = 0.05
NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the rows."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown has it."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines)

    def text(self) -> str:
        """For a terminal, in columns."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.header))]
        return "\n".join(
            "  ".join(
                each.ljust(width) if not at else each.rjust(width)
                for at, (each, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def tables(found: ExperimentResults) -> list[Table]:
    """All tables, those over all data sets first."""
    made = [overall(found)] if found.control and len(found.rows) > 1 else []
    for data in found.rows:
        made += [quality(found, data, name) for name in reversed(MODELS)]
        made.append(costs(found, data))
    return made + list(swept(found))


def quality(found: ExperimentResults, data: str, name: str) -> Table:
    """One model on one data set: before, after, gain and p values, epochs; the baselines below."""
    metric = heading(found.metric[data])
    caption = (
        f"{metric} on the {PARTS[found.part]} part, {found.users[data]:,} users, full catalog. Mean +- standard deviation over"
        " seeds; before: after the pretraining. p seeds: paired t test over seeds; p users: bootstrap over users of the mean over"
        " seeds; Holm: corrected over the data sets. Epochs: of the pretraining + of the joint phase; kept: the best on"
        " validation."
    )
    header = ["run", "seeds", "before", "after", "gain", "p seeds", "Holm", "p users", "Holm", "epochs", "kept"]
    rows = [_quality_row(row, name) for row in found.rows[data]]
    for baseline, value in found.baselines[data].items():
        rows.append([f"({baseline})", NONE, NONE, spread(value), *[NONE] * 7])
    return Table(f"{data}: {name}", caption, header, rows)


def _quality_row(row: Row, name: str) -> list[str]:
    if not row.models:
        return [row.variant, "0", *[NONE] * 9]
    model = row.models[name]
    tests = [NONE] * 5
    if model.test is not None:
        p = model.test.p_seeds, model.holm_seeds, model.test.p_users, model.holm_users
        tests = [percent(model.test.gain), *map(p_value, p)]
    return [row.variant, str(len(model.values)), spread(model.before), spread(model.after), *tests, *_epochs(model)]


def _epochs(model: Outcome) -> list[str]:
    phases = [phase for phase in ("pretraining", "joint") if phase in model.epochs]
    return [" + ".join(f"{numbers[phase]:.3g}" for phase in phases) or NONE for numbers in (model.epochs, model.kept)]


def costs(found: ExperimentResults, data: str) -> Table:
    """What the runs take: size and inference time of the models, and training time."""
    caption = (
        "Size: parameters and buffers. Time for a user's list of the best 50 unseen items, median of 5 on the threads of a cell,"
        " while other cells ran. Training: seconds of a cell's pretraining (shared ones count in each) and joint phase, mean over"
        " seeds."
    )
    header = ["run", "student after", "student kB", "student us/user", "teacher after", "teacher kB", "teacher us/user"]
    rows = []
    for row in (each for each in found.rows[data] if each.models):
        cells = []
        for model in (row.models[name] for name in reversed(MODELS)):
            time = NONE if model.microseconds is None else f"{model.microseconds:,.0f}"
            cells += [f"{model.after.mean:.4f}", f"{model.bytes / 1e3:,.0f}", time]
        rows.append([row.variant, *cells, *(f"{row.seconds[phase]:,.0f}" for phase in ("pretraining", "joint"))])
    return Table(f"{data}: quality beside size and time", caption, [*header, "pretraining s", "joint s"], rows)


def overall(found: ExperimentResults) -> Table:
    """Each run over all data sets: the mean of the relative gains, and where they are significant."""
    caption = (
        f"Mean over {len(found.rows)} data sets of the gain over {found.control}; significant: on how many of them both"
        f" Holm-corrected p values are below {LEVEL}, with a gain above 0."
    )
    header = ["run", "data sets"]
    for name in reversed(MODELS):
        header += [f"{name}: mean gain", "significant"]
    variants = list(dict.fromkeys(row.variant for rows in found.rows.values() for row in rows if row.control))
    lines = []
    for variant in variants:
        rows = [row for some in found.rows.values() for row in some if row.variant == variant and row.models]
        rows = [row for row in rows if all(row.models[name].test is not None for name in MODELS)]
        cells = [str(len(rows))]
        for name in reversed(MODELS):
            models = [row.models[name] for row in rows]
            gains = [model.test.gain for model in models if model.test is not None]
            cells += [percent(mean(gains)) if gains else NONE, str(sum(map(significant, models)))]
        lines.append([variant, *cells])
    return Table("All data sets", caption, header, lines)


def significant(model: Outcome) -> bool:
    """Whether a model is better than its control by both tests, corrected over the data sets."""
    return model.test is not None and model.test.gain > 0 and max(model.holm_seeds, model.holm_users) < LEVEL


def swept(found: ExperimentResults) -> Iterator[Table]:
    """Each sweep on each data set: quality by value."""
    for sweep, by_data in found.sweeps.values():
        for data, by_run in by_data.items():
            rows = []
            for run, points in by_run.items():
                for value, variant in points:
                    models = found.row(data, variant).models
                    cells = [spread(models[name].after) if models else NONE for name in reversed(MODELS)]
                    gains = [models[name].test if models else None for name in reversed(MODELS)]
                    shown = [NONE if each is None else percent(each.gain) for each in gains]
                    kb = f"{models['student'].bytes / 1e3:,.0f}" if models else NONE
                    rows.append([str(value), run, cells[0], shown[0], kb, cells[1], shown[1]])
            header = [sweep.option, "run", "student", "gain", "student kB", "teacher", "gain"]
            caption = f"{heading(found.metric[data])} on the {PARTS[found.part]} part by {sweep.option}."
            yield Table(f"{data}: {sweep.option}", caption, header, rows)


def spread(value: Summary) -> str:
    """Mean and standard deviation: ".0480 +- .0011"."""
    return f"{value.mean:.4f}" + ("" if math.isnan(value.spread) else f" +- {value.spread:.4f}")


def percent(gain: float) -> str:
    """A gain: "+12.3 %"."""
    return NONE if math.isnan(gain) else f"{100 * gain:+.1f} %"


def p_value(value: float) -> str:
    """Two digits, or "-" where there is none."""
    return NONE if math.isnan(value) else f"{value:.2g}"


def brief(found: ExperimentResults) -> Sequence[Table]:
    """What the terminal shows: the students, in at most 80 columns."""
    made = [overall(found)] if found.control and len(found.rows) > 1 else []
    for data in found.rows:
        whole = quality(found, data, "student")
        columns = [
            whole.header.index(name) for name in ("run", "seeds", "before", "after", "gain", "p seeds", "p users")
        ]
        rows = [[row[at] for at in columns] for row in whole.rows]
        made.append(Table(whole.title, whole.caption, [whole.header[at] for at in columns], rows))
    return made
