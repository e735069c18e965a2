"""The options of [eval]: on whom, at which lengths, and beside which other models."""

from __future__ import annotations

from dataclasses import dataclass

from bidistill.metrics import cut_off, heading
from bidistill.options import option
from bidistill.registry import CATALOG_METRICS, MODELS


@dataclass(frozen=True)
class EvalConfig:
    ks: tuple[int, ...] = option((10, 50), lambda: f"list lengths of {', '.join(map(heading, cut_off()))}", least=1)
    batch_size: int = option(256, "users ranked at a time", least=1)
    metrics: tuple[str, ...] | None = option(
        None,
        "metrics of the catalog, besides those of ranks, which are always there; they take the K best items of every evaluated"
        " user",
        choices=CATALOG_METRICS,
    )
    baselines: tuple[str, ...] = option(
        ("popularity",),
        "kinds of models that are fitted when the run ends, for the tables of results: popularity, which is always there, als,"
        " ease, item_knn and other kinds with a method fit",
        choices=MODELS,
    )
    users: int = option(
        0,
        "evaluate on so many users, picked at random, the same ones every time; 0: on all who have held-out items",
        least=0,
    )
    generator: str | None = option(
        None,
        "file of the model that made the data up, which `bidistill data generate` writes beside them: tables then show its"
        " metrics too, as the ceiling, and what share of them each model reaches",
    )


# Which models a run is compared with, which no training depends on, and the values that ask for as few as can be.
COMPARED = {"eval.baselines": EvalConfig.baselines, "eval.generator": None}
