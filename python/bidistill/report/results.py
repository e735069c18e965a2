"""The table of results: each model trained separately, given more epochs alone, and distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bidistill.errors import UserError
from bidistill.report.finished import FinishedRun
from bidistill.run_folder import Metrics

MODELS = ("teacher", "student")
SEPARATE, CONTROL, DISTILLED = "trained separately", "more epochs, no distillation", "bidirectional distillation"
PARTS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Row:
    """One line of the table: its cells as they are shown, and which of them are the best of the model."""

    model: str
    label: str
    cells: list[str]
    best: list[bool]


def metrics_by_run(run: FinishedRun) -> dict[str, Metrics]:
    """What `table` takes: how the models were trained -> their metrics. The control is there as far as the run has one."""
    found = {SEPARATE: run.warmup}
    if run.control is not None:
        found[CONTROL] = run.control.metrics
    found[CONTROL if run.config.distill.method == "none" else DISTILLED] = run.metrics
    return found


def table(metrics_by_run: Mapping[str, Metrics], part: str = "test", ks: Sequence[int] = (10, 50)) -> str:
    """The results as plain text of about 100 columns.

    Args:
        metrics_by_run: label of a row -> {"teacher": {"val": {...}, "test": {...}}, "student": ...}.
        part: "val" or "test".
        ks: list lengths to show.

    Raises:
        UserError: the metrics lack the part, or a list length.
    """
    headings = [heading(name) for name in metric_names(ks)]
    body = rows(metrics_by_run, part, ks)
    wide = max(len(row.label) for row in body)
    lines = [_line("", wide, headings, [False] * len(headings))]
    model = ""
    for row in body:
        if row.model != model:
            model = row.model
            lines.append(model)
        lines.append(_line(row.label, wide, row.cells, row.best))
    return "\n".join([*lines, f"* best of each model; {PARTS[part]} part, ranked among the full catalog"])


def _line(label: str, wide: int, cells: Sequence[str], best: Sequence[bool]) -> str:
    """One line of the text: columns as wide as "Recall@100", a star behind the best."""
    marked = [f"{cell:>8}{'*' if mark else ''}".ljust(10) for cell, mark in zip(cells, best, strict=True)]
    return f" {label:{wide}} {''.join(marked)}".rstrip()


def rows(metrics_by_run: Mapping[str, Metrics], part: str, ks: Sequence[int]) -> list[Row]:
    """The lines of the table, teacher first; after each model's lines what distillation changed, in percent."""
    labels, names = list(metrics_by_run), metric_names(ks)
    base = next((label for label in (CONTROL, SEPARATE) if label in labels), None)
    out = []
    for model in MODELS:
        values = [_values(metrics_by_run[label], model, part, names) for label in labels]
        shown = [[f"{value:.4f}" for value in each] for each in values]
        best, worst = ([pick(column) for column in zip(*shown, strict=True)] for pick in (max, min))
        for label, cells in zip(labels, shown, strict=True):
            marks = [cell == top != low for cell, top, low in zip(cells, best, worst, strict=True)]
            out.append(Row(model, label, cells, marks))
        if base is not None and DISTILLED in labels:
            before, after = values[labels.index(base)], values[labels.index(DISTILLED)]
            changes = [change(*pair) for pair in zip(before, after, strict=True)]
            label = "change by distillation" if base == CONTROL else "change, without a control"
            out.append(Row(model, label, changes, [False] * len(names)))
    return out


def change(before: float, after: float) -> str:
    """The relative change in percent: "+3.1%"; "-" from 0, where there is none."""
    return f"{(after - before) / before:+.1%}" if before else "-"


def metric_names(ks: Sequence[int]) -> list[str]:
    """Columns of the table: HR, NDCG and Recall at each K, and MRR."""
    return [f"{metric}@{k}" for k in ks for metric in ("hr", "ndcg", "recall")] + ["mrr"]


def heading(metric: str) -> str:
    """How a metric is written: "ndcg@10" -> "NDCG@10"."""
    name, at, k = metric.partition("@")
    return (name.capitalize() if name in ("recall", "precision") else name.upper()) + at + k


def _values(metrics: Metrics, model: str, part: str, names: Sequence[str]) -> list[float]:
    if part not in metrics[model]:
        raise UserError(f"there are no metrics on the part {part!r}: choose one of {', '.join(metrics[model])}")
    found = metrics[model][part]
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"the metrics lack {missing[0]} (they have {', '.join(found)}): evaluate with this K in eval.ks"
        )
    return [found[name] for name in names]
