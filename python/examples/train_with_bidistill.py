"""Train a teacher and a student with the Trainer, and their control, on made-up data; print the table of results.

The data is small, so that this takes seconds: it shows how to do it, and the differences it prints are within chance.
"""

import tempfile
from pathlib import Path

from bidistill import Config, Trainer, generate, matched, split
from bidistill.report import open_run, results, table, write_report

interactions, _, _ = generate(300, 400, 9_000, dim=8, seed=1)
parts = split(interactions, "ratio", val=0.15, test=0.2)
config = Config().with_overrides(
    {
        "teacher.dim": 32,
        "teacher.lr": 0.01,
        "student.dim": 4,
        "student.lr": 0.02,
        "train.pretrain_epochs": 25,
        "train.epochs": 10,
        "train.patience": 3,
        "run.progress": False,
    }
)

with tempfile.TemporaryDirectory() as folder:  # choose a folder of your own to keep models, metrics and report
    run, control = Path(folder) / "run", Path(folder) / "run" / "control"
    trainer = Trainer(config.with_overrides({"run.out": str(run)}), parts)
    trainer.fit()
    # The control: the same start, the same number of extra epochs, no distillation. Without it, a gain may be the epochs' alone.
    Trainer(matched(trainer).with_overrides({"run.out": str(control)}), parts, warm_start=run).fit()
    print(table(results(open_run(run))))
    print(f"report.html: {write_report(run).stat().st_size / 1024:.0f} KB")
