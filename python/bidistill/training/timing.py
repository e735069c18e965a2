"""What a training step, draws and ranks cost on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch

from bdkernels import Factors, Seen, rank
from bdkernels.tools.measure import seconds
from bidistill.config import Config
from bidistill.data.sizes import Sizes, made_up
from bidistill.distill import Distiller
from bidistill.distill.distiller import CHUNK
from bidistill.distributed.partition import Partition
from bidistill.models import MF, Recommender
from bidistill.training.engine import Engine

# Tables of real size as far as that takes seconds: their rows cost more the less of them the caches and page tables hold.
MOST = {"users": 1_000_000, "items": 1_000_000, "train": 2_000_000}
SCANNED = 250_000  # items of a timed call that goes over all of them: more than the caches hold, too
OWN = 0.5  # standard deviation of the part that is not shared: a correlation of 0.8, and 0.7 to 0.8 was seen on trained models


@dataclass(frozen=True)
class Line:
    """A cost that grows with the catalog: fixed + slope * items."""

    fixed: float
    slope: float

    def at(self, items: float) -> float:
        return self.fixed + self.slope * items


def draw_share(config: Config, sizes: Sizes) -> float:
    """The share of the joint phase's time that exact draws would take, measured in a few seconds."""
    little = sizes.at_most(**MOST)
    engine = Engine(exact(config), made_up(little))
    return share_of(config, sizes, draw_line(engine), step_seconds(engine, "joint"))


def share_of(config: Config, sizes: Sizes, line: Line, step: float) -> float:
    """The same from the cost of exact draws and of a step of the joint phase."""
    draw = line.at(sizes.items)
    steps = math.ceil(sizes.train / config.train.batch_size)
    every = config.distill.resample_every
    users = sizes.users / (every * steps) if every else config.train.batch_size  # drawn for in a step
    return users * draw / (users * draw + step)


def step_seconds(engine: Engine, phase: str, repeats: int = 8) -> float:
    """A training step of this phase, with a pool of random items where the run has one."""
    distiller, size = engine.objective.distiller, min(engine.config.train.batch_size, len(engine.users))
    if distiller is not None:
        shape = engine.partition.n_users, 2 * engine.config.distill.pool
        distiller.pool = torch.randint(engine.partition.n_items, shape, dtype=torch.int32, device=engine.device)
    order = torch.randperm(len(engine.users), generator=torch.Generator().manual_seed(0))
    times = []
    for number in range(repeats + 2):
        some = order[torch.arange(number * size, (number + 1) * size) % len(order)].to(engine.device)
        users, positives = engine.users[some], engine.items[some]
        times.append(seconds(lambda u=users, p=positives, n=number: engine.step(phase, u, p, n)))  # type: ignore[misc]
    return median(times[2:])


def draw_line(engine: Engine) -> Line:
    """Draws for as many users as resampling takes at once, over SCANNED items and over a quarter of them.

    How many proposals must be counted depends on how alike the two models rank. Those here are untrained; biases that they share
    in part make their ranks as alike as those of trained ones.
    """
    config = engine.config
    k = config.distill.pool if config.distill.resample_every else config.distill.samples
    shared, *own = torch.randn(3, engine.partition.n_items, generator=torch.Generator().manual_seed(0))
    teacher, student = (
        factors_of(engine, name, CHUNK)._replace(item_bias=(shared + OWN * noise).to(engine.device))
        for name, noise in zip(("teacher", "student"), own, strict=True)
    )
    users = torch.arange(len(teacher.user_factors), device=engine.device)
    nothing = torch.zeros(0, dtype=torch.int64, device=engine.device)
    seen = Seen.from_pairs(nothing, nothing, len(users))

    always = config.with_overrides({"distill.resample_every": 0, "distill.samples": k}).distill

    @cache
    def drawing(n: int) -> tuple[Distiller, tuple[Recommender, Recommender]]:
        distiller = Distiller.from_config(always, seen, 0, Partition.whole(len(users), n))
        assert distiller is not None
        return distiller, (model_of(first(teacher, n)), model_of(first(student, n)))

    def call(n: int) -> None:
        distiller, pair = drawing(n)
        distiller.draw(*pair, users, 0, torch.Generator())

    return line(teacher, call)


def rank_line(engine: Engine, name: str) -> Line:
    """`rank` of one item for the users of a batch of evaluation, over SCANNED items and over a quarter of them."""
    factors = factors_of(engine, name, engine.config.eval.batch_size)
    ids = torch.zeros(len(factors.user_factors), 1, dtype=torch.int64, device=engine.device)
    return line(factors, lambda n: rank(first(factors, n), ids))


def factors_of(engine: Engine, name: str, users: int) -> Factors:
    """Some users of one of the models."""
    return engine.learners[name].model.factors(torch.arange(min(users, engine.partition.n_users), device=engine.device))


def model_of(factors: Factors) -> Recommender:
    """A model of these users and items."""
    users, items, bias = factors
    assert bias is not None
    with torch.device("meta"):  # no tables of its own
        model = MF(len(users), len(items), users.shape[1])
    tables = {"user_factors.weight": users, "item_factors.weight": items, "item_bias.weight": bias[:, None]}
    model.load_state_dict(tables, assign=True)
    return model


def first(factors: Factors, n: int) -> Factors:
    """The same users over the first n items."""
    return Factors(
        factors.user_factors, factors.item_factors[:n], None if factors.item_bias is None else factors.item_bias[:n]
    )


def line(factors: Factors, call: Callable[[int], Any]) -> Line:
    """Seconds a user of calls over n items, for SCANNED items and a quarter of them in turns."""
    items, users = min(SCANNED, factors.n_items), len(factors.user_factors)
    few = max(1, items // 4)
    call(few)
    times = [(seconds(lambda: call(few)), seconds(lambda: call(items)))]
    for _ in range(2 if sum(times[0]) < 0.5 else 0):
        times.append((seconds(lambda: call(few)), seconds(lambda: call(items))))
    short, long = (median(column) / users for column in zip(*times, strict=True))
    slope = max(0.0, long - short) / max(1, items - few)
    return Line(max(0.0, long - slope * items), slope)


def exact(config: Config) -> Config:
    """The settings with exact ranks in the place of "auto"."""
    return config.with_overrides({"distill.subset": 0}) if config.distill.subset == "auto" else config
