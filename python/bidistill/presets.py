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
    # A student alone by softmax over the catalog, which then also follows neighbours of items: soft targets in the same pass.
    "neighbours": {
        "teacher.kind": "item_knn",
        "student.lr": 0.03,
        "train.loss": "full_softmax",
        "train.order": "users",
        "train.batch_size": 8192,
        "train.joint": "student",
        "distill.lambda_teacher": 0.0,
        "distill.lambda_student": 1.0,
        "distill.loss": "full_softmax",
        "distill.guide_scores": "shares",
        "distill.tau_guide": 0.5,
        "distill.samples": 0,
        "distill.pool": 0,
        "distill.pool_top": 100,
        "distill.resample_every": 1000,  # the teacher stays as it is, and so do its best items
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
