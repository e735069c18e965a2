"""What `distributed` computes on one shard for the users of all processes, and what it sends back to each."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.backend import Steps
from bdkernels.backends.reference import NO_KEY, check_scores, order_key
from bdkernels.distributed.collectives import Exchange, code_of
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


class Failures:
    """What has failed on this process since all processes last agreed.

    A process that fails goes on, with zeros for what it could not compute: nobody waits for it, and the next agreement tells all.
    Whether there was a NaN, only the device knows until then.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._doubts: list[tuple[Tensor, Callable[[], Exception]]] = []

    def add(self, error: Exception) -> None:
        """An error that is known; the first one counts."""
        self._error = self._error or error

    def doubt(self, holds: Tensor | bool, error: Callable[[], Exception]) -> None:
        """A check that nobody has asked for yet."""
        if isinstance(holds, Tensor):
            self._doubts.append((holds, error))
        elif not holds:
            self.add(error())

    def code(self, device: torch.device) -> Tensor:
        """int64 [] on the device: `code_of` the failure."""
        if self._error is not None or not self._doubts:
            return torch.full((), code_of(self._error), dtype=torch.int64, device=device)
        return torch.stack([holds for holds, _ in self._doubts]).all().logical_not().long()

    def take(self) -> Exception | None:
        """The error to tell of, for which the host may have to wait for the device; none is left."""
        error = self._error or next((error() for holds, error in self._doubts if not holds), None)
        self.clear()
        return error

    def clear(self) -> None:
        """All have agreed that nothing has failed."""
        self._error, self._doubts = None, []


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
    sent: Tensor | None  # [world, B] int64, how many seen items of each of this process's users are on each process
    failures: Failures

    def take(self, which: Tensor, sizes: list[int], nnz: int | None = None) -> "Visit":
        """The same for some of the users, so many of each process; nnz: their seen items that are here, where that is known."""
        models, counted = (
            {name: f._replace(user_factors=f.user_factors[which]) for name, f in group.items()}
            for group in (self.models, self.counted_models)
        )
        seen = None if self.seen is None else self.seen.rows(which, nnz)
        return self._replace(sizes=sizes, rows=self.rows[which], models=models, counted_models=counted, seen=seen)

    @property
    def first(self) -> int:
        """Number of the first counted item that is here."""
        return self.counted.offsets[self.exchange.rank]

    def scores(self, ids: Tensor) -> Tensor:
        """[V, M, C] float32 scores of everyone's users for their ids [V, C]."""
        return self.exchange.sum(self.owned(ids)).view(torch.float32)

    def own_scores(self, ids: Tensor) -> Tensor:
        """[B, M, C] float32 scores of this process's users for their ids, given everyone's [V, C]."""
        everyones = self.exchange.back(self.owned(ids), self.sizes)
        return everyones.sum(0, dtype=torch.int32).view(torch.float32)

    def owned(self, ids: Tensor) -> Tensor:
        """[V, M, C] int32 bits of the scores of those ids that are here, 0 for the others: as integers the sum over all shards is
        exact, and -0.0 and infinities stay what they are.
        """
        start, stop = self.catalog.offsets[self.exchange.rank :][:2]
        owned = (ids >= start) & (ids < stop)
        columns, some, there = None, ids, owned
        # Where to ask how many are here would wait for the device, all are scored.
        if ids.device.type not in checks.ASSERTS:
            most = int(owned.sum(1).max()) if owned.numel() else 0
            columns = owned.logical_not().sort(dim=1, stable=True).indices[:, :most]  # a row's own items first
            some, there = ids.gather(1, columns), owned.gather(1, columns)

        def bits(name: str) -> Tensor:
            if stop == start or not some.numel():
                return none()
            scores = self.steps.score(self.models[name], (some - start).clamp(0, stop - start - 1))
            scores = scores.masked_fill(~there, 0.0)
            checks.no_nan_listed(scores, some)
            found = scores.nan_to_num(0.0, torch.inf, -torch.inf).view(torch.int32)
            return found if columns is None else none().scatter_(1, columns, found)

        def none() -> Tensor:
            return torch.zeros_like(ids, dtype=torch.int32)

        return torch.stack([self.attempt(name, bits, none) for name in self.models], 1)

    def counts(self, thresholds: Tensor, ties: Tensor) -> Tensor:
        """[B, M, C] int64: how many unseen counted items of all shards come before the thresholds of this process's users, given
        everyone's thresholds [V, M, C] and tie numbers [V, C].
        """
        limits = dict(zip(self.models, thresholds.unbind(1), strict=True))

        def count(name: str) -> Tensor:
            f = self.counted_models[name]
            return self.steps.count_above(f, limits[name], ties, self.seen, self.first) if f.n_items else none()

        def none() -> Tensor:
            return torch.zeros_like(ties)

        counts = torch.stack([self.attempt(name, count, none, self.counted) for name in self.models], 1)
        return self.exchange.back(counts.int(), self.sizes).sum(0)  # a shard's are below 2^31

    def best(self, k: int, width: int) -> Tensor:
        """[V, width] int64 order keys of the best k unseen items that are here, the rest of them reference.NO_KEY."""
        seen = None if self.seen is None else self.seen._replace(indices=self.seen.indices - self.first)

        def none() -> Tensor:
            return self.rows.new_full((len(self.rows), width), NO_KEY)

        def keys(name: str) -> Tensor:  # by numbers from 0 here
            f = self.models[name]
            if not f.n_items:
                return none()
            scores, ids = self.steps.topk(f, min(k, f.n_items), seen)
            found = order_key(scores, ids + self.first).masked_fill(ids < 0, NO_KEY)
            return torch.cat([found, none()[:, found.shape[1] :]], 1)

        return self.attempt(next(iter(self.models)), keys, none, first=self.first)

    def full_scores(self, name: str) -> Tensor:
        """[B, n] float32 scores of this process's users for all counted items under one model: O(N) traffic a user."""
        f = self.counted_models[name]

        def block(name: str) -> Tensor:
            scores = self.steps.score_block(f)
            check_scores(scores, self.first)
            return scores

        def none() -> Tensor:
            return torch.zeros(len(self.rows), f.n_items, device=self.rows.device)

        scores = self.attempt(name, block, none, self.counted)
        n, widths = self.sizes[self.exchange.rank], self.counted.sizes()
        received = self.exchange.route(
            scores.flatten(), [size * scores.shape[1] for size in self.sizes], [n * width for width in widths]
        )
        self.agree("full rows")
        parts = received.split([n * width for width in widths])
        return torch.cat([part.view(n, width) for part, width in zip(parts, widths, strict=True)], 1)

    def attempt(
        self,
        name: str,
        compute: Callable[[str], Tensor],
        otherwise: Callable[[], Tensor],
        catalog: Catalog | None = None,
        first: int = 0,
    ) -> Tensor:
        """What this shard computes for a model, or something else where that fails, which the next agreement tells. Errors in
        `compute` number the catalog, that of all items unless given, from `first`.
        """
        named = partial(self._named, name, catalog or self.catalog, first)

        def error(nan: Callable[[], checks.NaNScore]) -> Exception:
            return named(nan())

        with checks.later() as doubts:
            try:
                return compute(name)
            except checks.NaNScore as found:
                self.failures.add(named(found))
            except Exception as found:
                self.failures.add(found)
            finally:
                for holds, nan in doubts:
                    self.failures.doubt(holds, partial(error, nan))
        return otherwise()

    def _named(self, model: str, catalog: Catalog, first: int, nan: checks.NaNScore) -> ValueError:
        """A NaN by the names that the caller knows: model, process and row of the user, id of the item."""
        of = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))[nan.row]
        who = f"user row {int(self.rows[nan.row])} of rank {self.exchange.ranks[int(of)]}"
        return ValueError(f"{model}: expected finite scores, got NaN for {who}, item {catalog.name(first + nan.item)}")

    def agree(self, what: str) -> None:
        """Raise on every process what has failed on one."""
        self.exchange.agree(what, 0, self.failures.take())


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
    failures: Failures | None = None,
) -> Visit:
    """Have everyone's users here, given this process's own, and what they have seen of the counted items; all unless given.

    Args:
        sizes: users of each process.
        seen: by numbers of the counted items; on no process, or on all.
        first_row: row of the batch that each process's first user is.
        failures: where failures of this process are kept until the next agreement.
    """
    everyones = {name: f._replace(user_factors=exchange.gather(f.user_factors, sizes)) for name, f in models.items()}
    device = next(iter(models.values())).user_factors.device
    rows = torch.cat([torch.arange(first_row, first_row + n, device=device) for n in sizes])
    part = everyones
    if counted_models is not None:
        part = {name: f._replace(user_factors=everyones[name].user_factors) for name, f in counted_models.items()}
    counted = counted or catalog
    here, sent = (None, None) if seen is None else _send_seen(exchange, seen, sizes, counted.offsets)
    failures = failures or Failures()
    return Visit(exchange, steps, sizes, rows, catalog, everyones, counted, part, here, sent, failures)


def _send_seen(exchange: Exchange, seen: Seen, sizes: list[int], offsets: list[int]) -> tuple[Seen, Tensor]:
    """Everyone's rows of what lies here, and how many ids [world, n] were sent where: each to the shard of its item alone."""
    n, stops = sizes[exchange.rank], seen.indices.new_tensor(offsets[1:])
    shard = torch.searchsorted(stops, seen.indices.contiguous(), right=True)
    order = shard.sort(stable=True).indices  # by shard, then as they were: by user and id
    counts = torch.bincount(shard * n + seen.row_of_each(), minlength=exchange.world * n).view(exchange.world, n)
    received = exchange.route(counts.flatten().int(), [n] * exchange.world, sizes).long()
    split = [int(part.sum()) for part in received.split(sizes)]
    ids = exchange.route(seen.indices[order].int(), counts.sum(1).tolist(), split)
    indptr = received.new_zeros(len(received) + 1)
    torch.cumsum(received, 0, out=indptr[1:])
    return Seen(indptr, ids.long()), counts
