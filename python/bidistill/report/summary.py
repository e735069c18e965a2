"""The report's first paragraph: what was compared, what came out, and how far to trust it."""

from __future__ import annotations

from bidistill.config import ModelConfig
from bidistill.evaluation.evaluate import Comparison
from bidistill.metrics import heading
from bidistill.models.kinds import takes
from bidistill.report.comparison import CONTROL, MODELS, PARTS, Results
from bidistill.training.control import joint_epochs
from bidistill.training.finished import FinishedRun
from bidistill.training.phases import learn_in


def described(config: ModelConfig) -> str:
    """What a model of these settings is, in a few words."""
    kind = "" if config.kind == "mf" else f"{config.kind}, "
    if takes(config.kind, "dim"):
        return f"{kind}{config.dim} numbers for each user and item"
    return str(config.args.get("module", config.kind))  # of a module that a program gave, its class


def summary(run: FinishedRun, found: Results, comparison: Comparison) -> str:
    """A few sentences of plain text."""
    config, split = run.config, run.split
    data = config.data.path or config.data.train_path or "data given in Python"
    metric, part = heading(config.train.monitor), PARTS[run.part]
    lines = {model: found.line(model, config.train.monitor) for model in MODELS}
    sentences = [
        f"A teacher ({described(config.teacher)}) and a student ({described(config.student)}) were "
        f"trained on {data}: {split.n_users:,} users, {split.n_items:,} items."
    ]
    if not found.change:
        values = " and ".join(f"{metric} {line.cells[-1]} with the {model}" for model, line in lines.items())
        sentences.append(
            f"They did not learn from each other (no distillation), and reach {values} on the {part} part, of"
            f" {found.users:,} users."
        )
    else:
        learned = [model for model in reversed(MODELS) if model in learn_in("joint", config)]
        changes = [f"the {model}'s by {lines[model].changed} to {lines[model].cells[-1]}" for model in learned]
        how = "Learning from each other" if len(learned) > 1 else "Learning from the teacher, which stayed as it was,"
        against = (
            f"against the same models given the same {joint_epochs(run.history)} extra epochs without distillation."
            if CONTROL in found.labels
            else "against the models after their pretraining. There is no control here, so part of this may come from "
            "the extra epochs alone."
        )
        sentences.append(
            f"{how} changed {metric} on the {part} part, of {found.users:,} users: {', '.join(changes)}, {against}"
        )
    if run.stopped:
        sentences.append(f"A callback stopped the run before its last epoch: {run.stopped}.")
    sentences.append(
        f"The student ranks {comparison.student_better:.1%} of the {len(comparison.items):,} held-out interactions better "
        f"than the teacher does, the teacher {comparison.teacher_better:.1%} better than the student."
    )
    sentences.append(
        "Numbers after \u00b1 are 95 % intervals over users. They do not cover the seed: repeat the run with other seeds"
        " before you trust a small difference."
    )
    return " ".join(sentences)
