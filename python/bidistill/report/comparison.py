"""The results: each model trained separately, given more epochs alone, and distilled; for which users, and how certain."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bidistill.config import Config
from bidistill.errors import UserError
from bidistill.evaluation.evaluate import Comparison, compare
from bidistill.evaluation.intervals import Interval, decimals, intervals
from bidistill.metrics import heading, means, metrics_of, names_of
from bidistill.models.kinds import takes
from bidistill.registry import METRICS
from bidistill.training.baselines import CEILING, baselines
from bidistill.training.finished import FinishedRun
from bidistill.training.phases import PHASES, Epochs, epochs_of, problems

MODELS = ("teacher", "student")
SEPARATE, CONTROL, DISTILLED = "trained separately", "more epochs, no distillation", "bidirectional distillation"
SHORT = {SEPARATE: "separate", CONTROL: "control", DISTILLED: "distilled"}  # headings of the columns
WIDTH = 80
UNKNOWN = Interval(np.nan, np.nan)  # of a number that is not a mean over users
PARTS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Line:
    """A metric of one model.

    Attributes:
        metric: "ndcg@10".
        values, ends: of each training: the mean over users, and its interval; of a metric of the catalog its number, and NaN.
        change, change_ends: what distillation changed, user by user, against the control or what there is; None: unknown.
    """

    metric: str
    values: list[float]
    ends: list[Interval]
    change: float | None = None
    change_ends: Interval | None = None

    @property
    def cells(self) -> list[str]:
        """The values as they are shown."""
        return [cell(*pair) for pair in zip(self.values, self.ends, strict=True)]

    @property
    def changed(self) -> str:
        """The change as it is shown: absolute, and as a share of what there was."""
        if self.change is None or self.change_ends is None:
            return ""
        if self.change == self.change_ends.half == 0:
            return "none"
        before = self.values[-2]
        share, half = self.change / before if before else 0.0, self.change_ends.half / before if before else 0.0
        places = min(1, decimals(100 * half))
        return f"{cell(self.change, self.change_ends, '+')} {f'{share:+.{places}%}' if before else '-'}"


@dataclass(frozen=True)
class Results:
    """What a run gave.

    Attributes:
        part: "val" or "test".
        users, n_items: how many users were ranked for, and among how many items.
        labels: how the models were trained: SEPARATE, CONTROL, DISTILLED, as far as there are such.
        models: {"teacher": a line a metric, "student": ...}.
        epochs: {"teacher": of each training, "student": ...}; None: not known.
        notes: what to keep in mind, a sentence each.
        distilled: what DISTILLED is called.
        baselines: means over the same users of models that these are compared with, by their names: see `training.baselines`.
    """

    part: str
    users: int
    n_items: int
    labels: list[str]
    models: dict[str, list[Line]]
    epochs: dict[str, list[Epochs | None]]
    notes: list[str] = field(default_factory=list)
    distilled: str = DISTILLED
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def titles(self) -> list[str]:
        """The labels as they are shown."""
        return [self.distilled if label == DISTILLED else label for label in self.labels]

    @property
    def change(self) -> str:
        """The heading of the changes, or ""."""
        if DISTILLED not in self.labels or len(self.labels) == 1:
            return ""
        return "change by distillation" if CONTROL in self.labels else "change, without a control"

    def line(self, model: str, metric: str) -> Line:
        """The line of this metric."""
        return next(line for line in self.models[model] if line.metric == metric)


def comparisons(run: FinishedRun) -> dict[str, Comparison]:
    """How the models were trained -> the ranks of the held-out items under both. The control is there if the run has one."""
    found = {SEPARATE: compare_models(run, pretrained=True)}
    if run.control is not None:
        found[CONTROL] = compare_models(run.control)
    found[CONTROL if run.config.distill.method == "none" else DISTILLED] = compare_models(run)
    return found


def compare_models(run: FinishedRun, *, pretrained: bool = False) -> Comparison:
    """Ranks under the run's models, of the users that its settings evaluate on."""
    teacher, student = (run.model(name, pretrained=pretrained) for name in MODELS)
    asked = run.config.eval
    return compare(
        teacher,
        student,
        run.split,
        run.part,
        batch_size=asked.batch_size,
        max_users=asked.users,
        ks=asked.ks,
        metrics=asked.metrics,
    )


def results(run: FinishedRun, compared: Mapping[str, Comparison] | None = None) -> Results:
    """The results of a finished run.

    compared: what `comparisons` gives, where it is at hand.
    """
    compared, ks = comparisons(run) if compared is None else compared, run.config.eval.ks
    sources = {CONTROL: run.control or run, DISTILLED: run}
    epochs: dict[str, list[Epochs | None]] = {model: [] for model in MODELS}
    notes = [run.remark] if run.remark else []
    for label in compared:
        source = sources.get(label, run)
        for model in MODELS:
            phase = f"pretrain_{model}" if label == SEPARATE else "joint"
            assert phase in PHASES
            epochs[model].append(epochs_of(source.history, phase, model))
            notes += problems(source.history, source.config, phase, model)
    found = tabulated(compared, run.part, run.split.n_items, ks, epochs, notes)
    fitted = {name: parts[run.part] for name, parts in run.baselines.items()}
    found = replace(found, distilled=distilled_title(run.config), baselines=fitted)
    told = [*beaten(run.config, found), *shared_ceiling(found, run.config.train.monitor)]
    return replace(found, notes=[*found.notes, *told])


def beaten(config: Config, found: Results) -> list[str]:
    """Which models are below a baseline by the monitored metric, a sentence each. One that has more numbers for each user and
    item than a model has is no measure of it."""
    metric, kinds, sentences = config.train.monitor, baselines(config), []
    for model in MODELS:
        value, dim = found.line(model, metric).values[-1], config.model(model).dim
        better = [
            f"{name} ({values[metric]:.4f})"
            for name, values in found.baselines.items()
            if name in kinds  # the model that made data up is the ceiling
            and value < values[metric]
            and (not takes(kinds[name].kind, "dim") or kinds[name].dim <= dim)
        ]
        if better:
            sentences.append(
                f"the {model}, {heading(metric)} {value:.4f} on the {PARTS[found.part]} part, is below {', '.join(better)}"
            )
    return sentences


def shares(found: Results) -> dict[str, dict[str, float]]:
    """{"teacher": {"ndcg@50": 0.6, ...}, "student": ..., "popularity": ...}: each mean over users as a share of that of the model
    which made the data up; empty where that is not known."""
    ceiling = found.baselines.get(CEILING)
    if ceiling is None:
        return {}
    values = {model: {line.metric: line.values[-1] for line in found.models[model]} for model in MODELS}
    values |= {name: each for name, each in found.baselines.items() if name != CEILING}
    ranked = [metric for metric in ceiling if metric.partition("@")[0] in METRICS and ceiling[metric]]
    return {name: {metric: each[metric] / ceiling[metric] for metric in ranked} for name, each in values.items()}


def shared_ceiling(found: Results, metric: str) -> list[str]:
    """A sentence on the shares of this metric, where there are any."""
    told = "; ".join(f"{name}: {each[metric]:.1%}" for name, each in shares(found).items() if metric in each)
    own = found.baselines[CEILING][metric] if told else 0.0
    words = f"{heading(metric)} on the {PARTS[found.part]} part as a share of the generating model's own ({own:.4f})"
    return [f"{words}: {told}"] if told else []


def distilled_title(config: Config) -> str:
    """What models are called that learned from each other by the method of these settings."""
    return f"{config.distill.method.replace('_', ' ')} distillation"


def tabulated(
    compared: Mapping[str, Comparison],
    part: str,
    n_items: int,
    ks: Sequence[int],
    epochs: Mapping[str, list[Epochs | None]] | None = None,
    notes: Sequence[str] = (),
) -> Results:
    """Results from the ranks of the same held-out items under models that were trained in different ways."""
    labels, names, models = list(compared), names_of(ks), {}
    users = next(iter(compared.values())).users
    if any(not np.array_equal(users, each.users) for each in compared.values()):
        raise UserError("the models were not evaluated on the same users: evaluate them again with the same eval.users")
    for model in MODELS:
        of_users = [metrics_of(each.users, getattr(each, f"{model}_ranks"), ks) for each in compared.values()]
        tables = [np.stack([each[name] for name in names], axis=1) for each in of_users]
        changed = DISTILLED in labels and len(labels) > 1
        if changed:
            tables.append(tables[-1] - tables[-2])
        ends = intervals(np.concatenate(tables, axis=1))
        rows = [[means(each)[name] for each in of_users] for name in names]
        catalogs = [getattr(each, f"{model}_catalog") for each in compared.values()]
        rows += [[each[name] for each in catalogs] for name in catalogs[0]]
        ends_of = [ends[at :: len(names)] for at in range(len(names))]
        ends_of += [[UNKNOWN] * (len(labels) + changed)] * len(catalogs[0])
        models[model] = [
            Line(name, row, own[: len(labels)], *((row[-1] - row[-2], own[-1]) if changed else ()))
            for name, row, own in zip([*names, *catalogs[0]], rows, ends_of, strict=True)
        ]
    unknown: dict[str, list[Epochs | None]] = {model: [None] * len(labels) for model in MODELS}
    known = {**(epochs or unknown)}
    return Results(part, len(np.unique(users)), n_items, labels, models, known, list(notes))


def table(found: Results) -> str:
    """The results as plain text of at most 80 columns, one line a metric."""
    shorts = [SHORT.get(label, label) for label in found.labels]
    lines = _wrapped(
        f"{PARTS[found.part]} part: {found.users:,} users, ranked among the full catalog of {found.n_items:,} items"
    )
    lines.append(
        "\u00b1: 95 % interval over users (bootstrap)" + ("; the change is paired by user" if found.change else "")
    )
    for model in MODELS:
        lines += ["", _columns(model, shorts, found.change)]
        lines += [
            _columns(f"  {_short(heading(line.metric))}", line.cells, line.changed) for line in found.models[model]
        ]
        if any(found.epochs[model]):
            lines.append(_columns("  epochs", [str(each.trained) if each else "-" for each in found.epochs[model]]))
            lines.append(_columns("  epoch kept", kept_cells(found, model)))
    names = list(found.baselines)
    for some in (names[at : at + 4] for at in range(0, len(names), 4)):
        lines += ["", _columns("baselines", some)]
        lines += [
            _columns(
                f"  {_short(heading(line.metric))}", [f"{found.baselines[name][line.metric]:.4f}" for name in some]
            )
            for line in found.models[MODELS[0]]
        ]
    named = zip(found.labels, found.titles, strict=True)
    legend = [f"{SHORT[label]}: {title}" for label, title in named if label in SHORT]
    lines += ["", *_wrapped("; ".join(legend))] if legend else []
    return "\n".join([*lines, *(line for note in found.notes for line in _wrapped(f"note: {note}"))])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def kept_cells(found: Results, model: str) -> list[str]:
    """After which epoch the state of each training was kept."""
    words = {SEPARATE: "0 (untrained)"}
    cells = ["-" if each is None else str(each.kept) for each in found.epochs[model]]
    return [
        words.get(label, "0 (pretrained)") if cell == "0" else cell
        for label, cell in zip(found.labels, cells, strict=True)
    ]


def _columns(title: str, cells: Sequence[str], change: str = "") -> str:
    return f"{title:<12}{''.join(f'{each:>15}' for each in cells)}{change:>{23 if len(cells) > 2 else 26}}".rstrip()


def cell(value: float, ends: Interval, sign: str = "") -> str:
    """A number as far as it is known: "0.531 \u00b10.031"; without an interval where there is none."""
    places = decimals(ends.half)
    return f"{value:{sign}.{places}f}" + (f" \u00b1{ends.half:.{places}f}" if np.isfinite(ends.half) else "")


def _short(text: str, most: int = 10) -> str:
    """A heading in so many characters, its K kept: "Precision@10" -> "Precis.@10"."""
    name, at, k = text.partition("@")
    room = most - len(at + k)
    return text if len(name) <= room else f"{name[: max(1, room - 1)]}.{at}{k}"
