"""Optimizers that change only the rows that a step touches: `fused_step` applies them in the call of the loss, `sparse_step` to
gradients of rows that the caller has, and their own `step()`, as any torch.optim.Optimizer's, to the gradients of the tables.

Gradients of equal rows are summed, then the rule is applied to the row once, as torch.optim does with sparse gradients:
    SGD         row -= lr * g
    Adagrad     sum += g^2;  row -= lr * g / (sqrt(sum) + eps)                        Duchi, Hazan, Singer, JMLR 2011
    SparseAdam  m, v as exponential averages of g and g^2;  row -= lr_t * m / (sqrt(v) + eps)
                lr_t = lr * sqrt(1 - beta2^t) / (1 - beta1^t)                         Kingma and Ba, ICLR 2015, section 2
where g is the gradient plus weight_decay * row, and t counts steps, not visits of a row: that is torch.optim.SparseAdam.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from bdkernels import checks, ranges
from bdkernels.backends import steps
from bdkernels.backends.reference import update_rows
from bdkernels.storage import mapped
from bdkernels.storage.pages import large_pages
from bdkernels.types.rule import Rule, rate

NAMES = ("user_table", "item_table", "item_bias")  # in the order of the parameters


class RowOptimizer(torch.optim.Optimizer):
    """What the three rules share: a torch.optim.Optimizer of the tables of one learner, which are its one group of parameters.

    The state of every row is allocated at once. Learning-rate schedulers change `param_groups[0]["lr"]`, which the next step
    uses, and so they may change the group's other numbers.

    Args:
        params: user_table [U, d], item_table [N, d] and item_bias [N] or None, float32 or float64, of one dtype and device:
            what `fused_loss` takes. Rows may be strided, columns not. They are changed in place, so no two of them may have a
            number in common. Those of 16 MB and more on
            a CPU, and their state, are put on large pages where Linux has them (see `pages`).
        defaults: the rule's settings by the names of torch.optim. lr: 0 or in the normal range of float32; or a tensor [] on the
            tables' device, which each step reads there, also one that a CUDA graph replays: of its value a step on a CPU checks
            that it is a finite float32 and not below 0, and one on a GPU nothing. weight_decay: weight_decay * row is added to
            the gradient of the touched rows, of these alone; the same range as of a number lr.
        initial: the value that the state begins with.
        capturable: count steps on the tables' device, so that a `fused_step` which a CUDA graph captured counts on in each
            replay, and SparseAdam's lr_t with it. All other numbers, and lr where it is no tensor, are those of the capture.

    Raises:
        ValueError: a wrong table or setting. Settings are checked again at each step.
    """

    kind = ""
    names: tuple[str, ...] = ()  # of the state tensors of a table
    fixed: ClassVar[dict[str, Any]] = {}  # torch's settings that have this one value here
    _opt_called = True  # so that schedulers do not warn: they look for calls of step(), and most steps are others

    def __init__(
        self, params: Sequence[Tensor | None], defaults: dict[str, Any], initial: float = 0.0, capturable: bool = False
    ) -> None:
        user_table, item_table, item_bias = (*params, None) if len(params) == 2 else params
        if user_table is None or item_table is None:
            raise ValueError("params: expected user_table, item_table and item_bias or None, got None for a table")
        checks.tables(user_table, item_table, item_bias)
        checks.in_place(user_table, item_table, item_bias)
        mapped.trainable(user_table, item_table, item_bias)
        tables = [t for t in (user_table, item_table, item_bias) if t is not None]
        checks.own_memory(dict(zip(NAMES, tables, strict=False)))
        checks.within("weight_decay", defaults["weight_decay"], ranges.WEIGHT_DECAY)
        # In a dict, since torch.compile loses what is assigned to an attribute of a torch.optim.Optimizer.
        count = torch.zeros((), dtype=torch.float64, device=user_table.device) if capturable else 0
        self._numbers: dict[str, Any] = {"step_count": count, "initial": initial}
        super().__init__(tables, defaults)
        for table in map(large_pages, tables):
            self.state[table] = {
                name: large_pages(
                    torch.empty_like(table, requires_grad=False, memory_format=torch.contiguous_format)
                ).fill_(initial)
                for name in self.names
            }

    def tables(self) -> dict[str, Tensor]:
        """The tables by name, without a bias where there is none."""
        return dict(zip(NAMES, self.param_groups[0]["params"], strict=False))

    @property
    def user_table(self) -> Tensor:
        """[U, d], the parameter itself."""
        table: Tensor = self.param_groups[0]["params"][0]
        return table

    @property
    def item_table(self) -> Tensor:
        """[N, d], the parameter itself."""
        table: Tensor = self.param_groups[0]["params"][1]
        return table

    @property
    def item_bias(self) -> Tensor | None:
        """[N], the parameter itself, or None."""
        return self.tables().get("item_bias")

    def row_state(self) -> list[Tensor]:
        """The tensors of the rule, shaped like the tables: those of the user table, of the item table, of the bias."""
        found: list[Tensor] = []
        for table in self.param_groups[0]["params"]:
            found.extend(map(self.state[table].__getitem__, self.names))
        return found

    def rule(self) -> Rule:
        """What the next step does, in numbers: it waits for those on a device. Raises ValueError for one out of its range."""
        rule, lr, count = self.queued_rule()
        if count is not None:
            lr = rate(rule, rule.lr if lr is None else lr, count).to(self.user_table.dtype)
        return rule if lr is None else rule._replace(lr=float(lr))

    def queued_rule(self) -> tuple[Rule, Tensor | None, Tensor | None]:
        """The same but for numbers that lie beside the tables, so that nobody waits for them: in the place of its lr a tensor []
        of the tables' dtype; and the count of steps [] float64 where lr depends on it. `rate` is then still to be asked, of the
        rule's lr or of the tensor in its place, which then is float64.
        """
        lr, count = self.param_groups[0]["lr"], self._numbers["step_count"]
        if isinstance(lr, Tensor) and lr.device == self.user_table.device:
            given, lr = lr.detach().double(), 0.0
        else:
            given, lr = None, float(lr)
            if lr not in ranges.LR:
                checks.within("lr", lr, ranges.LR)
        rule = self._rule(lr)
        if isinstance(count, Tensor) and rule.kind == "adam":
            return rule, given, count
        if given is not None:
            return rule, rate(rule, given, count).to(self.user_table.dtype), None
        return self._rule(rate(rule, lr, count)) if rule.kind == "adam" else rule, None, None

    def _rule(self, lr: float) -> Rule:
        """The numbers of the rule as they are now, but for lr."""
        return Rule(self.kind, lr, self.param_groups[0]["weight_decay"])

    @property
    def step_count(self) -> int:
        """How many steps were taken, of `fused_step`, `sparse_step` and `step()` together."""
        return int(self._numbers["step_count"])

    def count_step(self) -> None:
        """Note that a step was taken."""
        self._numbers["step_count"] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step by the gradients of the tables, as of any torch.optim.Optimizer.

        Sparse and dense gradients give the same: of a dense one, the rows that are not all zero are those that the step touches.
        A table without a gradient stays as it is; where no table has one, it is no step.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            what the closure returns, else None.

        Raises:
            ValueError: see `sparse_step`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = {name: _rows_of(t.grad) for name, t in self.tables().items() if t.grad is not None}
        if rows:
            sparse_step(self, **rows)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """There is one group, that of the tables. Raises ValueError for another one."""
        if self.param_groups:
            raise ValueError(
                "param_group: expected one group, the tables that the optimizer was made with, got another"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """In torch's format, which torch.optim's optimizer of the same rule loads: in "state", by the number of the table, its
        tensors and the "step", and in "param_groups" the settings. Tensors are not copied.
        """
        found = super().state_dict()
        numbers = found["param_groups"][0]["params"]
        state = {number: {"step": self.step_count, **found["state"].get(number, {})} for number in numbers}
        return found | {"state": state, "param_groups": [self.fixed | group for group in found["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy what `state_dict` gave, here or of torch.optim's optimizer of the same rule, into state and settings.

        Raises:
            ValueError: it belongs to another rule or to other tables, or a setting has a value that only torch.optim can do; then
                nothing has changed.
        """
        groups, state = state_dict["param_groups"], state_dict["state"]
        own = self.param_groups[0]["params"]
        if len(groups) != 1 or len(groups[0]["params"]) != len(own):
            sizes = [len(group["params"]) for group in groups]
            raise ValueError(f"state_dict: expected one group of {len(own)} tables, got groups of {sizes}")
        for name, value in self.fixed.items():
            if groups[0].get(name, value) != value:
                raise ValueError(f"state_dict: {name}: expected {value!r}, got {groups[0][name]!r}")
        numbers, steps = groups[0]["params"], {0}
        for number, (name, table) in zip(numbers, self.tables().items(), strict=True):
            values = {key: value for key, value in state.get(number, {}).items() if value is not None}
            steps.add(int(values.pop("step", 0)))
            if values and set(values) != set(self.names):
                raise ValueError(f"state_dict: expected of {name} {sorted(self.names)}, got {sorted(values)}")
            for key, value in values.items():
                checks.tensor(f"state_dict: {name}.{key}", value, tuple(table.shape), (table.dtype,), value.device)
        checks.integer("state_dict: step", min(steps), 0)
        kept = {table: self.state[table] for table in own}
        settings = {key: value for key, value in groups[0].items() if key not in self.fixed}
        super().load_state_dict({**state_dict, "param_groups": [self.defaults | settings]})
        for table, tensors in kept.items():
            for key, tensor in tensors.items():
                loaded = self.state[table].get(key)
                tensor.fill_(self._numbers["initial"]) if loaded is None else tensor.copy_(loaded)
            self.state[table] = tensors
        count = self._numbers["step_count"]
        self._numbers["step_count"] = count.fill_(max(steps)) if isinstance(count, Tensor) else max(steps)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_numbers": self._numbers}


class SGD(RowOptimizer):
    """Stochastic gradient descent without momentum: torch.optim.SGD on the touched rows.

    Of torch's arguments momentum, dampening, nesterov and maximize are not there; weight_decay is for the touched rows. See
    `RowOptimizer` for the arguments.
    """

    kind = "sgd"
    fixed: ClassVar = {"momentum": 0, "dampening": 0, "nesterov": False, "maximize": False}

    def __init__(
        self,
        params: Sequence[Tensor | None],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        *,
        capturable: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, capturable=capturable)


class Adagrad(RowOptimizer):
    """Adagrad: torch.optim.Adagrad on sparse gradients.

    Of torch's arguments lr_decay and maximize are not there; weight_decay is for the touched rows, and torch's refuses it.

    Args:
        params, lr, weight_decay, capturable: see `RowOptimizer`.
        initial_accumulator_value: where each sum of squares starts, >= 0.
        eps: added to the root; > 0, in the normal range of float32.
    """

    kind, names = "adagrad", ("sum",)
    fixed: ClassVar = {"lr_decay": 0, "maximize": False}

    def __init__(
        self,
        params: Sequence[Tensor | None],
        lr: float | Tensor = 1e-2,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        capturable: bool = False,
    ) -> None:
        checks.within("eps", eps, ranges.EPS)
        checks.within("initial_accumulator_value", initial_accumulator_value, ranges.ACCUMULATOR)
        defaults = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        defaults["initial_accumulator_value"] = initial_accumulator_value
        super().__init__(params, defaults, initial_accumulator_value, capturable)

    def _rule(self, lr: float) -> Rule:
        return super()._rule(lr)._replace(eps=self.param_groups[0]["eps"])


class SparseAdam(RowOptimizer):
    """Adam whose moments decay only in the touched rows: torch.optim.SparseAdam.

    Of torch's arguments maximize is not there, and weight_decay is new. Where some tables have no gradient, torch counts their
    steps apart.

    Args:
        params, lr, weight_decay, capturable: see `RowOptimizer`.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root; > 0, in the normal range of float32.
    """

    kind, names = "adam", ("exp_avg", "exp_avg_sq")
    fixed: ClassVar = {"maximize": False}

    def __init__(
        self,
        params: Sequence[Tensor | None],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        capturable: bool = False,
    ) -> None:
        for beta in betas:
            checks.within("betas", beta, ranges.BETA)
        checks.within("eps", eps, ranges.EPS)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, capturable=capturable)

    def _rule(self, lr: float) -> Rule:
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        return Rule(self.kind, lr, group["weight_decay"], beta1, beta2, group["eps"])


def sparse_step(optimizer: RowOptimizer, **rows: tuple[Tensor, Tensor]) -> None:
    """One step of the optimizer on the named rows of its tables, in place: what `fused_step` does after the gradient.

    Gradients of equal ids are summed, in the order in which they stand (on a GPU in any), before the rule is applied once to the
    row. A table that is not named stays as it is. On an error nothing has changed. The backend "cpu" has a kernel for it, whose
    bits are the same for every thread count and instruction set; elsewhere the reference does it.

    Args:
        optimizer: `SGD`, `Adagrad` or `SparseAdam`; its `step_count` rises by one, also where no row is named.
        rows: of "user_table", "item_table" and "item_bias" the row numbers [n] int64 and gradients [n, d], of the bias [n], of
            the tables' dtype and device.

    Raises:
        ValueError: a table that the optimizer does not have, or a wrong shape, dtype, device or id.
    """
    checks.instance("optimizer", optimizer, RowOptimizer)
    tables = {name: table.detach() for name, table in optimizer.tables().items()}
    each, state = len(optimizer.names), optimizer.row_state()
    found = optimizer.user_table, optimizer.item_table, optimizer.item_bias
    checks.tables(*found)
    checks.in_place(*found)
    checks.state(list(tables.values()), state, each)
    for name, (ids, grads) in tuple(rows.items()):
        checks.choice("rows", name, tuple(tables))
        table = tables[name]
        checks.tensor(f"{name}: ids", ids, ("n",), (torch.int64,), table.device)
        checks.tensor(f"{name}: grads", grads, (ids.shape[0], *table.shape[1:]), (table.dtype,), table.device)
        rows[name] = checks.own_ids(f"{name}: ids", ids, table.shape[0]), grads
    checks.own_memory(tables, state)
    rule = optimizer.rule()
    checks.within("lr", rule.lr, ranges.STEP_SIZE)
    checks.rule(rule)
    update = steps(found[0].device, dtype=found[0].dtype).update_rows or update_rows
    with torch.no_grad():
        for i, (name, table) in enumerate(tables.items()):
            if name in rows:
                own = state[i * each : (i + 1) * each]
                update(table, own, *rows[name], rule)
                increment_version([table, *own])  # a kernel writes behind autograd's back
    optimizer.count_step()


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [n] and gradients [n, ...] of the rows that a gradient of a table touches."""
    if grad.is_sparse:
        return grad._indices()[0], grad._values()
    ids = grad.reshape(len(grad), -1).any(1).nonzero().flatten()
    return ids, grad[ids]
