"""What a training step, draws and ranks cost on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bdkernels import Factors, Seen, rank, score
from bdkernels.tools.measure import seconds
from bidistill.config import Config
from bidistill.data.sizes import Sizes, made_up
from bidistill.distill import Distiller
from bidistill.distill.distiller import CHUNK
from bidistill.distill.method import list_sizes
from bidistill.distributed.partition import Partition
from bidistill.models import Recommender
from bidistill.models.scoring import scorer_of
from bidistill.training.engine import Engine

# Tables of real size as far as that takes seconds: their rows cost more the less of them the caches and page tables hold.
MOST = {"users": 1_000_000, "items": 1_000_000, "train": 2_000_000}
SCANNED = 250_000  # items of a timed call that goes over all of them: more than the caches hold, too
OWN = 0.5  # standard deviation of the part that is not shared: a correlation of 0.8, and 0.7 to 0.8 was seen on trained models


@dataclass(frozen=True)
class Cost:
    """A cost that grows with the catalog: fixed + slope * items."""

    fixed: float
    slope: float

    def at(self, items: float) -> float:
        return self.fixed + self.slope * items


def draw_share(config: Config, sizes: Sizes) -> float:
    """The share of the joint phase's time that exact draws would take, measured in a few seconds."""
    little = sizes.at_most(**MOST)
    engine = Engine(exact(config), made_up(little))
    return share_of(config, sizes, draw_cost(engine), step_seconds(engine, "joint"))


def share_of(config: Config, sizes: Sizes, cost: Cost, step: float) -> float:
    """The same from the cost of exact draws and of a step of the joint phase."""
    draw = cost.at(sizes.items)
    steps = math.ceil(sizes.train / config.train.batch_size)
    every = config.distill.resample_every
    users = sizes.users / (every * steps) if every else config.train.batch_size  # drawn for in a step
    return users * draw / (users * draw + step)


def step_seconds(engine: Engine, phase: str, repeats: int = 8) -> float:
    """A training step of this phase, with a pool of random items where the run has one."""
    distiller, size = engine.objective.distiller, min(engine.config.train.batch_size, len(engine.users))
    if distiller is not None:
        shape = engine.partition.n_users, len(distiller.learners) * distiller.most
        distiller.pool = torch.randint(engine.partition.n_items, shape, dtype=torch.int32, device=engine.device)
    order = torch.randperm(len(engine.users), generator=torch.Generator().manual_seed(0))
    times = []
    for number in range(repeats + 2):
        some = order[torch.arange(number * size, (number + 1) * size) % len(order)].to(engine.device)
        users, positives = engine.users[some], engine.items[some]
        times.append(seconds(lambda u=users, p=positives, n=number: engine.step(phase, u, p, n)))  # type: ignore[misc]
    return median(times[2:])


def draw_cost(engine: Engine) -> Cost:
    """Draws for as many users as resampling takes at once, over SCANNED items and over a quarter of them.

    How many proposals must be counted depends on how alike the two models rank. Those here are untrained; biases that they share
    in part make the ranks of models with factors as alike as those of trained ones. Others rank as they are.
    """
    config = engine.config
    k = list_sizes(config.distill)[0 if config.distill.resample_every else 1]
    users = some_users(engine, CHUNK)
    shared, *own = torch.randn(3, engine.partition.n_items, generator=torch.Generator().manual_seed(0))
    pair = [
        cut(engine.learners[name].model, users, (shared + OWN * noise).to(engine.device))
        for name, noise in zip(("teacher", "student"), own, strict=True)
    ]
    nothing = torch.zeros(0, dtype=torch.int64, device=engine.device)
    seen = Seen.from_pairs(nothing, nothing, len(users))

    @cache
    def drawing(n: int) -> tuple[Distiller, list[Recommender]]:
        distiller = Distiller.from_config(config.distill, seen, 0, Partition.whole(len(users), n))
        assert distiller is not None
        return distiller, [first(n) for first in pair]

    def call(n: int) -> None:
        distiller, (teacher, student) = drawing(n)
        distiller.ask(teacher, student, users, k, 0, None)

    return cost(len(users), engine.partition.n_items, call)


def rank_cost(engine: Engine, name: str) -> Cost:
    """`rank` of one item for the users of a batch of evaluation, over SCANNED items and over a quarter of them."""
    users = some_users(engine, engine.config.eval.batch_size)
    first = cut(engine.learners[name].model, users)
    ids = torch.zeros(len(users), 1, dtype=torch.int64, device=engine.device)
    return cost(len(users), engine.partition.n_items, lambda n: rank(scorer_of(first(n), users), ids))


def some_users(engine: Engine, n: int) -> Tensor:
    """The first n users, or all."""
    return torch.arange(min(n, engine.partition.n_users), device=engine.device)


def cut(model: Recommender, users: Tensor, item_bias: Tensor | None = None) -> Callable[[int], Any]:
    """What gives a model of the first n items, for these users.

    item_bias: in the place of its own, where it has factors.
    """
    scorer = scorer_of(model, users)
    if not isinstance(scorer, Factors):
        return lambda n: FirstItems(model, n)
    if item_bias is not None:
        scorer = scorer._replace(item_bias=item_bias)
    return lambda n: FirstFactors(scorer, n)


class FirstFactors(torch.nn.Module):
    """A model of the first n items of these factors, whose users are numbered by their rows."""

    def __init__(self, factors: Factors, n: int) -> None:
        super().__init__()
        users, items, bias = factors
        self.own = Factors(users, items[:n], None if bias is None else bias[:n])
        self.n_users, self.n_items = len(users), n

    def factors(self, users: Tensor) -> Factors:
        return self.own._replace(user_factors=self.own.user_factors[users])

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return score(self.factors(users), items)


class FirstItems(torch.nn.Module):
    """A model of the first n items of another one."""

    def __init__(self, model: Recommender, n: int) -> None:
        super().__init__()
        self.model, self.n_users, self.n_items = model, model.n_users, n
        if callable(block := getattr(model, "score_block", None)):
            self.score_block = block

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return self.model.score(users, items)


def cost(users: int, n_items: int, call: Callable[[int], Any]) -> Cost:
    """Seconds a user of calls over n items, for SCANNED items and a quarter of them in turns."""
    items = min(SCANNED, n_items)
    few = max(1, items // 4)
    call(few)
    times = [(seconds(lambda: call(few)), seconds(lambda: call(items)))]
    for _ in range(2 if sum(times[0]) < 0.5 else 0):
        times.append((seconds(lambda: call(few)), seconds(lambda: call(items))))
    short, long = (median(column) / users for column in zip(*times, strict=True))
    slope = max(0.0, long - short) / max(1, items - few)
    return Cost(max(0.0, long - slope * items), slope)


def exact(config: Config) -> Config:
    """The settings with exact ranks in the place of "auto"."""
    return config.with_overrides({"distill.subset": 0}) if config.distill.subset == "auto" else config
