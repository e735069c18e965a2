"""Models that a run is compared with in every table of its results: fitted when it ends, with default settings of their kinds.

A kind that has a `dim` is fitted with that of the teacher and with that of the student. Where `eval.generator` names the model
that made the data up, it stands beside them: the ceiling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from bidistill.config import Config, ModelConfig
from bidistill.data import Split
from bidistill.data.generator import generator_size, read_generator
from bidistill.data.sizes import Sizes
from bidistill.errors import UserError
from bidistill.evaluation.ranks import seen_items
from bidistill.models import Recommender
from bidistill.models.base import FittedModel
from bidistill.models.kinds import takes
from bidistill.models.sizes import ModelSize, size_of_kind
from bidistill.seeds import seed_of
from bidistill.training.engine import Engine, new_model
from bidistill.training.fitted import fit_model

ALWAYS = "popularity"
CEILING = "generator"


def baselines(config: Config) -> dict[str, ModelConfig]:
    """What each one is called, and its settings."""
    found: dict[str, ModelConfig] = {}
    for kind in dict.fromkeys((ALWAYS, *config.eval.baselines)):
        if takes(kind, "dim"):
            dims = dict.fromkeys((config.teacher.dim, config.student.dim))
            found |= {f"{kind}, d = {dim}": ModelConfig(kind=kind, dim=dim) for dim in dims}
        else:
            found[kind] = ModelConfig(kind=kind)
    return found


def sizes_of(config: Config, sizes: Sizes) -> dict[str, ModelSize]:
    """How large they are. Raises UserError where a kind has no method `fit`."""
    found = {}
    for name, model in baselines(config).items():
        found[name] = size_of_kind(model.build_config(sizes.users, sizes.items))
        if not found[name].fitted:
            raise UserError(
                f"eval.baselines has {model.kind}, a kind that is not fitted in one call, such as popularity, als, ease and"
                " item_knn are: leave it out"
            )
    if config.eval.generator is not None:
        users, items, width = generator_size(config.eval.generator)
        whole = 4 * width * max(users, items)  # of a table as it is read
        found[CEILING] = ModelSize(4 * width * (sizes.users + sizes.items), 0, width, False, True, lambda _: whole)
    return found


def baseline_models(engine: Engine, split: Split) -> Iterator[tuple[str, Recommender]]:
    """Each one with its name, fitted when its turn comes, so that one at a time is in memory."""
    config, partition = engine.config, engine.partition
    whole = partition.own_users is None
    everyone = engine.seen if whole else seen_items(split, "val", engine.device)
    for name, settings in baselines(config).items():
        seed = seed_of(config.run.seed, "baseline", name)
        model = new_model(settings, partition, seed).to(engine.device)
        fit_model(f"the baseline {name}", cast(FittedModel, model), everyone, seed, whole=whole)
        yield name, model
    if config.eval.generator is not None:
        yield CEILING, read_generator(config.eval.generator, split, **partition.own_rows).to(engine.device)
