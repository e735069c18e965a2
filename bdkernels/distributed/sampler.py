"""The sampler's rounds when the items lie on several processes: all go through them together, each for its own users.

A process without an open row takes part with none, and the rounds end when no process has one. The users of a turn and their seen
rows are sent once. A round is four collectives, on the device of the rows:

1. all_to_all of a few numbers: how many rows each process has open, and what failed anywhere in the round before. The host reads
   the answers, the one time in a round that it waits for the device.
2. all_gather of what is asked: R (C + 1) int32 from a process with R open rows and C proposals each.
3. all_reduce of the scores of what is asked, as every shard needs them to count: 2 C int32 for each open row of all processes.
4. all_to_all of the counts: as many, to the process that asked.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bdkernels.backends.backend import Steps
from bdkernels.distributed.collectives import VALUES, Exchange
from bdkernels.distributed.shard import Catalog, Failures, Visit, receive
from bdkernels.sampling.sampler import ROWS, Group, Items

NAMES = ("teacher", "student")
MOST_ROWS = 16 << 10  # in flight over all processes: each holds all of them, which bounds its scratch memory


class ShardedItems(Items):
    """`sampler.Items` whose every question is a collective; the tables of a batch are this process's shard.

    A shard counts for all processes at once: every process has ROWS users in flight, so a round's rows grow with the number of
    processes, up to MOST_ROWS. In a round a process holds about 100 bytes for each of these rows and each of at most 256
    proposals: 27 MB for each process of the group, and no more than 430 MB.
    """

    def __init__(self, exchange: Exchange, steps: Steps, catalog: Catalog) -> None:
        super().__init__(steps, catalog.offsets[-1])
        self._exchange, self._catalog, self._counted = exchange, catalog, catalog
        self._failures = Failures()
        self._sizes: list[int] = []  # rows of each process in this question
        self._seen_counts: Tensor | None = None  # [B] int64, seen items of this process's users
        self._nnz = 0, 0  # seen items of the asking rows: of this process's users, and on this process
        self._first = 0
        self._visit: Visit

    def at_once(self, k: int) -> int:
        return max(1, min(ROWS, MOST_ROWS // self._exchange.world))

    def subset(self, batch: Group, ids: Tensor) -> Group:
        starts = torch.searchsorted(ids, ids.new_tensor(self._catalog.offsets)).tolist()
        self._counted = Catalog(starts, ids)
        place = self._exchange.rank
        return batch.among(ids, ids[starts[place] : starts[place + 1]] - self._catalog.offsets[place])

    def turns(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """As many on every process, some of them empty."""
        totals = self._exchange.agree("sample: turns", len(rows), self._failures.take())
        for start in range(0, max(totals), size):
            self._first = start
            self._sizes = [min(max(total - start, 0), size) for total in totals]
            yield rows[start : start + size]

    def meet(self, batch: Group) -> None:
        models, counted = (dict(zip(NAMES, (b.teacher, b.student), strict=True)) for b in (batch, batch.counted))
        part = None if batch.subset is None else counted
        self._seen_counts = None if batch.seen is None else batch.seen.counts()
        self._visit = receive(
            self._exchange, self.steps, self._sizes, self._catalog, models, batch.counted.seen,
            self._counted, part, self._first, self._failures,
        )  # fmt: skip

    def open(self, is_open: Tensor) -> Tensor:
        """The host learns how many there are with what the other processes have, in one answer."""
        own, there = self._seen_counts, self._visit.sent
        numbers = torch.zeros(self._exchange.world, VALUES, dtype=torch.int64, device=is_open.device)
        numbers[:, 0] = is_open.sum()
        if own is not None:
            numbers[:, 1] = (own * is_open).sum()
        if there is not None:
            numbers[:, 2] = (there * is_open).sum(1)
        failed = self._failures.code(is_open.device)
        told = self._exchange.ask("sample: round", numbers, failed, self._failures.take)
        self._failures.clear()
        self._sizes = [row[0] for row in told]
        place = self._exchange.rank
        self._nnz = told[place][1], sum(row[2] for row in told)
        return is_open.logical_not().sort(stable=True).indices[: self._sizes[place]]

    def any(self, rows: Tensor) -> bool:
        """Whether any process has a row to ask for."""
        return any(self._sizes)

    def take(self, batch: Group, rows: Tensor) -> Group:
        if batch.subset is not None:  # whose seen rows are with the shards
            part = batch.subset.batch._replace(seen=None)
            batch = batch._replace(subset=batch.subset._replace(batch=part))
        return batch.take(rows, self._nnz[0])

    def counts(self, b: Group, rows: Tensor, listed: Tensor, **live: Tensor) -> list[Tensor]:
        visit, asked = self._ask(torch.cat([rows[:, None], listed], 1), self._nnz[1])
        ids = asked[:, 1:]
        ties = ids if b.subset is None else torch.searchsorted(b.subset.ids, ids.contiguous())
        return list(visit.counts(visit.scores(ids), ties).unbind(1))

    def full_scores(self, b: Group, rows: Tensor, model: int) -> Tensor:
        """The scores come from all shards to the process of the user: the one question whose traffic is O(N) a row."""
        visit, _ = self._ask(rows[:, None])
        return visit.full_scores(NAMES[model])

    def _ask(self, asked: Tensor, nnz: int | None = None) -> tuple[Visit, Tensor]:
        """The asking users of all processes, and what they ask [V, ...], of which the first column is their rows."""
        everyones = self._exchange.gather(asked.int(), self._sizes).long()
        firsts = [sum(self._visit.sizes[:place]) for place in range(self._exchange.world)]  # user of each process
        starts = torch.repeat_interleave(
            asked.new_tensor(firsts), asked.new_tensor(self._sizes), output_size=len(everyones)
        )
        return self._visit.take(everyones[:, 0] + starts, self._sizes, nnz), everyones
