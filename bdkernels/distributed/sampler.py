"""The sampler's rounds when the items lie on several processes: all go through them together, each for its own users.

A process without an open row takes part with none, and the rounds end when no process has one. The users of a turn and their seen
rows are sent once; a round then sends which of them ask, and for what.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bdkernels.backends.backend import Steps
from bdkernels.distributed.collectives import Exchange
from bdkernels.distributed.shard import Catalog, Visit, receive
from bdkernels.sampling.sampler import ROWS, Group, Items

NAMES = ("teacher", "student")


class ShardedItems(Items):
    """`sampler.Items` whose every question is a collective; the tables of a batch are this process's shard.

    A shard counts for all processes at once, so each has its part of the users in flight.
    """

    def __init__(self, exchange: Exchange, steps: Steps, catalog: Catalog) -> None:
        super().__init__(steps, catalog.offsets[-1])
        self._exchange, self._catalog, self._counted = exchange, catalog, catalog
        self._sizes: list[int] = []  # rows of each process in this question
        self._first = 0
        self._visit: Visit

    def at_once(self, k: int) -> int:
        return max(1, ROWS // self._exchange.world)

    def subset(self, batch: Group, ids: Tensor) -> Group:
        starts = torch.searchsorted(ids, ids.new_tensor(self._catalog.offsets)).tolist()
        self._counted = Catalog(starts, ids)
        place = self._exchange.rank
        return batch.among(ids, ids[starts[place] : starts[place + 1]] - self._catalog.offsets[place])

    def turns(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """As many on every process, some of them empty."""
        totals = self._exchange.agree("sample: turns", len(rows))
        for start in range(0, max(totals), size):
            self._first = start
            self._sizes = [min(max(total - start, 0), size) for total in totals]
            yield rows[start : start + size]

    def meet(self, batch: Group) -> None:
        models, counted = (dict(zip(NAMES, (b.teacher, b.student), strict=True)) for b in (batch, batch.counted))
        part = None if batch.subset is None else counted
        self._visit = receive(
            self._exchange, self.steps, self._sizes, self._catalog, models, batch.counted.seen,
            self._counted, part, self._first,
        )  # fmt: skip

    def any(self, rows: Tensor) -> bool:
        """Whether any process has a row to ask for."""
        self._sizes = self._exchange.agree("sample: round", len(rows))
        return any(self._sizes)

    def counts(self, b: Group, rows: Tensor, listed: Tensor, **live: Tensor) -> list[Tensor]:
        asked = self._exchange.gather(torch.cat([rows[:, None], listed], 1).int(), self._sizes).long()
        visit, ids = self._visit.take(asked[:, 0] + self._starts(), self._sizes), asked[:, 1:]
        ties = ids if b.subset is None else torch.searchsorted(b.subset.ids, ids.contiguous())
        return list(visit.counts(visit.scores(ids), ties).unbind(1))

    def full_scores(self, b: Group, rows: Tensor, model: int) -> Tensor:
        """The scores come from all shards to the process of the user: the one question whose traffic is O(N) a row."""
        asked = self._exchange.gather(rows.int(), self._sizes).long()
        return self._visit.take(asked + self._starts(), self._sizes).full_scores(NAMES[model])

    def _starts(self) -> Tensor:
        """[R] where in the visit the users of each asking row's process start."""
        sizes = torch.tensor(self._visit.sizes)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(torch.tensor(self._sizes))
        return starts.to(self._visit.rows.device)
