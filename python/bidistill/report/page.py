"""report.html of a run: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bidistill.config import Config, options
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.files.access import replacing
from bidistill.metrics import heading
from bidistill.report.comparison import CONTROL, MODELS, PARTS, comparisons, distilled_title, kept_cells, results
from bidistill.report.figures import Curve, learning_curve, rank_density, wins_by_popularity
from bidistill.report.summary import summary
from bidistill.runs.folder import RunFolder
from bidistill.training.finished import FinishedRun, open_run
from bidistill.training.phases import TITLES, learn_in


def write_report(run: str | Path | FinishedRun, control: str | Path | None = None) -> Path:
    """Write report.html into the folder of a finished run.

    Args:
        run: the run's folder, or what `open_run` gave, with its control: for a run with modules that a program gave.
        control: folder of the run without distillation from the same start; unset: RUN/control, if it is one.

    Returns:
        Path of the report.

    Raises:
        UserError: a folder is no run, not finished or damaged, the given control does not match, or nothing can be written.
    """
    found = run if isinstance(run, FinishedRun) else open_run(run, control)
    path = found.path / "report.html"
    text = render(found)
    RunFolder(found.path).claim(path.name)
    with replacing(path, parents=False) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(run: FinishedRun) -> str:
    """The report as HTML."""
    compared = comparisons(run)
    before, *_, after = compared.values()
    found = results(run, compared)
    popularity = np.bincount(run.split.train_items, minlength=run.split.n_items)[after.items]
    ranks = (after.teacher_ranks, after.student_ranks)
    changed = Config().differences(run.config)
    environment = Environment(
        loader=PackageLoader("bidistill.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("template.html").render(
        title=run.path.resolve().name,
        summary=summary(run, found, after),
        found=found,
        part=PARTS[run.part],
        kept={model: kept_cells(found, model) for model in MODELS},
        heading=heading,
        monitor=heading(run.config.train.monitor),
        curves=[Markup(learning_curve(model, lines, run.config.train.monitor)) for model, lines in curves(run).items()],
        ranks=Markup(rank_density(*ranks)),
        popularity=Markup(wins_by_popularity(popularity, *ranks)),
        after=after,
        before=before,
        data=list(_describe(run.split)),
        times=list(_times(run)),
        versions=run.versions,
        settings=[(each.name, run.config[each.name], each.help, each.name in changed) for each in options()],
    )


def curves(run: FinishedRun) -> dict[str, list[Curve]]:
    """For each model the monitored metric by epoch. The joint phase goes on from the pretraining's best epoch."""
    panels = {}
    for model in MODELS:
        column = f"{model}/{run.config.train.monitor}"
        pretrained = _curve("pretraining", run.history, f"pretrain_{model}", column, 0)
        start = pretrained.epochs[int(np.argmax(pretrained.values))] if pretrained.values else 0
        own = "control" if run.config.distill.method == "none" else "distilled"
        joint = _curve(own, run.history, "joint", column, start)
        if own == "distilled":
            joint = replace(joint, label=distilled_title(run.config))
        if not joint.values and model in learn_in("joint", run.config):
            raise UserError(f"{run.path / 'metrics.csv'} has no values of {column}: train the run again")
        lines = [pretrained, joint]
        if run.control is not None:
            lines.insert(1, _curve("control", run.control.history, "joint", column, start))
        panels[model] = [line for line in lines if line.values]
    return {model: lines for model, lines in panels.items() if lines}


def _curve(style: str, history: list[dict[str, Any]], phase: str, column: str, start: float) -> Curve:
    found = [row for row in history if row["phase"] == phase and column in row]
    return Curve(style, [start + row["epoch"] for row in found], [row[column] for row in found])


def _describe(split: Split) -> Iterator[tuple[str, str]]:
    """What the data are, as names and texts."""
    sizes = split.describe()
    yield "users, items", f"{split.n_users:,}, {split.n_items:,}"
    yield (
        "training interactions",
        f"{sizes['train']:,} ({sizes['train'] / split.n_users / split.n_items:.2%} of all pairs)",
    )
    for kind, ids, n in (("user", split.train_users, split.n_users), ("item", split.train_items, split.n_items)):
        low, median, high = np.quantile(np.bincount(ids, minlength=n), [0.1, 0.5, 0.9])
        yield f"training interactions of one {kind}", f"median {median:,.0f}; 80% have {low:,.0f} to {high:,.0f}"
    for part, words in PARTS.items():
        held, users, unknown = (sizes[part + suffix] for suffix in ("", "_users", "_items_unknown"))
        yield f"held out, {words}", f"{held:,} of {users:,} users; {unknown:,} of items without training interactions"
    yield "fingerprint of the split", split.fingerprint()


def _times(run: FinishedRun) -> Iterator[tuple[str, int, float]]:
    """Name, epochs and seconds of each phase that took part."""
    for source, suffix in ((run, ""), (run.control, f" ({CONTROL})")):
        for phase, words in TITLES.items():
            found = [row for row in source.history if row["phase"] == phase] if source is not None else []
            if found:
                yield words + suffix, int(found[-1]["epoch"]), sum(row["seconds"] for row in found)
