"""What a backend is: a name, the stages that it supplies, where they run, and what it refuses.

`register` of `bdkernels.backends` makes one known. Arguments of the stages are checked by `ops` before a stage is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdkernels.types.factors import Factors
from bdkernels.types.round import Round
from bdkernels.types.rule import Rule
from bdkernels.types.seen import Seen
from bdkernels.types.step import StepInputs
from bdkernels.weights import WeightCode

_WORDS = {"cpu": "the CPU", "cuda": "a CUDA device"}


class BackendError(RuntimeError):
    """An explicitly chosen backend is unknown, absent, not for this device, or without a stage that the call needs."""


class Missing:
    """A stage that a backend does not supply: a call is a BackendError."""

    def __init__(self, stage: str, backend: str = "?", others: tuple[str, ...] = ()) -> None:
        self.stage, self.backend, self.others = stage, backend, others

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise BackendError(
            f"backend={self.backend}: it has no {self.stage}, which this call needs; it has "
            f"{', '.join(self.others) or 'none'}: choose another backend for this call"
        )


class Steps(NamedTuple):
    """The stages that a backend supplies: functions that give the bits of those of the same names in `backends.reference`.

    `score` serves the operator score; score and count_above serve rank; these, score_block, propose and accept serve sample;
    the others serve the operators of their names. Of scorers that are no Factors, count_above_block serves all but sample, which
    needs propose and accept too. A call that needs a stage which is left out raises BackendError.
    """

    score: Callable[[Factors, Tensor], Tensor] = Missing("score")
    score_block: Callable[[Factors], Tensor] = Missing("score_block")
    count_above: Callable[..., Tensor] = Missing("count_above")  # (Factors, Tensor, Tensor, Seen | None, int)
    count_above_block: Callable[[Tensor, Tensor, Tensor, Seen | None, int], Tensor] = Missing("count_above_block")
    propose: Callable[[int, int, Tensor, int, int, int, Seen | None], Tensor] = Missing("propose")
    accept: Callable[[int, int, Tensor, int, Tensor, Tensor, Tensor, WeightCode, bool], Tensor] = Missing("accept")
    topk: Callable[[Factors, int, Seen | None], tuple[Tensor, Tensor]] = Missing("topk")
    distill_loss: Callable[[Tensor, Tensor, float, float, Tensor | None, str], Tensor] = Missing("distill_loss")
    distill_loss_backward: Callable[[Tensor, Tensor, Tensor, float, float, Tensor | None, str], Tensor] = Missing(
        "distill_loss_backward"
    )
    fused_gradient: Callable[[StepInputs], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = Missing("fused_gradient")
    fused_step: Callable[..., tuple[Tensor, Tensor]] = Missing("fused_step")  # (StepInputs, list[Tensor], Rule)
    # The whole sampler in one call, where a backend has that; else `sampler` makes it of the steps above.
    draw: Callable[..., tuple[Tensor, Tensor]] | None = None
    # One round of it for the proposals start .. stop - 1, in place, where a backend has that; see types/round.py.
    draw_round: Callable[[Round, int, int], None] | None = None
    # What `checks` asks of ids of a device that asserts, in one launch where a backend has that: (ids or None, seen or None,
    # limit) -> int64 [2], not 0 where all ids are in [0, limit), and where the rows of `seen` are in order.
    values: Callable[[Tensor | None, Seen | None, int], Tensor] | None = None
    # The update of `sparse_step` for one table, in place, where a backend has that; else the reference does it.
    update_rows: Callable[[Tensor, list[Tensor], Tensor, Tensor, Rule], None] | None = None
    # No step waits for the device, and count_above takes `live`, int64 []: only so many rows, the first, have to be counted.
    # fused_step takes `lr`, [] of the tables' dtype, in the place of the rule's, and `count`, the `steps_done` of `UpdateInputs`.
    # It and fused_gradient assert the ids of their batch themselves where the device asserts; what is masked out may be any id
    # there.
    queued: bool = False
    # A pass over the items is dear, whatever it counts: the sampler's rounds are few and large.
    few_rounds: bool = False


def for_gpus() -> str:
    """The detail of backends that have GPUs alone."""
    return "" if torch.cuda.is_available() else "for GPUs, and torch sees none"


@dataclass(frozen=True)
class Backend:
    """One way to run the operators.

    Args:
        name: what `backend=` and BDKERNELS_BACKEND call it.
        stages: what it supplies, or a function that gives it at the first use, where an import is dear.
        devices: types of the devices whose tensors it takes, such as ("cpu",), or a function that gives them; None for any.
        default_on: types of devices where it serves unless another backend is asked for; of several the last registered one.
        load: makes it ready, once, when it is registered; gives the reason where it cannot be had, else None.
        refuses: gives the reason where it cannot take tables or scores of this device and dtype, else None.
        float64: whether it takes float64.
        variables: names of the environment variables that ask for something of this backend: where one is set and the backend
            cannot be had, calls on its devices raise BackendError instead of taking another.
        detail: what `env_report` adds to its name.
    """

    name: str
    stages: Steps | Callable[[], Steps]
    devices: tuple[str, ...] | Callable[[], tuple[str, ...]] | None = ("cpu",)
    default_on: tuple[str, ...] = ()
    load: Callable[[], str | None] = lambda: None
    refuses: Callable[[torch.device, torch.dtype], str | None] | None = None
    float64: bool = False
    variables: tuple[str, ...] = ()
    detail: Callable[[], str] = lambda: ""

    @cached_property
    def steps(self) -> Steps:
        """The stages, of which those that are left out name this backend."""
        stages = self.stages if isinstance(self.stages, Steps) else self.stages()
        given = tuple(
            name for name, each in stages._asdict().items() if callable(each) and not isinstance(each, Missing)
        )
        left_out = [name for name, each in stages._asdict().items() if isinstance(each, Missing)]
        named: dict[str, Any] = {name: Missing(name, self.name, given) for name in left_out}
        return stages._replace(**named)

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot take tables or scores of this device and dtype; None if it can."""
        devices = self.devices() if callable(self.devices) else self.devices
        if devices is not None and device.type not in devices:
            return f"expected tensors on {' or '.join(_WORDS.get(each, each) for each in devices)}, got {device}"
        if dtype == torch.float64 and not self.float64:
            return f"expected float32, got float64, which {self.name} does not take; the reference does"
        return None if self.refuses is None else self.refuses(device, dtype)
