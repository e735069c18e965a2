"""One cell of an experiment, in a process of its own: the pretraining that cells share, and what follows it."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bdkernels import topk
from bidistill.config import Config, ModelConfig
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.eval_options import EvalConfig
from bidistill.evaluation.ranks import held_out, ranks, seen_items
from bidistill.experiments.folder import ExperimentFolder, settings_of
from bidistill.experiments.grid import Cell
from bidistill.experiments.records import CellRecord
from bidistill.files.access import present
from bidistill.files.records import read_record
from bidistill.models import Recommender
from bidistill.models.base import device_of
from bidistill.models.scoring import scorer_of
from bidistill.models.sizes import state_bytes
from bidistill.runs.folder import versions
from bidistill.runs.records import Finished
from bidistill.training.phases import PHASES, epochs_of, problems
from bidistill.training.trainer import Trainer

MODELS = ("teacher", "student")
TIMED_USERS, TIMED_ITEMS, REPEATS = 512, 50, 5


@dataclass(frozen=True)
class Job:
    """What a process is to do.

    Attributes:
        folder: of the experiment.
        fingerprint: of the cell's data.
        pretraining: the key of the pretraining that it takes over, or "".
        threads: of torch.
        keep: whether to keep a run folder.
    """

    folder: str
    cell: Cell
    fingerprint: str
    pretraining: str
    threads: int
    keep: bool


def pretraining_config(config: Config) -> Config:
    """The settings of the pretraining alone: all that only the joint phase has are at their defaults."""
    train, default = config.train, Config()
    models = {
        name: replace(
            config.model(name),
            joint_lr=ModelConfig.joint_lr,
            joint_lr_scheduler=ModelConfig.joint_lr_scheduler,
            joint_lr_scheduler_args={},
        )
        for name in MODELS
    }
    return replace(
        config,
        teacher=models["teacher"],
        student=models["student"],
        train=replace(train, epochs=0, joint=default.train.joint),
        distill=replace(default.distill, method="none"),
        eval=replace(config.eval, baselines=EvalConfig.baselines, generator=None),
    )


def pretraining_key(config: Config, fingerprint: str) -> str:
    """A name for the pretraining of these settings on the data of this fingerprint."""
    values = [settings_of(pretraining_config(config)), fingerprint]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def pretrain(job: Job) -> None:
    """Make the pretraining of a cell, unless it is there."""
    home = ExperimentFolder(job.folder).pretrained_path(job.pretraining)
    if present(home / "metrics.json"):
        return
    split = _split(job)
    own = {"run.out": str(home), "run.threads": job.threads, "run.checkpoint_every": 1_000_000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cell's notes have them
        Trainer(pretraining_config(job.cell.config).with_overrides(own), split, overwrite=True).fit()
    shutil.rmtree(home / "checkpoint", ignore_errors=True)
    for name in (
        "teacher.safetensors",
        "student.safetensors",
        "split.npz",
    ):  # pretrained/ has the models, data/ the split
        (home / name).unlink(missing_ok=True)


def train(job: Job) -> None:
    """Train and evaluate a cell, and write its record."""
    began = time.perf_counter()
    folder, cell, split = ExperimentFolder(job.folder), job.cell, _split(job)
    own: dict[str, Any] = {"run.threads": job.threads}
    if job.keep:
        own |= {"run.out": str(folder.models_path(cell))}
    start: Path | None = folder.pretrained_path(job.pretraining) if job.pretraining else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(cell.config.with_overrides(own), split, warm_start=start, overwrite=job.keep)
        result = trainer.fit()
    earlier = [] if start is None else read_record(start / "metrics.json", Finished).history
    history = [row for row in earlier if row["phase"] != "joint"] + result.history
    models = {"teacher": result.teacher, "student": result.student}
    for model in models.values():
        model.train(False)
    record = CellRecord(
        data=cell.data,
        variant=cell.variant,
        seed=cell.seed,
        split=job.fingerprint,
        settings=settings_of(cell.config),
        metrics=result.metrics,
        pretrained=result.pretrained,
        baselines=result.baselines,
        epochs={name: _epochs(history, name) for name in MODELS},
        bytes={name: state_bytes(model) for name, model in models.items()},
        microseconds={name: _microseconds(model, split) for name, model in models.items()},
        history=history,
        notes=[
            note for phase in PHASES for name in MODELS if phase in ("joint", f"pretrain_{name}")
            for note in problems(history, trainer.config, phase, name)
        ],
        versions=versions(),
        finished=_now(),
        seconds={
            "pretraining": _seconds(history, "pretrain_"),
            "joint": _seconds(history, "joint"),
            "cell": round(time.perf_counter() - began, 3),
        },
    )  # fmt: skip
    folder.write_cell(cell, record, _ranks(models, split, trainer.config))


def failure(job: Job, error: str, details: str) -> CellRecord:
    """The record of a cell that failed."""
    cell = job.cell
    return CellRecord(
        data=cell.data,
        variant=cell.variant,
        seed=cell.seed,
        split=job.fingerprint,
        settings=settings_of(cell.config),
        error=error,
        details=details,
        versions=versions(),
        finished=_now(),
    )


def _split(job: Job) -> Split:
    found = Split.load(ExperimentFolder(job.folder).split_path(job.cell.data))
    if found.fingerprint() != job.fingerprint:
        raise UserError(f"the split of {job.cell.data} was changed while the experiment was going on: run it again")
    return found


def _epochs(history: list[dict[str, Any]], name: str) -> dict[str, list[int]]:
    found = {"pretraining": epochs_of(history, f"pretrain_{name}", name), "joint": epochs_of(history, "joint", name)}
    return {phase: list(each) for phase, each in found.items() if each is not None}


def _seconds(history: list[dict[str, Any]], phase: str) -> float:
    return round(sum(float(row["seconds"]) for row in history if row["phase"].startswith(phase)), 3)


def _ranks(models: Mapping[str, Recommender], split: Split, config: Config) -> dict[str, np.ndarray]:
    """int32 [n] each: users and ranks of the held-out items of each part, in the order of `held_out`."""
    found = {}
    for part in ("val", "test"):
        users, _ = held_out(split, part, config.eval.users)
        if len(users):
            found[f"{part}_users"] = users.astype(np.int32)
            for name, model in models.items():
                size, most = config.eval.batch_size, config.eval.users
                found[f"{part}_{name}"] = ranks(model, split, part, batch_size=size, max_users=most).astype(np.int32)
    return found


def _microseconds(model: Recommender, split: Split) -> float | None:
    """Time for a user's list of the best unseen items, in the batches of an evaluation; None on a GPU."""
    device = device_of(model)
    if device.type != "cpu":
        return None
    users = torch.arange(min(TIMED_USERS, split.n_users))
    seen, times = seen_items(split, "test"), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for some in users.split(256):
            topk(scorer_of(model, some, split.n_items), min(TIMED_ITEMS, split.n_items), seen.rows(some))
        times.append(time.perf_counter() - began)
    return round(1e6 * median(times) / len(users), 3)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
