"""A whole distillation epoch, (f) of issue 3: the trainer with fresh exact draws, against the published procedure.

A trainer refills its pools of draws every other epoch, so its epochs are by turns one with fresh draws and one of training
steps alone. Three of them take turns, a pair of epochs each: ours, with the fused steps of sparse_adam, and two whose steps are
eager, with Adam as published and with sparse_adam. Then the published refresh has its turn: rank matrices user by user and one
pool of draws from them, for some users, scaled to all. An epoch as published is the faster of the eager steps plus that
refresh, or a tenth of it where ranks and draws serve ten epochs; drawing anew in between would cost it more.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bidistill import Config, Split, Trainer
from bidistill.data import generate, split
from bidistill.data.load import load_split
from bidistill.training.callbacks import Callback

import bdkernels as bd
from benchmarks import peers
from benchmarks.case import Case, Timing
from benchmarks.sample import check

SIZES = {"f": (5_219, 25_187, 130_799)}  # users, items, interactions of CiteULike
TINY, TINY_BATCH = (30, 200, 400), 128
REFRESHED_USERS = 200
EVAL_EVERY = 1000  # never in between: only after a pair of epochs
FUSED = "fused"
TRAINERS = {
    FUSED: ("sparse_adam", True),
    "adam": ("adam", False),
    "sparse_adam": ("sparse_adam", False),
}  # may they fuse
FRESH, STEPS = "bdkernels", "training_steps_alone"
PUBLISHED = {"published_every_epoch": 1, "published_every_tenth_epoch": 10}  # epochs that one refresh serves


class Seconds(Callback):
    """Collects the seconds of a trainer's epochs: `fresh` with draws, `steps` without."""

    def __init__(self) -> None:
        self.fresh: list[float] = []
        self.steps: list[float] = []

    def on_epoch(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if row["phase"] == "joint" and row["epoch"]:  # 0: the starting state's evaluation
            (self.fresh if row["epoch"] % 2 else self.steps).append(row["seconds"])  # the first one refills


def published_refresh(trainer: Trainer, first: bool) -> float:
    """Seconds of the published refresh of these models for all users; the first time its draws are checked."""
    teacher, student = (trainer.engine.learners[name].model for name in ("teacher", "student"))
    users = torch.arange(min(REFRESHED_USERS, teacher.n_users))
    t, s, rows, k = (
        teacher.factors(users),
        student.factors(users),
        trainer.engine.seen.rows(users),
        trainer.config.distill.pool,
    )
    start = time.perf_counter()
    drawn = peers.per_user_argsort(t, s, rows, k)
    taken = (time.perf_counter() - start) * teacher.n_users / len(users)
    if first:
        ours = bd.sample(t, s, k, rows, user_ids=users, step=0)
        check(t, s, rows, {"bdkernels": (ours.to_student.ids, ours.to_teacher.ids), "per_user_argsort": drawn})
    return taken


class Epochs(Case):
    """A case whose contenders are training runs that take turns, two epochs at a time."""

    def __init__(self, config: Config, data: Split, sizes: dict[str, Any]) -> None:
        self.config, self.data = config, data
        super().__init__(sizes, {}, lambda results: None, None, memory=False)

    def measure(self, benchmark: Any, repeats: int, limit_s: float) -> dict[str, Timing]:
        """Train; pytest-benchmark records all of it as one round. The first pair of epochs warms up."""
        pairs = 1 + max(2, min(repeats // 2, 5))
        seconds = {name: Seconds() for name in TRAINERS}
        trainers = {name: self._trainer(name, seconds[name]) for name in TRAINERS}
        refresh: list[float] = []

        def run() -> None:
            for pair in range(pairs):
                for trainer in trainers.values():
                    trainer.config = trainer.config.with_overrides({"train.epochs": 2 * (pair + 1)})
                    trainer.fit()
                refresh.append(published_refresh(trainers[FUSED], first=pair == 0))

        benchmark.pedantic(run, rounds=1)
        eager = min((seconds[name].steps for name in TRAINERS if name != FUSED), key=lambda s: statistics.median(s[1:]))
        found = {FRESH: seconds[FUSED].fresh, STEPS: seconds[FUSED].steps, "bdkernels_adam": seconds["adam"].fresh}
        found |= {f"eager_steps_alone_{name}": seconds[name].steps for name in TRAINERS if name != FUSED}
        for name, epochs in PUBLISHED.items():
            found[name] = [r / epochs + s for r, s in zip(refresh, eager, strict=True)]
        return {name: Timing(times[0], times[1:]) for name, times in found.items()}

    def _trainer(self, name: str, seconds: Seconds) -> Trainer:
        optimizer, fuse = TRAINERS[name]
        settings = {f"{model}.optimizer": optimizer for model in ("teacher", "student")}
        trainer = Trainer(self.config.with_overrides(settings), self.data, callbacks=[seconds])
        for learner in trainer.engine.learners.values():
            learner.fuse &= fuse
        return trainer


def build(name: str, *, tiny: bool, data: str | None = None) -> Case:
    """The epoch at CiteULike's sizes: on the .npz `data` if given (arrays train, val, test), else on made-up interactions."""
    settings = {
        "train.pretrain_epochs": 0, "train.patience": 0, "train.eval_every": EVAL_EVERY, "distill.resample_every": 2,
        "run.progress": False, "teacher.dim": 50, "student.dim": 5,
    }  # fmt: skip
    config = Config().with_overrides(settings | ({"train.batch_size": TINY_BATCH} if tiny else {}))
    if data and not tiny:
        parts = load_split(config.with_overrides({"data.train_path": data}).data)
        source = Path(data).name
    else:
        parts = split(generate(*(TINY if tiny else SIZES[name]))[0], "leave_one")
        source = "synthetic"
    sizes = {
        "users": parts.n_users, "items": parts.n_items, "dims": [50, 5], "draws": config.distill.pool, "data": source,
        "interactions": len(parts.train_users), "refreshed_users": min(REFRESHED_USERS, parts.n_users),
    }  # fmt: skip
    return Epochs(config, parts, sizes)
