"""What the JSON files of an experiment hold."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bidistill.files.records import Record
from bidistill.runs.records import Metrics


class Experiment(Record):
    """experiment.json: whose folder it is, and the grid of the last call.

    Attributes:
        name: of the experiment.
        grid: the content of its file.
        splits: the fingerprint of each data set that was read.
    """

    FORMAT = "bidistill experiment 1"
    REMEDY = "restore the file from a copy, or choose another folder"
    name: str
    grid: dict[str, Any]
    splits: dict[str, str]


class CellRecord(Record):
    """cells/DATA/VARIANT/SEED.json: what one cell gave, or why it failed.

    Attributes:
        split: the fingerprint of the data.
        settings: those that count for the result, by their names.
        error: why it failed, in a sentence; "" where it did not. details: the traceback, where it was no mistake of the user's.
        metrics, pretrained, baselines: as in a run's metrics.json; {} in the record of a failure, as all that follows.
        epochs: {"teacher": {"pretraining": [trained, kept], "joint": [trained, kept]}, "student": ...}; without a phase in
            which the model did not learn.
        seconds: of the pretraining, of the joint phase, and of the whole cell with its evaluations; a pretraining that cells
            share counts in each of them.
        bytes: of the teacher's and the student's parameters and buffers.
        microseconds: for a user's list of the best 50 unseen items, median of 5; None: not measured.
        history: one row an epoch.
        notes: signs that a phase did a model no good, a sentence each.
        ranks: the sha256 of the .npz beside the record, with the ranks of all held-out items.
        versions: what the numbers depend on. finished: date and time, UTC.
    """

    FORMAT = "bidistill cell 1"
    REMEDY = "delete the file, and run the experiment again"
    data: str
    variant: str
    seed: int
    split: str
    settings: dict[str, Any]
    error: str = ""
    details: str = ""
    metrics: Metrics = Field(default_factory=dict)
    pretrained: Metrics = Field(default_factory=dict)
    baselines: Metrics = Field(default_factory=dict)
    epochs: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    bytes: dict[str, int] = Field(default_factory=dict)
    microseconds: dict[str, float | None] = Field(default_factory=dict)
    history: list[dict[str, int | float | str]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    ranks: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    finished: str = ""
