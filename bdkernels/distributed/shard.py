"""What `distributed` computes on one shard for the users of all processes, and what it sends back to each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.backend import Steps
from bdkernels.backends.reference import NO_KEY, check_scores, order_key
from bdkernels.distributed.collectives import Exchange
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen

Models = dict[str, Factors]  # M of them, each under the name that messages give it


class Catalog(NamedTuple):
    """Items by number, those from offsets[r] on with process r."""

    offsets: list[int]
    ids: Tensor | None = None  # [n] int64, what each is called where that is not its number

    def name(self, number: int) -> int:
        return number if self.ids is None else int(self.ids[number])

    def sizes(self) -> list[int]:
        """How many each process has."""
        return [stop - start for start, stop in zip(self.offsets, self.offsets[1:], strict=False)]


class Visit(NamedTuple):
    """The users of all processes, in the order of the ranks, on the items of this one."""

    exchange: Exchange
    steps: Steps
    sizes: list[int]  # users of each process
    rows: Tensor  # [V] int64, which row of its process's batch each of all V users is
    catalog: Catalog  # all items
    models: Models
    counted: Catalog  # those that counts are of: all, or a subset
    counted_models: Models
    seen: Seen | None  # what each user has seen of the counted items that are here

    def take(self, which: Tensor, sizes: list[int]) -> "Visit":
        """The same for some of the users, so many of each process."""
        models, counted = (
            {name: f._replace(user_factors=f.user_factors[which]) for name, f in group.items()}
            for group in (self.models, self.counted_models)
        )
        seen = None if self.seen is None else self.seen.rows(which)
        return self._replace(sizes=sizes, rows=self.rows[which], models=models, counted_models=counted, seen=seen)

    @property
    def first(self) -> int:
        """Number of the first counted item that is here."""
        return self.counted.offsets[self.exchange.rank]

    def scores(self, ids: Tensor) -> Tensor:
        """[B, M, C] float32 scores of this process's users for their ids, given everyone's [V, C].

        The owner of an item computes them. What travels is their bits, as integers, with 0 from the others: the sum is exact,
        and -0.0 and infinities stay what they are.
        """
        start, stop = self.catalog.offsets[self.exchange.rank :][:2]
        owned = (ids >= start) & (ids < stop)
        most = int(owned.sum(1).max()) if owned.numel() else 0
        columns = owned.logical_not().sort(dim=1, stable=True).indices[:, :most]  # a row's own items first
        there, some = owned.gather(1, columns), ids.gather(1, columns)

        def bits(name: str) -> Tensor:
            out = torch.zeros_like(ids, dtype=torch.int32)
            if most:
                scores = self.steps.score(self.models[name], (some - start).clamp(0, stop - start - 1))
                scores = scores.masked_fill(~there, 0.0)
                checks.no_nan_listed(scores, some)
                out.scatter_(1, columns, scores.view(torch.int32))
            return out

        everyones = torch.stack(self.together("scores", self.catalog, bits), 1)
        return self.exchange.back(everyones, self.sizes).sum(0, dtype=torch.int32).view(torch.float32)

    def counts(self, thresholds: Tensor, ties: Tensor) -> Tensor:
        """[B, M, C] int64: how many unseen counted items of all shards come before this process's thresholds [B, M, C], given
        everyone's tie numbers [V, C]."""
        everyones = self.exchange.gather(thresholds, self.sizes).unbind(1)
        limits = dict(zip(self.models, everyones, strict=True))

        def count(name: str) -> Tensor:
            f = self.counted_models[name]
            return self.steps.count_above(f, limits[name], ties, self.seen, self.first) if f.n_items else 0 * ties

        counts = torch.stack(self.together("counts", self.counted, count), 1)
        return self.exchange.back(counts.int(), self.sizes).sum(0)  # a shard's are below 2^31

    def best(self, k: int, width: int) -> Tensor:
        """[V, width] int64 order keys of the best k unseen items that are here, the rest of them reference.NO_KEY."""
        seen = None if self.seen is None else self.seen._replace(indices=self.seen.indices - self.first)

        def keys(name: str) -> Tensor:  # by numbers from 0 here
            f = self.models[name]
            out = self.rows.new_full((len(self.rows), width), NO_KEY)
            if f.n_items:
                scores, ids = self.steps.topk(f, min(k, f.n_items), seen)
                out[:, : ids.shape[1]] = order_key(scores, ids + self.first).masked_fill(ids < 0, NO_KEY)
            return out

        return self.together("topk", self.catalog, keys, first=self.first)[0]

    def full_scores(self, name: str) -> Tensor:
        """[B, n] float32 scores of this process's users for all counted items under one model: O(N) traffic a user."""

        def block(_: str) -> Tensor:
            scores = self.steps.score_block(self.counted_models[name])
            check_scores(scores, self.first)
            return scores

        scores = self.together("full rows", self.counted, block, [name])[0]
        n, widths = self.sizes[self.exchange.rank], self.counted.sizes()
        received = self.exchange.route(
            scores.flatten(), [size * scores.shape[1] for size in self.sizes], [n * width for width in widths]
        )
        parts = received.split([n * width for width in widths])
        return torch.cat([part.view(n, width) for part, width in zip(parts, widths, strict=True)], 1)

    def together(
        self,
        what: str,
        catalog: Catalog,
        compute: Callable[[str], Tensor],
        names: list[str] | None = None,
        first: int = 0,
    ) -> list[Tensor]:
        """What this shard computes for each model, once no shard has failed; errors there number the catalog from `first`.

        A NaN is reported by the names that the caller knows: model, process and row of the user, id of the item.
        """
        found: list[Tensor] = []
        error: Exception | None = None
        try:
            for name in names or list(self.models):
                found.append(compute(name))
        except checks.NaNScore as failed:
            of = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))[failed.row]
            who = f"user row {int(self.rows[failed.row])} of rank {self.exchange.ranks[int(of)]}"
            item = catalog.name(first + failed.item)
            error = ValueError(f"{name}: expected finite scores, got NaN for {who}, item {item}")
        except Exception as failed:
            error = failed
        self.exchange.agree(what, 0, error)
        return found


def receive(
    exchange: Exchange,
    steps: Steps,
    sizes: list[int],
    catalog: Catalog,
    models: Models,
    seen: Seen | None,
    counted: Catalog | None = None,
    counted_models: Models | None = None,
    first_row: int = 0,
) -> Visit:
    """Have everyone's users here, given this process's own, and what they have seen of the counted items; all unless given.

    Args:
        sizes: users of each process.
        seen: by numbers of the counted items; on no process, or on all.
        first_row: row of the batch that each process's first user is.
    """
    everyones = {name: f._replace(user_factors=exchange.gather(f.user_factors, sizes)) for name, f in models.items()}
    device = next(iter(models.values())).user_factors.device
    rows = torch.cat([torch.arange(first_row, first_row + n, device=device) for n in sizes])
    part = everyones
    if counted_models is not None:
        part = {name: f._replace(user_factors=everyones[name].user_factors) for name, f in counted_models.items()}
    counted = counted or catalog
    here = None if seen is None else _send_seen(exchange, seen, sizes, counted.offsets)
    return Visit(exchange, steps, sizes, rows, catalog, everyones, counted, part, here)


def _send_seen(exchange: Exchange, seen: Seen, sizes: list[int], offsets: list[int]) -> Seen:
    """Everyone's rows of what lies here: each id goes to the shard of its item, and to no other."""
    n, stops = sizes[exchange.rank], seen.indices.new_tensor(offsets[1:])
    shard = torch.searchsorted(stops, seen.indices.contiguous(), right=True)
    order = shard.sort(stable=True).indices  # by shard, then as they were: by user and id
    counts = torch.bincount(shard * n + seen.row_of_each(), minlength=exchange.world * n).view(exchange.world, n)
    received = exchange.route(counts.flatten().int(), [n] * exchange.world, sizes).long()
    split = [int(part.sum()) for part in received.split(sizes)]
    ids = exchange.route(seen.indices[order].int(), counts.sum(1).tolist(), split)
    indptr = received.new_zeros(len(received) + 1)
    torch.cumsum(received, 0, out=indptr[1:])
    return Seen(indptr, ids.long())
