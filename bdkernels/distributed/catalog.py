"""The operators on a catalog whose items lie on several processes: under torchrun, over gloo on CPUs and NCCL on GPUs.

Checked with gloo; NCCL has not been run.

Counts add up over any partition of the items, so a rank over all of them is one plus the sum of the shards' counts. The users'
factors go to every shard, each counts over its own items, and the counts come back: a call moves O(B (C + d)) numbers and the
seen ids, whatever the number of items.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import precision, reference
from bdkernels.backends.backend import Steps
from bdkernels.distributed.collectives import Exchange, ShardError
from bdkernels.distributed.sampler import ShardedItems
from bdkernels.distributed.shard import Catalog, Models, Visit, receive
from bdkernels.functional import Samples, TopK, _codes, _detach, _name, _pair, _samples, _subset, _tensor
from bdkernels.ops.define import stages
from bdkernels.sampling import keys, sampler
from bdkernels.sampling.subset import among, counted_items, items_of, scaled, seen_among
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen
from bdkernels.version import __version__
from bdkernels.weights import Exp, Tanh, Weight

__all__ = ["ShardError", "ShardedCatalog"]
Settings = dict[str, object]


@contextmanager
def _exact() -> Iterator[None]:
    """As the operators run: no gradient, no autocast; and what is wrong is known at once, on a GPU too."""
    with torch.no_grad(), torch._C._DisableAutocast(), checks.asked():
        yield


class ShardedCatalog:
    """A catalog whose item rows lie on several processes: process r holds rows [offsets[r], offsets[r + 1]).

    The methods are the functions of the same names, and give the same bits as those on one process: `factors.item_factors` and
    `factors.item_bias` are this process's shard, all ids are those of the whole catalog. The users are this process's own, B of
    them, which may be another number on each, or none, and so are their `seen` rows; the results are theirs.

    Every method, and the constructor, is a collective: all processes of the group call it, with the same settings (C, k, d,
    dtype, seed and so on). An error on one process is an error on all: a ValueError that names the rank, also where the settings
    differ. Nothing hangs: a process that is gone, or slower than the group's time-out, gives a `ShardError` on the others. The
    time-out is what `torch.distributed.init_process_group(timeout=...)` or `new_group` was given (gloo: 30 minutes if nothing).
    The error names those that did not answer, if the store of the group can still be reached; after it this object is of no more
    use. Where NCCL carries the tensors, its watchdog may end the process instead.

    Attributes:
        group_rank: this process's place in the group.
        world: number of processes.
        offsets: world + 1 numbers, where each shard starts.
        n_items: N, items in the whole catalog, fewer than 2^31.
        item_offset: id of this shard's first item.
        slice: this process's rows of the whole catalog.
    """

    def __init__(self, n_local: int, *, group: "dist.ProcessGroup | None" = None) -> None:
        """
        Args:
            n_local: items on this process, which may be none.
            group: of the processes; the default group unless given.

        Raises:
            RuntimeError: torch.distributed has no process group.
            ValueError: n_local is negative, the catalog has 2^31 items or more, this process is not of the group, or the
                processes have other releases of bdkernels or torch.
        """
        self._exchange = Exchange(group)
        error: Exception | None = None
        try:
            checks.int64("n_local", n_local)
            checks.integer("n_local", n_local, 0, checks.MAX_ITEMS - 1)
        except (TypeError, ValueError) as found:
            n_local, error = 0, found
        counts = self._exchange.agree(
            "ShardedCatalog", int(n_local), error, bdkernels=__version__, torch=torch.__version__
        )
        self.group_rank, self.world = self._exchange.rank, self._exchange.world
        self.offsets = [0, *accumulate(counts)]
        self.n_items = self.offsets[-1]
        checks.integer("number of items", self.n_items, 0, checks.MAX_ITEMS - 1)
        self.item_offset = self.offsets[self.group_rank]
        self._catalog = Catalog(self.offsets)
        self.slice = slice(self.item_offset, self.offsets[self.group_rank + 1])

    @property
    def traffic(self) -> int:
        """Bytes that this process has sent in collectives since the start, its own part of the results included. What all gather
        counts once for each process, and a sum of all twice, as in a ring.
        """
        return self._exchange.traffic

    @_exact()
    def score(self, factors: Factors, ids: Tensor, *, backend: str | None = None) -> Tensor:
        """[B, C] float32 scores of the listed items, ids [B, C] int64 in [0, N); see `bdkernels.score`."""
        visit = self._open("score", {"factors": factors}, None, backend, lambda: self._check_ids(factors, ids))
        found = visit.own_scores(self._exchange.gather(ids.int(), visit.sizes).long())[:, 0]
        visit.agree("scores")
        return found

    @_exact()
    def rank(self, factors: Factors, ids: Tensor, seen: Seen | None = None, *, backend: str | None = None) -> Tensor:
        """[B, C] int64 exact ranks of the listed items over all shards, 1 = best; see `bdkernels.rank`."""
        visit = self._open("rank", {"factors": factors}, seen, backend, lambda: self._check_ids(factors, ids))
        everyones = self._exchange.gather(ids.int(), visit.sizes).long()
        counts = visit.counts(visit.scores(everyones), everyones)[:, 0]
        visit.agree("counts")
        return 1 + counts

    @_exact()
    def count_above(
        self,
        factors: Factors,
        thresholds: Tensor,
        tie_ids: Tensor,
        seen: Seen | None = None,
        *,
        backend: str | None = None,
    ) -> Tensor:
        """[B, C] int64: how many unseen items of all shards come before each threshold; see `bdkernels.count_above`."""

        def check() -> Settings:
            limits, ties = _tensor("thresholds", thresholds), _tensor("tie_ids", tie_ids)
            checks.thresholds(len(factors.user_factors), 0, limits, ties, 0, factors.user_factors.device)
            checks.no_nan("thresholds", limits)
            return {"C": ties.shape[1]}

        visit = self._open("count_above", {"factors": factors}, seen, backend, check)
        ties = tie_ids.clamp(0, self.n_items).int()  # beyond every id they are all the same
        everyones = (self._exchange.gather(t, visit.sizes) for t in (thresholds[:, None], ties))
        counts = visit.counts(next(everyones), next(everyones).long())[:, 0]
        visit.agree("counts")
        return counts

    @_exact()
    def topk(self, factors: Factors, k: int, seen: Seen | None = None, *, backend: str | None = None) -> TopK:
        """The k best unseen items of each user over all shards, k from 1 to N, by global id; see `bdkernels.topk`."""

        def check() -> Settings:
            checks.int64("k", k)
            checks.integer("k", k, 1, self.n_items)
            return {"k": k}

        visit = self._open("topk", {"factors": factors}, seen, backend, check)
        width = min(k, max(visit.catalog.sizes()))  # of any shard's best
        parts = self._exchange.back(visit.best(k, width), visit.sizes)  # [world, B, width]
        visit.agree("topk")
        return TopK(*reference.listed_keys(parts.movedim(0, 1).flatten(1).topk(k, dim=1).values))

    @_exact()
    def sample(
        self,
        teacher: Factors,
        student: Factors,
        k: int,
        seen: Seen | None = None,
        *,
        to_student: Weight | None = Tanh(),  # noqa: B008 (immutable)
        to_teacher: Weight | None = Exp(),  # noqa: B008
        user_ids: Tensor,
        step: int,
        seed: int = 0,
        occurrence: Tensor | None = None,
        independent_directions: bool = False,
        subset: int | Tensor | None = None,
        backend: str | None = None,
    ) -> Samples:
        """Items by the discrepancy of their ranks over all shards, the same draws as on one process; see `bdkernels.sample`.

        A round of proposals moves O(B C) numbers, like `rank`, in four collectives, of which the host waits for one. Users whose
        weights are so peaked that proposals are hardly ever accepted draw from a full row, and only for these does the traffic
        grow with the catalog: O(N) scores of both models.

        Args:
            teacher, student: user_factors [B, d], this process's; item_factors [n, d] and item_bias [n], this process's shard.
            user_ids, occurrence: [B], of this process's users. Number the occurrences over the batch of all processes where a
                user may be on several of them.
            k, seen, to_student, to_teacher, step, seed, independent_directions, subset, backend: see `bdkernels.sample`; all
                but `seen` and `backend` are the same on every process.
        """
        models = {"teacher": teacher, "student": student}

        def check() -> Settings:
            n_rows, device = len(teacher.user_factors), teacher.user_factors.device
            checks.tensor("student.user_factors", student.user_factors, (n_rows, "d"), checks.FLOATS, device)
            checks.integer("number of items", self.n_items, 1)
            own = {"user_ids": user_ids} | ({} if occurrence is None else {"occurrence": occurrence})
            for name, each in own.items():
                checks.tensor(name, _tensor(name, each), (n_rows,), (torch.int64,), device)
            keys.of_rows(user_ids, occurrence)
            checks.instance("independent_directions", independent_directions, bool)
            codes = _codes(k, seed, step, (to_student, to_teacher), self.n_items)
            m, given = _subset(subset, self.n_items)
            checks.sample(k, step, m, self.n_items, codes)
            if given is not None:
                checks.tensor("subset", given, ("m",), (torch.int64,), device)
                checks.own_rising_ids("subset", given, self.n_items)
            asked: Settings = {
                "k": int(k),
                "seed": int(seed),
                "step": int(step),
                "to_student": codes[0],
                "to_teacher": codes[1],
            }
            asked["independent_directions"] = independent_directions
            return asked | {"subset": m if given is None else given.tolist()}

        steps, own, rows, _ = self._agree("sample", models, seen, backend, check)
        codes = _codes(k, seed, step, (to_student, to_teacher), self.n_items)
        m, given = _subset(subset, self.n_items)
        counted = items_of(self.n_items, m, int(seed), int(step)) if given is None else given
        items = ShardedItems(self._exchange, steps, self._catalog)
        t, s = own["teacher"], own["student"]
        row_keys = keys.of_rows(user_ids, occurrence)
        drawn = sampler.sample(
            steps, t, s, int(k), rows, codes, int(seed), int(step), row_keys, counted, items, independent_directions
        )
        return _samples(drawn, codes)

    def rank_errors(
        self,
        factors: Factors,
        ids: Tensor,
        subset: int | Tensor,
        seen: Seen | None = None,
        *,
        seed: int = 0,
        step: int = 0,
    ) -> Tensor:
        """[B, C] float64: how far the ranks that `sample(subset=...)` estimates are off; see `bdkernels.rank_errors`."""
        exact, limits = self.rank(factors, ids, seen), self.score(factors, ids)
        counted = counted_items(self.n_items, subset, seed, step)
        here = counted[(counted >= self.slice.start) & (counted < self.slice.stop)] - self.item_offset
        counted, here = counted.to(ids.device), here.to(ids.device)
        few = ShardedCatalog(len(here), group=self._exchange.group)
        some = None if seen is None else seen_among(seen, counted)
        ties = torch.searchsorted(counted, ids.contiguous())
        counts = few.count_above(among(factors, here), limits, ties, some)
        unseen, unseen_counted = (
            reference.candidate_counts(n, len(ids), rows, ids.device)[:, None]
            for n, rows in ((self.n_items, seen), (len(counted), some))
        )
        return (scaled(counts, unseen, unseen_counted) - exact).abs() / unseen.clamp(min=1).double()

    def _open(
        self, what: str, models: Models, seen: Seen | None, backend: str | None, check: Callable[[], Settings]
    ) -> Visit:
        """Look at this process's arguments, agree on them with the others, and have everyone's users here."""
        steps, own, rows, sizes = self._agree(what, models, seen, backend, check)
        return receive(self._exchange, steps, sizes, self._catalog, own, rows)

    def _agree(
        self, what: str, models: Models, seen: Seen | None, backend: str | None, check: Callable[[], Settings]
    ) -> tuple[Steps, Models, Seen | None, list[int]]:
        """Backend, factors and seen rows of this process, and how many users each has; once all have the same settings.

        Seen rows are empty ones where only another process has some.
        """
        value = 0
        settings: Settings = {}
        error: Exception | None = None
        try:
            own = {name: Factors(*_detach(f, name)) for name, f in models.items()}
            users = next(iter(own.values())).user_factors
            for name, f in own.items():
                settings |= self._check_factors("" if name == "factors" else f"{name}.", f)
            rows = None if seen is None else Seen(*_pair(seen))
            checks.seen(rows, len(users), users.device)
            rows = checks.own_seen(rows, self.n_items)
            settings |= {"device": users.device.type, "precision": precision.asked()} | check()
            # How many rows go at once is agreed with the others, not chosen by who is left or how the tables lie here.
            steps = stages(_name(backend), *own.values())._replace(queued=False, few_rounds=False)
            value = 2 * len(users) + (rows is not None)
        except Exception as found:
            error = found
        values = self._exchange.agree(what, value, error, **settings)
        if rows is None and any(v % 2 for v in values):
            nothing = torch.zeros(len(users) + 1, dtype=torch.int64, device=users.device)
            rows = Seen(nothing, nothing[:0])
        return steps, own, rows, [v // 2 for v in values]

    def _check_factors(self, prefix: str, f: Factors) -> Settings:
        n_local = self.slice.stop - self.slice.start
        checks.tensor(f"{prefix}item_factors", f.item_factors, (n_local, "d"), checks.FLOATS, f.user_factors.device)
        checks.factors(f, prefix)
        bias = "none" if f.item_bias is None else "given"
        return {
            f"{prefix}d": f.user_factors.shape[1],
            f"{prefix}dtype": f.user_factors.dtype,
            f"{prefix}item_bias": bias,
        }

    def _check_ids(self, factors: Factors, ids: Tensor) -> Settings:
        checks.tensor(
            "ids", _tensor("ids", ids), (len(factors.user_factors), "C"), (torch.int64,), factors.user_factors.device
        )
        checks.ids_values("ids", ids, self.n_items)
        return {"C": ids.shape[1]}
