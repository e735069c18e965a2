"""What a run's JSON files hold: schemas of its checkpoint, its results, and the list of its files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bidistill.files.records import Record, Section

Metrics = dict[str, dict[str, dict[str, float]]]
Phase = Literal["pretrain_teacher", "pretrain_student", "joint"]
Whole = Field(ge=0)


class Progress(Section):
    """See `training.phases.Progress`."""

    phase: Phase
    epoch: int = Whole
    step: int = Whole
    started: bool
    ended: str


class Learned(Section):
    """Of one model in training; see `Learner.state`."""

    best_score: float | None
    best_epoch: int = Whole
    stale: int = Whole
    optimizer: dict[str, int | float]


class State(Section):
    """How far a run is: what a checkpoint says besides its tensors.

    Attributes:
        split: the fingerprint. config: `Config.values()`. sums: of the running epoch's losses, for each process.
        stopped: why a callback stopped the run, or "". notes: numbers that callbacks have logged for the running epoch.
        pretrained_files: the seal of each model that the pretraining has left.
    """

    split: str
    config: dict[str, Any]
    versions: dict[str, str]
    progress: Progress
    history: list[dict[str, int | float | str]]
    pretrained: Metrics
    sums: dict[str, list[float]]
    stopped: str
    notes: dict[str, float]
    teacher: Learned
    student: Learned
    pretrained_files: dict[str, str]


class Checkpoint(Record):
    """state.json. files: the sha256 of each file of tensors, by its path in the folder. folder: of shards, or none."""

    FORMAT = "bidistill checkpoint 4"
    REMEDY = "restore the file from a copy, or start the run again"
    files: dict[str, str]
    folder: str | None = None
    processes: int = Field(ge=1)
    state: dict[str, Any]


class Finished(Record):
    """metrics.json: what a finished run is. baselines: metrics of the models that it is compared with. files: the seal of each
    model file, by its path in the run's folder. stopped: why a callback stopped the run, or ""."""

    FORMAT = "bidistill run 4"
    metrics: Metrics
    pretrained: Metrics
    baselines: Metrics
    split: str
    versions: dict[str, str]
    config: dict[str, Any]
    history: list[dict[str, int | float | str]]
    files: dict[str, str]
    stopped: str = ""


class Listing(Record):
    """files.json: the names that bidistill writes in a folder, relative to it, and which torchrun began the run ("": none)."""

    FORMAT = "bidistill folder 2"
    REMEDY = "choose another folder, or remove this one yourself"
    files: list[str]
    launch: str
