"""The operator of the stage `sample`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.backend import Steps
from bdkernels.ops.define import define, stages
from bdkernels.sampling import keys, sampler
from bdkernels.sampling.subset import items_of
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen
from bdkernels.weights import WeightCode

STEPS = 2**32  # steps are below


class SampleInputs(NamedTuple):
    """See `bdkernels.sample`; here a direction whose weight has no kind is off.

    The operator's models are `Factors`; `scorers.sample` takes `Blocks` in their place.
    """

    teacher: Factors
    student: Factors
    seen: Seen | None
    user_ids: Tensor  # [B]
    k: int
    seed: int
    step: int
    to_student: WeightCode
    to_teacher: WeightCode
    subset: int = 0  # how many random items ranks are counted over; 0 for all, or for those of `counted`
    counted: Tensor | None = None  # [m]
    occurrence: Tensor | None = None  # [B]
    independent_directions: bool = False
    seed_at: Tensor | None = None  # [] int64, in the place of `seed`
    step_at: Tensor | None = None  # [] int64, in the place of `step`

    def arguments(self) -> tuple[Any, ...]:
        """Those of the operator: a struct is one argument for each of its fields."""
        seen = (None, None) if self.seen is None else self.seen
        models, weights = (*self.teacher, *self.student), (*self.to_student, *self.to_teacher)
        return *models, *seen, self.user_ids, self.k, self.seed, self.step, *weights, *self[9:]


def check_asked(s: SampleInputs, n_rows: int, n_items: int, device: torch.device) -> None:
    """Refuse what is wrong about all but the models, whose sizes are given."""
    checks.seen(s.seen, n_rows, device)
    checks.tensor("user_ids", s.user_ids, (n_rows,), (torch.int64,), device)
    checks.sample(s.k, s.step, s.subset, n_items, (s.to_student, s.to_teacher))
    if s.occurrence is not None:
        checks.tensor("occurrence", s.occurrence, (n_rows,), (torch.int64,), device)
    if s.counted is not None:
        checks.tensor("subset", s.counted, ("m",), (torch.int64,), device)
    for name, number in (("seed", s.seed_at), ("step", s.step_at)):
        if number is not None:
            checks.tensor(name, number, (), (torch.int64,), device)


def drawn(s: SampleInputs, steps: Steps) -> tuple[Tensor, Tensor]:
    """What these stages draw, once the values of the inputs have been looked at."""
    n_items, counted = s.teacher.n_items, s.counted
    if counted is not None:
        counted = checks.own_rising_ids("subset", counted, n_items)
    seen = checks.own_seen(s.seen, n_items, steps.values)
    row_keys = keys.of_rows(s.user_ids, s.occurrence)
    seed = s.seed if s.seed_at is None else checks.own(s.seed_at)
    step = s.step if s.step_at is None else checks.own_ids("step", s.step_at, STEPS, "a number")
    if counted is None and s.subset:
        counted = items_of(n_items, s.subset, int(seed), int(step))
    return sampler.sample(
        steps, s.teacher, s.student, s.k, seen, (s.to_student, s.to_teacher), seed, step, row_keys, counted,
        independent_directions=s.independent_directions,
    )  # fmt: skip


def _check(s: SampleInputs) -> tuple[Tensor, Tensor]:
    users, n_items = s.teacher.user_factors, s.teacher.n_items
    n_rows, device = users.shape[0], users.device
    checks.factors(s.teacher, "teacher.")
    checks.factors(s.student, "student.")
    checks.tensor("student.user_factors", s.student.user_factors, (n_rows, "d"), checks.FLOATS, device)
    checks.tensor("student.item_factors", s.student.item_factors, (n_items, "d"), checks.FLOATS, device)
    checks.integer("number of items", n_items, 1)
    check_asked(s, n_rows, n_items, device)
    new = s.user_ids.new_empty
    return new(n_rows, s.k if s.to_student.kind else 0), new(n_rows, s.k if s.to_teacher.kind else 0)


def _sample(s: SampleInputs, backend: str) -> tuple[Tensor, Tensor]:
    return drawn(s, stages(backend, s.teacher, s.student))


define("sample", SampleInputs, "(Tensor, Tensor)", _check, _sample, {"step": "SymInt"})
