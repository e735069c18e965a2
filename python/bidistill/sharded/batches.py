"""The batches of a step once the rows of their items are here."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bdkernels import Draws, score
from bidistill.models import Recommender
from bidistill.models.base import TableModel, Tables
from bidistill.part import Part
from bidistill.sharded.rows import Fetched
from bidistill.update import Batch


def fetch(
    part: Part, models: Mapping[str, Recommender], batches: Mapping[str, Batch], n_rows: int, *, fused: bool
) -> dict[str, Batch]:
    """Fetch the rows of the items that the batches list, and let their guides score the distilled ones.

    Args:
        batches: of each learning model, this process's part; items by their ids.
        n_rows: rows of the whole batch.
        fused: as for `Batch.listed`.
    """
    exchange, world = part.world.exchange, part.world
    masked = [int(batch.distill.mask.sum()) for batch in batches.values()]
    offsets = torch.tensor([*(world.range(part.n_items, place).start for place in range(world.size)), part.n_items])
    listed = {name: batch.listed(fused) for name, batch in batches.items()}
    device = next(iter(listed.values())).device
    fetched = Fetched(exchange, offsets.to(device), listed, [int(world.asked), *masked], part.items.start)
    stop, *everyones = (sum(column) for column in zip(*fetched.told, strict=True))
    world.stopping = stop > 0
    of_distilled = {name: c / max(1, total) for name, c, total in zip(batches, masked, everyones, strict=True)}
    tables = {name: tables_of(models[name]) for name in batches}
    n_own = len(next(iter(batches.values())).users)
    rows = fetched.rows(tables, n_own / n_rows, of_distilled)
    out = {}
    for name, batch in batches.items():
        out[name] = batch._replace(
            positives=fetched.number(batch.positives),
            negatives=Draws(fetched.number(batch.negatives.ids), batch.negatives.mask),
            distill=Draws(fetched.number(batch.distill.ids), batch.distill.mask),
            rows=rows[name],
        )
    error: Exception | None = None
    try:
        for name, guide in zip(out, reversed(out), strict=True):
            batch = out[name]
            if len(out) > 1 and batch.distill.ids.numel():
                factors = rows[guide].factors(tables[guide][0][batch.users])
                out[name] = batch._replace(guide_scores=score(factors, batch.distill.ids))
    except ValueError as found:  # of a score that is not a number
        error = found
    if len(out) > 1:
        exchange.agree("step", error=error)
    return out


def tables_of(model: Recommender) -> Tables:
    """The tables of a model that can lie on several processes."""
    tables = model.tables() if isinstance(model, TableModel) else None
    assert tables is not None
    return tables
