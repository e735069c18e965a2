"""What `--preset` and `Config.preset` stand for: values of options by name; those that are left out have their defaults."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "train.negatives": 1,
        "distill.lambda_teacher": 0.5,
        "distill.lambda_student": 0.5,
        "distill.tau_guide": 5.0,
        "distill.resample_every": 10,
        "distill.negatives_from_samples": True,
        "distill.to_student.eps": 1e-2,
        "distill.to_teacher.eps": 1e-4,
    },
    # A step touches the rows of its batch, none waits for everybody's draws, and not everybody is evaluated on.
    "large": {
        "teacher.dim": 64,
        "student.dim": 8,
        "teacher.optimizer": "sparse_adam",
        "student.optimizer": "sparse_adam",
        "teacher.lr": 0.005,
        "student.lr": 0.02,
        "train.batch_size": 4096,
        "distill.resample": "gradual",
        "distill.resample_every": 8,
        "eval.users": 2048,
        "run.checkpoint_steps": 2000,
    },
}
