"""How a step meets the models: whole ones here, or parts of them on several processes (`training.sharded`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bidistill.config import Config, ModelConfig
from bidistill.distributed.partition import Partition
from bidistill.models import Recommender
from bidistill.models.base import tables_of
from bidistill.models.scoring import guide_scores
from bidistill.training.fusion import obstacle
from bidistill.training.types import Batch, Terms
from bidistill.training.updates import EagerUpdate, FusedUpdate, SharedUpdate, Update


class Strategy(Protocol):
    """What the models of a run need in a step."""

    def check(self, config: Config) -> None:
        """Raise UserError where a setting asks for what this strategy cannot do."""
        ...

    def update(self, model: Recommender, config: ModelConfig, terms: Terms, *, fuse: bool) -> Update:
        """A fresh update of a model; `fuse` lets it be fused where model and optimizer allow it."""
        ...

    def guided(
        self,
        models: Mapping[str, Recommender],
        guides: Mapping[str, Recommender],
        batches: dict[str, Batch],
        rows: int,
        *,
        fuse: bool,
    ) -> Mapping[str, Any]:
        """What the updates of this strategy take: the batches, with the guides' scores of the distilled items.

        Args:
            guides: whom each model that learns follows.
            rows: how many rows the batch of the whole run has in this step.
        """
        ...


class Whole:
    """Models that are whole."""

    def check(self, config: Config) -> None:
        """Every setting will do."""

    def update(self, model: Recommender, config: ModelConfig, terms: Terms, *, fuse: bool) -> Update:
        """Fused where settings, model and optimizer allow it."""
        tables = tables_of(model)
        if fuse and tables is not None and not obstacle(model, config):
            return (SharedUpdate if terms.shared else FusedUpdate)(model, tables, config, terms)
        return EagerUpdate(model, config, terms)

    def guided(
        self,
        models: Mapping[str, Recommender],
        guides: Mapping[str, Recommender],
        batches: dict[str, Batch],
        rows: int,
        *,
        fuse: bool,
    ) -> Mapping[str, Batch]:
        """The guides score as they are before the step."""
        guided = {}
        for name, batch in batches.items():
            scores = guide_scores(guides[name], batch.users, batch.distill.ids.clamp(min=0))
            guided[name] = Batch(batch.users, batch.positives, batch.negatives, batch.distill, scores)
        return guided


def strategy_of(partition: Partition) -> Strategy:
    """The strategy for models that lie as the partition says."""
    if partition.shards is None:
        return Whole()
    from bidistill.training.sharded import Sharded  # torch.distributed is not needed by a single process

    return Sharded(partition)
