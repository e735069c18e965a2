"""Train a teacher and a student with the Trainer, and their control, on made-up data; print the table of results.

The data is small, so that this takes seconds: it shows how to do it, and the differences it prints are within chance.
"""

import tempfile
from pathlib import Path

from bidistill import Config, Trainer, generate, split
from bidistill.report import metrics_by_run, open_run, table, write_report

interactions, _, _ = generate(300, 400, 9_000, dim=8, seed=1)
parts = split(interactions, "ratio", val=0.15, test=0.2)
config = Config().with_overrides(
    {
        "teacher.dim": 32,
        "teacher.lr": 0.01,
        "student.dim": 4,
        "student.lr": 0.02,
        "train.warmup_epochs": 25,
        "train.epochs": 10,
        "train.patience": 3,
        "run.progress": False,
    }
)

with tempfile.TemporaryDirectory() as folder:  # choose a folder of your own to keep models, metrics and report
    run, control = Path(folder) / "run", Path(folder) / "run" / "control"
    Trainer(config.with_overrides({"run.out": str(run)}), parts).fit()
    # The control: the same start, the same extra epochs, no distillation. Without it, a gain may be the epochs' alone.
    alone = config.with_overrides({"distill.method": "none", "run.out": str(control)})
    Trainer(alone, parts, warm_start=run).fit()
    print(table(metrics_by_run(open_run(run)), ks=config.eval.ks))
    print(f"report.html: {write_report(run).stat().st_size / 1024:.0f} KB")
