"""A step of models whose tables lie on several processes: the rows of the listed items come from their owners, each process
computes the gradient of its rows of the batch, and each then updates its users and its items by the gradients of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import Draws, NonFiniteLoss, score, sparse_step
from bdkernels.ranges import LISTWISE
from bidistill.config import Config, ModelConfig
from bidistill.distill import make_method
from bidistill.distributed.item_rows import Fetched, ModelRows
from bidistill.distributed.partition import Partition
from bidistill.errors import UserError
from bidistill.losses import over_catalog
from bidistill.models import Recommender
from bidistill.models.base import Tables, tables_of
from bidistill.models.given import GIVEN
from bidistill.models.kinds import may_lie_in_parts
from bidistill.optimizers import FUSED
from bidistill.registry import LOSSES
from bidistill.training.fusion import unfused_settings
from bidistill.training.types import Batch, Terms
from bidistill.training.updates import TableUpdate, Update

REMEDIES = {
    "clip_norm": "set it to 0",
    "optimizer": f"choose one of {', '.join(sorted(FUSED))} and leave out such optimizer_args",
}


class ShardedBatch(NamedTuple):
    """This process's rows of a batch, of which users are numbered from its first one and items are numbers of `rows`."""

    batch: Batch
    rows: ModelRows


class Sharded:
    """The `Strategy` for models that lie on several processes."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition

    def check(self, config: Config) -> None:
        """Raise UserError where a setting asks for what only one process can do."""
        method = make_method(config.distill)
        if method is not None and (method.own_loss or not method.divisible):
            raise UserError(
                f"distill.method {config.distill.method!r} works on one process only: choose another, or train without torchrun"
            )
        if method is not None and config.distill.guide != "live":
            raise UserError(
                f"distill.guide {config.distill.guide!r} works on one process only: set it to live, or train without torchrun"
            )
        if config.train.joint != "both":
            raise UserError("train.joint student works on one process only: set it to both, or train without torchrun")
        if config.train.shares_negatives:
            raise UserError(
                f"train.negative_source {config.train.negative_source} works on one process only, whose rows share items: set it"
                " to row, or train without torchrun"
            )
        if method is not None and config.distill.guide_scores != "logits":
            raise UserError(
                "distill.guide_scores shares works on one process only: set it to logits, or train without torchrun"
            )
        if over_catalog(config.train.loss):
            raise UserError(
                f"train.loss {config.train.loss} works on one process only: set it to softmax, or train without torchrun"
            )
        for name in ("teacher", "student"):
            model: ModelConfig = config.model(name)
            if not may_lie_in_parts(model.kind):
                what = "is a module that a program gives" if model.kind == GIVEN else f"has the kind {model.kind!r}"
                raise UserError(
                    f"the {name} {what}, which cannot be divided among several processes (no factory takes ranges of users and"
                    f" items): set {name}.kind to mf, or train without torchrun"
                )
            if reason := unfused_settings(model):
                setting = "clip_norm" if model.clip_norm else "optimizer"
                raise UserError(
                    f"{name}.{setting} works on one process only ({reason}): {REMEDIES[setting]}, or train without torchrun"
                )

        if config.eval.metrics:
            raise UserError(
                f"eval.metrics has {config.eval.metrics[0]}, which is counted over all users on one process only: unset it, and"
                " ask `bidistill evaluate RUN --metrics` when the run is done, or train without torchrun"
            )
        for kind in config.eval.baselines:
            if not may_lie_in_parts(kind):
                raise UserError(
                    f"eval.baselines has {kind}, which works on one process only: leave it out, or train without torchrun"
                )

    def update(self, model: Recommender, config: ModelConfig, terms: Terms, *, fuse: bool) -> Update:
        """Fused but for the exchange of rows and gradients."""
        return ShardedUpdate(model, own_tables(model), config, terms, fuse=fuse)

    def guided(
        self,
        models: Mapping[str, Recommender],
        guides: Mapping[str, Recommender],
        batches: dict[str, Batch],
        rows: int,
        *,
        fuse: bool,
    ) -> Mapping[str, ShardedBatch]:
        """Fetch the rows of the items that the batches list, and let their guides score the distilled ones."""
        part, processes = self.partition, self.partition.processes
        masked = [int(batch.distill.mask.sum()) for batch in batches.values()]
        starts = [processes.range(part.n_items, place).start for place in range(processes.size)]
        listed = {name: batch.listed(fuse) for name, batch in batches.items()}
        offsets = torch.tensor([*starts, part.n_items], device=next(iter(listed.values())).device)
        numbers = [int(processes.asked()), *masked]
        fetched = Fetched(processes.exchange, offsets, listed, numbers, part.items.start)
        stop, *everyones = (sum(column) for column in zip(*fetched.told, strict=True))
        processes.stopping = stop > 0
        of_distilled = {name: c / max(1, total) for name, c, total in zip(batches, masked, everyones, strict=True)}
        tables = {name: own_tables(models[name]) for name in batches}
        own = len(next(iter(batches.values())).users)
        item_rows = fetched.rows(tables, own / rows, of_distilled)
        out = {
            name: batch._replace(
                positives=fetched.number(batch.positives),
                negatives=Draws(fetched.number(batch.negatives.ids), batch.negatives.mask),
                distill=Draws(fetched.number(batch.distill.ids), batch.distill.mask),
            )
            for name, batch in batches.items()
        }
        error: Exception | None = None
        try:
            for name, guide in zip(out, reversed(out), strict=True):
                batch = out[name]
                if len(out) > 1 and batch.distill.ids.numel():
                    factors = item_rows[guide].factors(tables[guide][0][batch.users])
                    out[name] = batch._replace(guide_scores=score(factors, batch.distill.ids))
        except ValueError as found:  # of a score that is not a number
            error = found
        if len(out) > 1:
            processes.exchange.agree("step", error=error)
        return {name: ShardedBatch(batch, item_rows[name]) for name, batch in out.items()}


class ShardedUpdate(TableUpdate):
    """The formula of a step on one process, whose sums are taken over the processes.

    Args:
        tables: this process's shard of the model.
        fuse: False where a negative may be missing.
    """

    def __init__(self, model: Recommender, tables: Tables, config: ModelConfig, terms: Terms, *, fuse: bool) -> None:
        super().__init__(model, tables, config)
        self.terms, self.fuse = terms, fuse

    def __call__(self, given: ShardedBatch, /) -> dict[str, Tensor]:
        """One step. The losses are this process's parts of those of the whole batch."""
        batch, rows = given
        width = rows.items.shape[1]
        grads = rows.items.new_zeros(len(rows.items), width + 1)
        users = rows.items.new_zeros(0, width)
        losses = {"cf": grads.new_zeros(())}
        if batch.distill.ids.shape[1]:
            losses["distill"] = grads.new_zeros(())
        if len(batch.users):
            gradient = self._fused if self.fuse else self._eager
            cf, distill, users, items, listed = gradient(batch, rows)
            grads.index_add_(0, listed.flatten(), items.flatten(0, 1))
            grads *= rows.of_rows
            users = users * rows.of_rows
            losses["cf"] = cf * rows.of_rows
            if "distill" in losses:
                losses["distill"] = distill * self._share(rows)
        ids, received = rows.give_back(grads)
        bias = received[:, width].contiguous()
        sparse_step(
            self.optimizer,
            user_table=(batch.users, users),
            item_table=(ids, received[:, :width].contiguous()),
            item_bias=(ids, bias),
        )
        return losses

    def _share(self, rows: ModelRows) -> float:
        """Of the distillation loss of the whole batch: that of this process's rows is a mean over its own rows or draws."""
        return rows.of_rows if self.terms.distill_kind in LISTWISE else rows.of_distilled

    def _lambda(self, rows: ModelRows) -> float:
        """Of the distillation loss of this process's rows, where that of the rows is multiplied by `of_rows` later."""
        return self.terms.distill_weight * self._share(rows) / rows.of_rows

    def _fused(self, batch: Batch, rows: ModelRows) -> tuple[Tensor, ...]:
        """cf, distill, gradients of user rows [R, d] and of item rows with biases [R, C, d + 1], listed items [R, C]."""
        cf, kind, _, tau_learner, tau_guide, *_ = self.terms
        listed = batch.listed(self.fuse)
        try:
            cf_loss, loss, users, items, bias = torch.ops.bdkernels.fused_gradient(
                self.optimizer.user_table, rows.items, rows.item_bias, batch.users, batch.positives, batch.negatives.ids,
                batch.distill.ids, batch.guide_scores, batch.distill.mask, cf, kind, self._lambda(rows), tau_learner, tau_guide,
            )  # fmt: skip
        except NonFiniteLoss:  # the others wait for gradients: the trainer finds out at the end of the epoch
            d = rows.items.shape[1]
            nan = rows.items.new_full((), torch.nan)
            return nan, nan, nan.repeat(len(batch.users), d), nan.repeat(*listed.shape, d + 1), listed
        return cf_loss, loss, users, torch.cat([items, bias[:, :, None]], 2), listed

    def _eager(self, batch: Batch, rows: ModelRows) -> tuple[Tensor, ...]:
        """The same by autograd, for batches in which a negative may be missing."""
        listed = batch.listed(self.fuse)
        users = self.optimizer.user_table[batch.users].requires_grad_()
        items = torch.cat([rows.items, rows.item_bias[:, None]], 1)[listed].requires_grad_()
        with torch.enable_grad():
            scores = torch.einsum("rd,rcd->rc", users, items[:, :, :-1]) + items[:, :, -1]
            m = batch.negatives.ids.shape[1]
            cf_loss = LOSSES[self.terms.cf](scores[:, 0], scores[:, 1 : 1 + m], batch.negatives.mask)
            loss = self.terms.distill_loss(scores[:, 1 + m :], batch.guide_scores, batch.distill)
            grads = torch.autograd.grad(cf_loss + self._lambda(rows) * loss, (users, items))
        return cf_loss.detach(), loss.detach(), *grads, listed


def own_tables(model: Recommender) -> Tables:
    """This process's rows of the tables. Raises UserError where the model has none."""
    tables = tables_of(model)
    if tables is None:
        raise UserError(
            f"{type(model).__name__} has no tables whose dot product is the whole score, so it cannot lie on several processes:"
            " train without torchrun"
        )
    return tables
