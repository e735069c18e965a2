"""Optimizers and schedules of the learning rate by name: those registered here or by a program, and any class of torch.optim and
torch.optim.lr_scheduler.

Three optimizers are those of `bdkernels.optim` where a step is fused, and torch's with the same rule where it is not. Their
weight decay is for the rows that a step touches, those whose gradient is not zero: a row that no batch names stays as it is.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from bdkernels import SGD, Adagrad, RowOptimizer, SparseAdam
from bidistill.errors import UserError
from bidistill.registry import OPTIMIZERS, SCHEDULERS, ClassRegistry

FUSED: dict[str, Callable[..., RowOptimizer]] = {"adagrad": Adagrad, "sgd": SGD, "sparse_adam": SparseAdam}
SPARSE = {"sparse_adam", "SparseAdam"}  # take sparse gradients alone
KEPT = {"adam": 2, "sparse_adam": 2, "adagrad": 1, "sgd": 0}  # tensors of state, each as large as the parameters
OWN = {  # arguments of factories, and what gives them
    "optimizer": {"params": "the model", "lr": "{}.lr", "weight_decay": "{}.weight_decay"},
    "lr_scheduler": {"optimizer": "{}.optimizer", "epochs": "the phase"},
}


def register_optimizer(
    name: str, factory: Callable[..., torch.optim.Optimizer], settings: type | None = None, *, sparse: bool = False
) -> None:
    """Let `teacher.optimizer` and `student.optimizer` be this name.

    The factory is called with the model's parameters, lr and, if it has a parameter of that name, weight_decay; and with each
    field of the settings. It returns a torch.optim.Optimizer, whose `step()` is called without a closure. A class will do.

    Args:
        settings: a dataclass whose fields have defaults; [teacher.optimizer_args] sets them. None: the table is passed on, if its
            names are parameters of the factory.
        sparse: whether the models of this package are to give sparse gradients.

    Raises:
        UserError: the name is taken or is no identifier, or `settings` is no dataclass.
    """
    OPTIMIZERS.register(name, factory, settings)
    if sparse:
        SPARSE.add(name)


def register_scheduler(name: str, factory: Callable[..., Any], settings: type | None = None) -> None:
    """Let `teacher.lr_scheduler` and `student.lr_scheduler` be this name.

    The factory is called with the optimizer; with epochs, the most that the phase has, if it has a parameter of that name; and
    with each field of the settings. What it returns has `step()`, called after each epoch. Where `step` has a parameter without
    a default, it is called after each evaluation instead, with the monitored value (higher is better).

    A resumed run makes the schedule again and takes its steps again, so it may depend on nothing but its arguments and these
    values.

    Args:
        settings: see `register_optimizer`; [teacher.lr_scheduler_args] sets them.
    """
    SCHEDULERS.register(name, factory, settings)


def check_optimizer(model: str, name: str, weight_decay: float, args: Mapping[str, Any]) -> None:
    """Raise UserError where the optimizer does not have one of these settings of the model "teacher" or "student"."""
    if name == "LBFGS":
        raise UserError(
            f"{model}.optimizer LBFGS computes the loss several times a step, which training does not: choose another"
        )
    _check_arguments(OPTIMIZERS, name, args, f"{model}.optimizer_args", "optimizer")
    if weight_decay and not _takes(OPTIMIZERS[name], "weight_decay"):
        raise UserError(f"{model}.weight_decay must be 0 with {model}.optimizer {name!r}, which has none")


def check_scheduler(option: str, name: str | None, args: Mapping[str, Any]) -> None:
    """Raise UserError where the schedule does not have one of these settings.

    option: which the schedule is of, such as "teacher.lr_scheduler".
    """
    where = f"{option}_args"
    if name is not None:
        _check_arguments(SCHEDULERS, name, args, where, "lr_scheduler")
    elif args:
        raise UserError(f"{where} is set, but there is no {option}: set that one too")


def wants_sparse(name: str) -> bool:
    """Whether an optimizer of this name takes sparse gradients alone."""
    return name in SPARSE


def make_optimizer(
    name: str, parameters: Iterable[Tensor], lr: float, weight_decay: float, args: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer of a step by autograd. Raises UserError where it cannot be made of these parameters and settings."""
    factory = OPTIMIZERS[name]
    arguments = {"lr": lr, **_arguments(OPTIMIZERS, name, args, "optimizer_args")}
    if _takes(factory, "weight_decay"):
        arguments["weight_decay"] = weight_decay
    try:
        made = factory(parameters, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        said = ", ".join(f"{key} {value!r}" for key, value in arguments.items())
        raise UserError(f"the optimizer {name!r} cannot be made with {said}: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"the factory of the optimizer {name!r} must return a torch.optim.Optimizer, found {type(made).__name__}"
        )
    return made


def no_fused_form(name: str, args: Mapping[str, Any]) -> str:
    """Why no fused step has this optimizer; "" where one has."""
    if name not in FUSED:
        return f"the optimizer {name!r} has no fused form"
    known = inspect.signature(FUSED[name]).parameters
    other = [each for each in args if each not in known]
    return f"{other[0]} of the optimizer {name!r} has no fused form" if other else ""


def make_fused(
    name: str, tables: tuple[Tensor, Tensor, Tensor | None], lr: float, weight_decay: float, args: Mapping[str, Any]
) -> RowOptimizer:
    """The optimizer of a fused step. Raises UserError where it cannot be made with these settings."""
    try:
        return FUSED[name](tables, lr=lr, weight_decay=weight_decay, **args)
    except (TypeError, ValueError) as error:
        raise UserError(f"the optimizer {name!r} cannot be made with these settings: {error}") from error


def state_size(name: str, lr: float, weight_decay: float, args: Mapping[str, Any]) -> float:
    """How many tensors as large as the parameters the optimizer keeps, found in a step on a small one.

    Raises:
        UserError: it cannot be made with these settings, the step fails, or it keeps what a checkpoint cannot hold.
    """
    if name in KEPT and not args:
        return KEPT[name]
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    grad = torch.ones(4, 4)
    parameter.grad = grad.to_sparse(1) if wants_sparse(name) else grad
    optimizer = make_optimizer(name, [parameter], lr, weight_decay, args)
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"a step of the optimizer {name!r} fails for a parameter of 4 x 4: {error}") from error
    kept = state_of(optimizer)
    if odd := [key for key, value in kept.items() if not isinstance(value, (Tensor, int, float))]:
        raise UserError(
            f"the optimizer {name!r} keeps {odd[0].partition('.')[2]}, which is a {type(kept[odd[0]]).__name__}: a checkpoint"
            " holds tensors and numbers; choose another optimizer"
        )
    return sum(value.numel() for value in kept.values() if isinstance(value, Tensor) and value.dim()) / 16


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What it has learned, by name: "0.exp_avg" of the first parameter, and "group.0.lr" of lr and what else has
    changed in its settings.
    """
    saved = optimizer.state_dict()
    found = {f"{index}.{name}": value for index, values in saved["state"].items() for name, value in values.items()}
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if type(value) in (int, float) and (name == "lr" or value != optimizer.defaults.get(name)):
                found[f"group.{index}.{name}"] = value
    return {name: value for name, value in found.items() if value is not None}


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `state_of` gave, of this optimizer or of another one of the same rule, of torch.optim or of bdkernels, whose
    parameters may have a dimension of size 1 more or less.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    settings: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        index, _, key = name.partition(".")
        if index == "group":
            index, _, key = key.partition(".")
            settings.setdefault(int(index), {})[key] = value
            continue
        shape = parameters[int(index)].shape
        fits = isinstance(value, Tensor) and value.dim() and value.numel() == shape.numel()
        states.setdefault(int(index), {})[key] = value.view(shape) if fits else value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    for number, values in settings.items():
        optimizer.param_groups[number].update(values)


def clip(parameters: Iterable[Tensor], most: float) -> None:
    """Scale the gradients, sparse or dense, down to this norm of all of them together, as torch.nn.utils.clip_grad_norm_ does."""
    grads = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            grads.append(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
    scale = (most / (torch.nn.utils.get_total_norm(grads) + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.to(grad.device))


class Schedule:
    """The learning rate of one model in one phase.

    Args:
        optimizer: whose learning rate it is.
        name: of the schedule; None leaves the rate as it is.
        args: its settings.
        epochs: the most that the phase has.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, name: str | None, args: Mapping[str, Any], epochs: int
    ) -> None:
        self.optimizer, self.scheduler, self.watches = optimizer, None, False
        if name is None:
            return
        factory = SCHEDULERS[name]
        arguments = dict(_arguments(SCHEDULERS, name, args, "lr_scheduler_args"))
        if _takes(factory, "epochs"):
            arguments["epochs"] = max(1, epochs)
        if factory is ReduceLROnPlateau:
            arguments = {"mode": "max", **arguments}  # of validation metrics, of which higher is better
        # A step that is fused, or that will be restored, is none that torch's schedulers see, and they would warn.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        try:
            self.scheduler = factory(optimizer, **arguments)
        except (TypeError, ValueError, KeyError) as error:
            said = ", ".join(f"{key} {value!r}" for key, value in arguments.items())
            raise UserError(f"the schedule {name!r} cannot be made with {said or 'no settings'}: {error}") from error
        parameters = inspect.signature(self.scheduler.step).parameters.values()
        self.watches = any(
            each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters
        )

    @property
    def lr(self) -> float | None:
        """The learning rate of the next step; None where nothing changes it."""
        return None if self.scheduler is None else float(self.optimizer.param_groups[0]["lr"])

    def step(self, value: float | None) -> None:
        """An epoch is over.

        value: the monitored metric, where the epoch was evaluated.
        """
        if self.scheduler is not None and not self.watches:
            self.scheduler.step()
        elif self.scheduler is not None and value is not None:
            self.scheduler.step(value)


def _touched(rule: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A factory of torch's optimizers of this rule, with weight decay for the rows that a step touches."""

    def make(params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, **arguments: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = rule(params, lr=lr, **arguments)  # type: ignore[call-arg]
        if weight_decay:
            optimizer.register_step_pre_hook(partial(_decay, weight_decay))
        return optimizer

    own = inspect.signature(make).parameters
    others = [each for name, each in inspect.signature(rule).parameters.items() if name not in own]
    parameters = [*list(own.values())[:3], *others]
    make.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) if at > 2 else each for at, each in enumerate(parameters)]
    )
    return make


@torch.no_grad()
def _decay(weight_decay: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Add weight_decay * row to the gradient of each row whose gradient is not zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            rows, grad = parameter, parameter.grad
            if grad.is_sparse:
                parameter.grad = grad = grad.coalesce()
                rows, grad = parameter[grad._indices()[0]], grad._values()
            moved = (grad.reshape(len(grad), -1) != 0).any(1) if grad.dim() else grad != 0
            grad.add_(
                rows * moved.view(-1, *[1] * (grad.dim() - 1)) if grad.dim() else rows * moved, alpha=weight_decay
            )


def cosine(optimizer: torch.optim.Optimizer, epochs: int, warmup: int = 0) -> LambdaLR:
    """From lr down to 0 after the phase's last epoch along half a cosine, with `warmup` epochs of a rising rate before."""
    return _shape(optimizer, epochs, warmup, lambda done: 0.5 * (1.0 + math.cos(math.pi * done)))


def linear(optimizer: torch.optim.Optimizer, epochs: int, warmup: int = 0) -> LambdaLR:
    """From lr down to 0 after the phase's last epoch along a line, with `warmup` epochs of a rising rate before."""
    return _shape(optimizer, epochs, warmup, lambda done: 1.0 - done)


def _shape(optimizer: torch.optim.Optimizer, epochs: int, warmup: int, fall: Callable[[float], float]) -> LambdaLR:
    def factor(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        return fall(min(1.0, (epoch - warmup) / max(1, epochs - warmup)))

    return LambdaLR(optimizer, factor)


def _takes(factory: Any, name: str) -> bool:
    return name in inspect.signature(factory).parameters


def _arguments(registry: ClassRegistry, name: str, args: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The settings of an optimizer or schedule, with the defaults of its dataclass where it has one."""
    found = registry.settings(name, dict(args), where)
    return asdict(found) if is_dataclass(found) and not isinstance(found, type) else dict(args)


def _check_arguments(registry: ClassRegistry, name: str, args: Mapping[str, Any], where: str, what: str) -> None:
    """Raise UserError for an argument that the factory does not take, or that another setting gives."""
    if registry.entry(name).settings is not None:
        registry.settings(name, dict(args), where)
        return
    parameters = inspect.signature(registry[name]).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    known = [each.name for each in named if each.name not in (*OWN[what], "last_epoch")]
    for given in args:
        if given in OWN[what]:
            raise UserError(
                f"{where}.{given} is given by {OWN[what][given].format(where.partition('.')[0])}: leave it out"
            )
        if given not in known and all(each.kind is not each.VAR_KEYWORD for each in parameters):
            close = difflib.get_close_matches(given, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"{where}.{given} is no setting of the {registry.what} {name!r}: {advice}")
    required = [each.name for each in named if each.name in known and each.default is each.empty]
    if missing := [each for each in required if each not in args]:
        raise UserError(f"the {registry.what} {name!r} needs {', '.join(missing)}: set {where}.{missing[0]}")


OPTIMIZERS.register("adam", torch.optim.Adam)
for _name, _rule in (
    ("adagrad", torch.optim.Adagrad),
    ("sgd", torch.optim.SGD),
    ("sparse_adam", torch.optim.SparseAdam),
):
    OPTIMIZERS.register(_name, _touched(_rule))
SCHEDULERS.register("cosine", cosine)
SCHEDULERS.register("linear", linear)
