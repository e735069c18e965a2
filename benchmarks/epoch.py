"""A whole distillation epoch, (f) of issue 3: the trainer with fresh exact draws, against the published procedure.

One run of the trainer refills its pools of draws every other epoch, so its epochs are by turns one with fresh draws and one of
training steps alone. After each pair the published refresh takes its turn: rank matrices user by user and one pool of draws
from them, for some users, scaled to all. An epoch as published is then the steps alone plus that refresh, or a tenth of it
where ranks and draws serve ten epochs; drawing anew in between would cost it more. Both sides take the same training steps, so
where those are most of an epoch no sampler can be many times faster: compare the row of the steps alone.
"""

import time
from pathlib import Path
from typing import Any

import torch
from bidistill import Config, Split, Trainer
from bidistill.callbacks import Callback
from bidistill.data import generate, split
from bidistill.load import load_split

import bdkernels as bd
from benchmarks import peers
from benchmarks.case import Case, Timing
from benchmarks.sample import check

SIZES = {"f": (5_219, 25_187, 130_799)}  # users, items, interactions of CiteULike
TINY, TINY_BATCH = (30, 200, 400), 128
REFRESHED_USERS = 200
FRESH, STEPS = "bdkernels", "training_steps_alone"
PUBLISHED = {"published_every_epoch": 1, "published_every_tenth_epoch": 10}  # epochs that one refresh serves


class Refresh(Callback):
    """Collects the seconds of the epochs, and after each pair those of the published refresh.

    Attributes:
        seconds: {contender: [s]}; the first pair warms up and its draws are checked.
    """

    def __init__(self, config: Any, pool: int) -> None:
        self.pool = pool
        self.seconds: dict[str, list[float]] = {FRESH: [], STEPS: [], "refresh": []}

    def on_epoch(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if row["phase"] != "joint" or row["epoch"] == 0:  # 0: the starting state's evaluation
            return
        fresh = row["epoch"] % 2 == 1  # counted from 1; the first one refills
        self.seconds[FRESH if fresh else STEPS].append(row["seconds"])
        if fresh:
            return
        models = [trainer.learners[name].model for name in ("teacher", "student")]
        users = torch.arange(min(REFRESHED_USERS, models[0].n_users))
        t, s = (model.factors(users) for model in models)
        rows = trainer.seen.rows(users)
        start = time.perf_counter()
        drawn = peers.per_user_argsort(t, s, rows, self.pool)
        self.seconds["refresh"].append((time.perf_counter() - start) * models[0].n_users / len(users))
        if row["epoch"] == 2:
            ours = bd.sample(t, s, self.pool, rows)
            check(t, s, rows, {"bdkernels": (ours.to_student.ids, ours.to_teacher.ids), "per_user_argsort": drawn})


class Epochs(Case):
    """A case whose contenders take turns inside of one training run."""

    def __init__(self, config: Config, data: Split, sizes: dict[str, Any]) -> None:
        self.config, self.data = config, data
        super().__init__(sizes, {}, lambda results: None, None, memory=False)

    def measure(self, benchmark: Any, repeats: int, limit_s: float) -> dict[str, Timing]:
        """Train; pytest-benchmark records the run as a whole."""
        pairs = 1 + max(2, min(repeats // 2, 5))  # the first one warms up
        config = self.config.with_overrides({"train.epochs": 2 * pairs, "train.eval_every": 2 * pairs})
        refresh = Refresh(config, config.distill.pool)
        trainer = Trainer(config, self.data, callbacks=[refresh])
        benchmark.pedantic(trainer.fit, rounds=1)
        found = refresh.seconds
        timings = {name: Timing(found[name][0], found[name][1:]) for name in (FRESH, STEPS)}
        for name, epochs in PUBLISHED.items():
            whole = [r / epochs + s for r, s in zip(found["refresh"], found[STEPS], strict=True)]
            timings[name] = Timing(whole[0], whole[1:])
        return timings


def build(name: str, *, tiny: bool, data: str | None = None) -> Case:
    """The epoch at CiteULike's sizes: on the .npz `data` if given (arrays train, val, test), else on made-up interactions."""
    settings = {
        "train.warmup_epochs": 0, "train.patience": 0, "distill.refresh": 2, "run.progress": False,
        "teacher.dim": 50, "student.dim": 5,
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
