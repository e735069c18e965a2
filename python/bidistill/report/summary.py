"""The report's first paragraph: what was compared, what came out, and how far to trust it."""

from __future__ import annotations

from bidistill.evaluate import Comparison
from bidistill.report.finished import FinishedRun
from bidistill.report.results import MODELS, PARTS, change, heading


def summary(run: FinishedRun, comparison: Comparison) -> str:
    """A few sentences of plain text."""
    config, split = run.config, run.split
    data = config.data.path or config.data.train_path or "data given in Python"
    metric, part = heading(config.train.monitor), PARTS[run.part]
    sentences = [
        f"A teacher ({config.teacher.dim} numbers for each user and item) and a student ({config.student.dim}) were "
        f"trained on {data}: {split.n_users:,} users, {split.n_items:,} items."
    ]
    if config.distill.method == "none":
        values = " and ".join(
            f"{metric} {run.metrics[model][run.part][config.train.monitor]:.4f} with the {model}" for model in MODELS
        )
        sentences.append(
            f"They did not learn from each other (no distillation), and reach {values} on the {part} part."
        )
    else:
        base = run.warmup if run.control is None else run.control.metrics
        changes = []
        for model in reversed(MODELS):
            before, after = (source[model][run.part][config.train.monitor] for source in (base, run.metrics))
            changes.append(f"the {model}'s from {before:.4f} to {after:.4f} ({change(before, after)})")
        against = (
            "against the models after their warm-up. There is no control here, so part of this may come from "
            "the extra epochs alone."
            if run.control is None
            else "against the same models given the same extra epochs without distillation."
        )
        sentences.append(
            f"Learning from each other changed {metric} on the {part} part: {changes[0]}, {changes[1]}, {against}"
        )
    sentences.append(
        f"The student ranks {comparison.student_better:.1%} of the {len(comparison.items):,} held-out interactions better "
        f"than the teacher does, the teacher {comparison.teacher_better:.1%} better than the student."
    )
    sentences.append("This is one seed: a small difference may be chance, so repeat the run with other seeds.")
    return " ".join(sentences)
