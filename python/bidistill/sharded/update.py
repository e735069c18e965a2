"""A step of one model whose tables lie on several processes: the gradient of this process's rows of the batch, then the update of
its users and of its items, by the gradients of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdkernels import NonFiniteLoss, apply_rows, distill_loss
from bidistill.config import Config, ModelConfig
from bidistill.errors import UserError
from bidistill.losses import LOSSES
from bidistill.models.base import Tables
from bidistill.sharded.rows import ModelRows
from bidistill.update import FUSED, Batch, Terms, from_torch


class ShardedUpdate:
    """The formula of a step on one process, whose sums are taken over the processes.

    Args:
        tables: this process's shard of the model.
        fuse: False where a negative may be missing.
    """

    def __init__(self, tables: Tables, config: ModelConfig, terms: Terms, *, fuse: bool) -> None:
        self.terms, self.fuse = terms, fuse
        self.optimizer = FUSED[config.optimizer](tables, lr=config.lr)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """One step. The losses are this process's parts of those of the whole batch."""
        rows = batch.rows
        assert rows is not None
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
                losses["distill"] = distill * rows.of_distilled
        ids, received = rows.give_back(grads)
        bias = received[:, width].contiguous()
        apply_rows(
            self.optimizer,
            user_table=(batch.users, users),
            item_table=(ids, received[:, :width].contiguous()),
            item_bias=(ids, bias),
        )
        return losses

    def _lambda(self, rows: ModelRows) -> float:
        """Of the distillation loss of this process's rows: a mean over its own mask, and not over that of the whole batch."""
        return self.terms.lambda_ * rows.of_distilled / rows.of_rows

    def _fused(self, batch: Batch, rows: ModelRows) -> tuple[Tensor, ...]:
        """cf, distill, gradients of user rows [R, d] and of item rows with biases [R, C, d + 1], listed items [R, C]."""
        cf, _, tau_learner, tau_guide = self.terms
        listed = batch.listed(self.fuse)
        try:
            cf_loss, loss, users, items, bias = torch.ops.bdkernels.bd_step(
                self.optimizer.user_table, rows.items, rows.item_bias, batch.users, batch.positives, batch.negatives.ids,
                batch.distill.ids, batch.guide_scores, batch.distill.mask, cf, self._lambda(rows), tau_learner, tau_guide,
            )  # fmt: skip
        except NonFiniteLoss:  # the others wait for gradients: the trainer finds out at the end of the epoch
            d = rows.items.shape[1]
            nan = rows.items.new_full((), torch.nan)
            return nan, nan, nan.repeat(len(batch.users), d), nan.repeat(*listed.shape, d + 1), listed
        return cf_loss, loss, users, torch.cat([items, bias[:, :, None]], 2), listed

    def _eager(self, batch: Batch, rows: ModelRows) -> tuple[Tensor, ...]:
        """The same by autograd, for batches in which a negative may be missing."""
        cf, _, tau_learner, tau_guide = self.terms
        listed = batch.listed(self.fuse)
        users = self.optimizer.user_table[batch.users].requires_grad_()
        items = torch.cat([rows.items, rows.item_bias[:, None]], 1)[listed].requires_grad_()
        with torch.enable_grad():
            scores = torch.einsum("rd,rcd->rc", users, items[:, :, :-1]) + items[:, :, -1]
            m = batch.negatives.ids.shape[1]
            cf_loss = LOSSES[cf](scores[:, 0], scores[:, 1 : 1 + m], batch.negatives.mask)
            loss = distill_loss(scores[:, 1 + m :], batch.guide_scores, tau_learner, tau_guide, batch.distill.mask)
            grads = torch.autograd.grad(cf_loss + self._lambda(rows) * loss, (users, items))
        return cf_loss.detach(), loss.detach(), *grads, listed

    def state(self) -> dict[str, Any]:
        return dict(self.optimizer.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave, or what one process had, which may have used torch.optim."""
        self.optimizer.load_state_dict(state if "step" in state else from_torch(state, self.optimizer))

    def row_kinds(self) -> dict[str, str]:
        return {"user_table": "users", "item_table": "items", "item_bias": "items"}


def check_shardable(config: Config) -> None:
    """Raise UserError where a setting asks for what only one process can do."""
    for name in ("teacher", "student"):
        model: ModelConfig = config[name]
        if model.optimizer not in FUSED:
            raise UserError(
                f"{name}.optimizer {model.optimizer!r} changes every row at every step, which one process can do only:"
                f" choose one of {', '.join(sorted(FUSED))}, or train without torchrun"
            )
        if model.weight_decay:
            raise UserError(
                f"{name}.weight_decay changes every row at every step, which one process can do only:"
                " set it to 0, or train without torchrun"
            )
