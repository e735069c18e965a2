"""The report of an experiment: results.json, results.md and report.html in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bidistill.experiments.folder import RECORD, ExperimentFolder
from bidistill.experiments.results import ExperimentResults, experiment_results
from bidistill.files.access import present, replacing
from bidistill.report.experiment_figures import figures
from bidistill.report.experiment_tables import PARTS, tables


def is_experiment(folder: str | Path) -> bool:
    """Whether this is the folder of an experiment, rather than that of a run."""
    return present(Path(folder) / RECORD)


def write_experiment_report(folder: str | Path) -> tuple[Path, ExperimentResults]:
    """Write the three files of an experiment's results.

    Returns:
        the path of report.html, and the results.

    Raises:
        UserError: it is no folder of an experiment, has no finished cell, or holds a damaged file.
    """
    home = ExperimentFolder(folder)
    found = experiment_results(home)
    texts = {
        "results.json": json.dumps(plain(found), indent=1) + "\n",
        "results.md": markdown(found),
        "report.html": html(found, home),
    }
    for name, text in texts.items():
        with replacing(home.path / name, parents=False) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return home.path / "report.html", found


def about(found: ExperimentResults) -> str:
    """What was compared, in a sentence or two."""
    runs = list(dict.fromkeys(row.variant for rows in found.rows.values() for row in rows))
    seeds = {
        seed for rows in found.rows.values() for row in rows for model in row.models.values() for seed in model.values
    }
    control = f" Gains are over the run {found.control}, seed by seed and user by user." if found.control else ""
    return (
        f"{len(runs)} runs on {len(found.rows)} data sets ({', '.join(found.rows)}) with {len(seeds)} seeds, each of which varies"
        f" the whole run: initial values, batches, negatives and draws.{control} The tables show the {PARTS[found.part]} part;"
        f" the best epoch was chosen on validation. Last cell: {found.finished} UTC. Versions: {'; '.join(found.versions)}."
    )


def markdown(found: ExperimentResults) -> str:
    """results.md."""
    blocks = [f"# Results of the experiment {found.name}", about(found)]
    for table in tables(found):
        blocks += [f"## {table.title}", table.caption, table.markdown()]
    if found.notes:
        blocks += ["## Notes", "\n".join(f"- {note}" for note in found.notes)]
    if found.signs:
        blocks += ["## Training that did no good", "\n".join(f"- {note}" for note in found.signs)]
    return "\n\n".join(blocks) + "\n"


def html(found: ExperimentResults, home: ExperimentFolder) -> str:
    """report.html, one file that needs nothing else."""
    environment = Environment(
        loader=PackageLoader("bidistill.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = [(title, caption, Markup(svg)) for title, caption, svg in figures(found, home)]
    return environment.get_template("experiment.html").render(
        title=found.name,
        about=about(found),
        tables=tables(found),
        figures=pictures,
        notes=found.notes,
        signs=found.signs,
    )


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON has them; None for what is no number."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(each) for name, each in zip(value._fields, value, strict=True)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
