"""Optimizers that change only the rows that a step touches, for `fused_step`, which applies them in the call of the loss.

Repeats of a row in a batch are summed, then the rule is applied to the row once, as torch.optim does with sparse gradients:
    SGD       row -= lr * g
    Adagrad   sum += g^2;  row -= lr * g / (sqrt(sum) + eps)                        Duchi, Hazan, Singer, JMLR 2011
    SparseAdam  m, v as exponential averages of g and g^2;  row -= lr_t * m / (sqrt(v) + eps)
              lr_t = lr * sqrt(1 - beta2^t) / (1 - beta1^t)                         Kingma and Ba, ICLR 2015, section 2
where g is the gradient plus weight_decay * row, and t counts steps, not visits of a row: that is torch.optim.SparseAdam.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdkernels import checks, ranges
from bdkernels.storage import mapped
from bdkernels.storage.pages import large_pages

RULES = ("sgd", "adagrad", "adam")  # the index is how many state tensors a table has


class Rule(NamedTuple):
    """What one step does to a touched row; of "adam" lr is lr_t. Unused numbers are 0."""

    kind: str
    lr: float
    weight_decay: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0


class RowOptimizer:
    """What the three rules share: the tables of one learner, and the state of each row, allocated once.

    Args:
        tables: user_table [U, d], item_table [N, d] and item_bias [N] or None, float32 or float64, of one dtype and device:
            what `fused_loss` takes. Rows may be strided, columns not. They are changed in place, so no two of them may have a
            number in common. Those of 16 MB and more on
            a CPU, and their state, are put on large pages where Linux has them (see `pages`).
        lr: learning rate, 0 or in the normal range of float32; the attribute may be changed between steps.
        weight_decay: weight_decay * row is added to the gradient of the touched rows; the same range.

    Attributes:
        step: how many steps were taken.
        state: tensors of the rule, shaped like the tables: those of the user table, the item table, the bias.
    """

    kind = ""
    names: tuple[str, ...] = ()

    def __init__(
        self, tables: Sequence[Tensor | None], lr: float, weight_decay: float = 0.0, *, initial: float = 0.0
    ) -> None:
        user_table, item_table, self.item_bias = (*tables, None) if len(tables) == 2 else tables
        if user_table is None or item_table is None:
            raise ValueError("tables: expected user_table, item_table and item_bias or None, got None for a table")
        self.user_table, self.item_table = user_table, item_table
        checks.tables(user_table, item_table, self.item_bias)
        checks.in_place(user_table, item_table, self.item_bias)
        mapped.trainable(user_table, item_table, self.item_bias)
        checks.own_memory(self.tables())
        checks.within("weight_decay", weight_decay, ranges.WEIGHT_DECAY)
        self.lr, self.weight_decay, self.step = lr, weight_decay, 0
        self.state = [
            large_pages(torch.empty_like(table, requires_grad=False, memory_format=torch.contiguous_format)).fill_(
                initial
            )
            for table in map(large_pages, self.tables().values())
            for _ in self.names
        ]

    def rule(self) -> Rule:
        """The rule of the step `step`."""
        checks.within("lr", self.lr, ranges.LR)
        return Rule(self.kind, float(self.lr), self.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and the state tensors by name, not copied; settings and tables are the caller's to keep."""
        return {"step": self.step, **self._named()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy what `state_dict` gave into the state. Raises ValueError where it belongs to another rule or other tables."""
        named = self._named()
        if set(state_dict) != {"step", *named}:
            raise ValueError(f"state_dict: expected keys {sorted({'step', *named})}, got {sorted(state_dict)}")
        checks.integer("state_dict: step", state_dict["step"], 0)
        for name, tensor in named.items():
            checks.like(f"state_dict: {name}", state_dict[name], tensor)
        for name, tensor in named.items():
            tensor.copy_(state_dict[name])
        self.step = int(state_dict["step"])

    def tables(self) -> dict[str, Tensor]:
        """The tables by name, without a bias where there is none."""
        tables = {"user_table": self.user_table, "item_table": self.item_table, "item_bias": self.item_bias}
        return {name: table for name, table in tables.items() if table is not None}

    def _named(self) -> dict[str, Tensor]:
        names = [f"{table}.{name}" for table in self.tables() for name in self.names]
        return dict(zip(names, self.state, strict=True))


class SGD(RowOptimizer):
    """Stochastic gradient descent without momentum: torch.optim.SGD on the touched rows. Arguments: see `RowOptimizer`."""

    kind = "sgd"

    def __init__(self, tables: Sequence[Tensor | None], lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(tables, lr, weight_decay)


class Adagrad(RowOptimizer):
    """Adagrad: torch.optim.Adagrad on sparse gradients.

    Args:
        tables, lr, weight_decay: see `RowOptimizer`.
        eps: added to the root; > 0, in the normal range of float32.
        initial_accumulator_value: where each sum of squares starts, >= 0.
    """

    kind, names = "adagrad", ("sum",)

    def __init__(
        self,
        tables: Sequence[Tensor | None],
        lr: float = 1e-2,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        checks.within("eps", eps, ranges.EPS)
        checks.within("initial_accumulator_value", initial_accumulator_value, ranges.ACCUMULATOR)
        super().__init__(tables, lr, weight_decay, initial=initial_accumulator_value)
        self.eps = eps

    def rule(self) -> Rule:
        return super().rule()._replace(eps=self.eps)


class SparseAdam(RowOptimizer):
    """Adam whose moments decay only in the touched rows: torch.optim.SparseAdam.

    Args:
        tables, lr, weight_decay: see `RowOptimizer`.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root; > 0, in the normal range of float32.
    """

    kind, names = "adam", ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        tables: Sequence[Tensor | None],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for beta in betas:
            checks.within("betas", beta, ranges.BETA)
        checks.within("eps", eps, ranges.EPS)
        super().__init__(tables, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def rule(self) -> Rule:
        beta1, beta2 = self.betas
        t = self.step + 1
        lr = self.lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        return super().rule()._replace(lr=lr, beta1=beta1, beta2=beta2, eps=self.eps)
