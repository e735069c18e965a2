"""The operators of the stage `sample`: schema, checks, dispatch."""

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.ops.define import FACTORS, OPTIONS, SEEN, define, seen_rows, stages
from bdkernels.sampling import keys, sampler
from bdkernels.sampling.subset import items_of
from bdkernels.types.factors import Factors


def _sample_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    student_users: Tensor,
    student_items: Tensor,
    student_item_bias: Tensor | None,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    user_ids: Tensor,
    k: int,
    seed: int,
    step: int,
    to_student: str,
    to_student_parameter: float,
    to_student_flipped: bool,
    to_teacher: str,
    to_teacher_parameter: float,
    to_teacher_flipped: bool,
    subset: int = 0,
    counted: Tensor | None = None,
    occurrence: Tensor | None = None,
    independent_directions: bool = False,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    n_rows, device = users.shape[0], users.device
    checks.factors(Factors(users, items, item_bias), "teacher.")
    checks.factors(Factors(student_users, student_items, student_item_bias), "student.")
    checks.tensor("student.user_factors", student_users, (n_rows, "d"), checks.FLOATS, device)
    checks.tensor("student.item_factors", student_items, (items.shape[0], "d"), checks.FLOATS, device)
    checks.integer("number of items", items.shape[0], 1)
    seen_rows(seen_indptr, seen_indices, n_rows, device)
    checks.tensor("user_ids", user_ids, (n_rows,), (torch.int64,), device)
    codes = (
        (to_student, to_student_parameter, to_student_flipped),
        (to_teacher, to_teacher_parameter, to_teacher_flipped),
    )
    checks.sample(k, step, subset, items.shape[0], codes)
    if occurrence is not None:
        checks.tensor("occurrence", occurrence, (n_rows,), (torch.int64,), device)
    if counted is not None:
        checks.tensor("subset", counted, ("m",), (torch.int64,), device)
    return user_ids.new_empty(n_rows, k if to_student else 0), user_ids.new_empty(n_rows, k if to_teacher else 0)


def _sample(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    student_users: Tensor,
    student_items: Tensor,
    student_item_bias: Tensor | None,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    user_ids: Tensor,
    k: int,
    seed: int,
    step: int,
    to_student: str,
    to_student_parameter: float,
    to_student_flipped: bool,
    to_teacher: str,
    to_teacher_parameter: float,
    to_teacher_flipped: bool,
    subset: int = 0,
    counted: Tensor | None = None,
    occurrence: Tensor | None = None,
    independent_directions: bool = False,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    teacher, student = Factors(users, items, item_bias), Factors(student_users, student_items, student_item_bias)
    weights = (
        (to_student, to_student_parameter, to_student_flipped),
        (to_teacher, to_teacher_parameter, to_teacher_flipped),
    )
    _sample_fake(
        *teacher, *student, seen_indptr, seen_indices, user_ids, k, seed, step, *weights[0], *weights[1],
        subset, counted, occurrence,
    )  # fmt: skip
    if counted is not None:
        counted = checks.own_rising_ids("subset", counted, items.shape[0])
    seen = checks.own_seen(seen_rows(seen_indptr, seen_indices, users.shape[0], users.device), items.shape[0])
    row_keys = keys.of_rows(user_ids, occurrence)
    counted = items_of(items.shape[0], subset, seed, step) if counted is None else counted
    return sampler.sample(
        stages(backend, teacher, student), teacher, student, k, seen, weights, seed, step, row_keys, counted,
        independent_directions=independent_directions,
    )  # fmt: skip


define(
    "sample",
    f"({FACTORS}, Tensor student_users, Tensor student_items, Tensor? student_item_bias, {SEEN}, "
    "Tensor user_ids, int k, int seed, SymInt step, str to_student, float to_student_parameter, bool to_student_flipped, "
    "str to_teacher, float to_teacher_parameter, bool to_teacher_flipped, int subset=0, Tensor? counted=None, "
    f"Tensor? occurrence=None, bool independent_directions=False, {OPTIONS}) -> (Tensor, Tensor)",
    _sample,
    _sample_fake,
)
