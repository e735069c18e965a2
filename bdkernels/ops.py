"""The operators torch.ops.bdkernels.*: one schema, one fake and one dispatch for each, the same for every backend.

The implementations are Python: they check the arguments, choose a backend, and call its stages. Public functions in the types
of this library are in `functional`. An optional `seen` is two tensors, both there or both None; a weight is its kind ("" for
none), parameter and flipped; backend "" chooses.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks, reference, sampler
from .backends import steps
from .factors import Factors
from .seen import Seen

LIBRARY = torch.library.Library("bdkernels", "DEF")
_FACTORS = "Tensor users, Tensor items, Tensor? item_bias"
_SEEN = "Tensor? seen_indptr, Tensor? seen_indices"
_OPTIONS = "*, str backend=''"


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    LIBRARY.define(name + schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bdkernels::{name}", fake, lib=LIBRARY)


def _seen(indptr: Tensor | None, indices: Tensor | None, n_rows: int, device: torch.device) -> Seen | None:
    if (indptr is None) != (indices is None):
        raise ValueError("seen: expected both of indptr and indices, got one")
    seen = None if indptr is None or indices is None else Seen(indptr, indices)
    checks.seen(seen, n_rows, device)
    return seen


# ---- score ----


def _score_fake(users: Tensor, items: Tensor, item_bias: Tensor | None, ids: Tensor, *, backend: str = "") -> Tensor:
    checks.factors(Factors(users, items, item_bias))
    checks.tensor("ids", ids, (users.shape[0], "C"), (torch.int64,), users.device)
    return users.new_empty(ids.shape, dtype=torch.float32)


def _score(users: Tensor, items: Tensor, item_bias: Tensor | None, ids: Tensor, *, backend: str = "") -> Tensor:
    _score_fake(users, items, item_bias, ids)
    checks.ids_values("ids", ids, items.shape[0])
    scores = steps(users.device, backend).score(Factors(users, items, item_bias), ids)
    if (bad := scores.isnan()).any():
        row, column = (int(v) for v in bad.nonzero()[0])
        raise ValueError(f"factors: expected finite scores, got NaN for user row {row}, item {int(ids[row, column])}")
    return scores


_define("score", f"({_FACTORS}, Tensor ids, {_OPTIONS}) -> Tensor", _score, _score_fake)


# ---- rank ----


def _count_above_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    checks.factors(Factors(users, items, item_bias))
    checks.thresholds(users.shape[0], thresholds, tie_ids, item_offset, users.device)
    _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    return torch.empty_like(tie_ids, memory_format=torch.contiguous_format)


def _count_above(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    _count_above_fake(users, items, item_bias, thresholds, tie_ids, seen_indptr, seen_indices, item_offset)
    seen = _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    checks.no_nan("thresholds", thresholds)
    checks.seen_values(seen, checks.MAX_ITEMS)
    f = Factors(users, items, item_bias)
    return steps(users.device, backend).count_above(f, thresholds, tie_ids, seen, item_offset)


_define(
    "count_above",
    f"({_FACTORS}, Tensor thresholds, Tensor tie_ids, {_SEEN}, int item_offset=0, {_OPTIONS}) -> Tensor",
    _count_above,
    _count_above_fake,
)


def _count_above_block_fake(
    scores: Tensor,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    checks.tensor("scores", scores, ("B", "n"), (torch.float32,), scores.device)
    checks.thresholds(scores.shape[0], thresholds, tie_ids, item_offset, scores.device)
    _seen(seen_indptr, seen_indices, scores.shape[0], scores.device)
    return torch.empty_like(tie_ids, memory_format=torch.contiguous_format)


def _count_above_block(
    scores: Tensor,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    item_offset: int = 0,
    *,
    backend: str = "",
) -> Tensor:
    _count_above_block_fake(scores, thresholds, tie_ids, seen_indptr, seen_indices, item_offset)
    seen = _seen(seen_indptr, seen_indices, scores.shape[0], scores.device)
    checks.no_nan("scores", scores)
    checks.no_nan("thresholds", thresholds)
    checks.seen_values(seen, checks.MAX_ITEMS)
    return steps(scores.device, backend).count_above_block(scores, thresholds, tie_ids, seen, item_offset)


_define(
    "count_above_block",
    f"(Tensor scores, Tensor thresholds, Tensor tie_ids, {_SEEN}, int item_offset=0, {_OPTIONS}) -> Tensor",
    _count_above_block,
    _count_above_block_fake,
)


def _rank_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    checks.factors(Factors(users, items, item_bias))
    checks.tensor("ids", ids, (users.shape[0], "C"), (torch.int64,), users.device)
    _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    return torch.empty_like(ids, memory_format=torch.contiguous_format)


def _rank(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    ids: Tensor,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> Tensor:
    _rank_fake(users, items, item_bias, ids, seen_indptr, seen_indices)
    f, seen = Factors(users, items, item_bias), _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    checks.ids_values("ids", ids, items.shape[0])
    checks.seen_values(seen, items.shape[0])
    stages = steps(users.device, backend)
    return 1 + stages.count_above(f, stages.score(f, ids), ids, seen, 0)


_define("rank", f"({_FACTORS}, Tensor ids, {_SEEN}, {_OPTIONS}) -> Tensor", _rank, _rank_fake)


# ---- topk ----


def _topk_fake(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    k: int,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    checks.factors(Factors(users, items, item_bias))
    checks.integer("k", k, 1, items.shape[0])
    _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    shape = (users.shape[0], k)
    return users.new_empty(shape, dtype=torch.float32), users.new_empty(shape, dtype=torch.int64)


def _topk(
    users: Tensor,
    items: Tensor,
    item_bias: Tensor | None,
    k: int,
    seen_indptr: Tensor | None,
    seen_indices: Tensor | None,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    _topk_fake(users, items, item_bias, k, seen_indptr, seen_indices)
    seen = _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    checks.seen_values(seen, items.shape[0])
    return reference.topk(Factors(users, items, item_bias), k, seen, steps(users.device, backend).score_block)


_define("topk", f"({_FACTORS}, int k, {_SEEN}, {_OPTIONS}) -> (Tensor, Tensor)", _topk, _topk_fake)


# ---- sample ----


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
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    n_rows, device = users.shape[0], users.device
    checks.factors(Factors(users, items, item_bias), "teacher.")
    checks.factors(Factors(student_users, student_items, student_item_bias), "student.")
    checks.tensor("student.users", student_users, (n_rows, "d"), checks.FLOATS, device)
    checks.tensor("student.items", student_items, (items.shape[0], "d"), checks.FLOATS, device)
    checks.integer("number of items", items.shape[0], 1)
    _seen(seen_indptr, seen_indices, n_rows, device)
    checks.tensor("user_ids", user_ids, (n_rows,), (torch.int64,), device)
    checks.integer("k", k, 1)
    checks.integer("step", step, 0, 2**32 - 1)
    checks.weight("to_student", to_student, to_student_parameter)
    checks.weight("to_teacher", to_teacher, to_teacher_parameter)
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
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    teacher, student = Factors(users, items, item_bias), Factors(student_users, student_items, student_item_bias)
    weights = (
        (to_student, to_student_parameter, to_student_flipped),
        (to_teacher, to_teacher_parameter, to_teacher_flipped),
    )
    _sample_fake(*teacher, *student, seen_indptr, seen_indices, user_ids, k, seed, step, *weights[0], *weights[1])
    seen = _seen(seen_indptr, seen_indices, users.shape[0], users.device)
    checks.seen_values(seen, items.shape[0])
    checks.ids_values("user_ids", user_ids, 2**32)
    return sampler.sample(steps(users.device, backend), teacher, student, k, seen, weights, seed, step, user_ids)


_define(
    "sample",
    f"({_FACTORS}, Tensor student_users, Tensor student_items, Tensor? student_item_bias, {_SEEN}, "
    "Tensor user_ids, int k, int seed, SymInt step, str to_student, float to_student_parameter, bool to_student_flipped, "
    f"str to_teacher, float to_teacher_parameter, bool to_teacher_flipped, {_OPTIONS}) -> (Tensor, Tensor)",
    _sample,
    _sample_fake,
)


# ---- loss ----


def _distill_loss_fake(
    learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None
) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    return learner.new_empty((), dtype=torch.float64 if learner.dtype == torch.float64 else torch.float32)


def _distill_loss(learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None) -> Tensor:
    checks.losses(learner, guide, tau_learner, tau_guide, mask)
    return reference.distill_loss(learner, guide, tau_learner, tau_guide, mask)


_define(
    "distill_loss",
    "(Tensor learner_scores, Tensor guide_scores, float tau_learner, float tau_guide, Tensor? mask) -> Tensor",
    _distill_loss,
    _distill_loss_fake,
)


def _distill_loss_backward_fake(
    grad: Tensor, learner: Tensor, guide: Tensor, tau_learner: float, tau_guide: float, mask: Tensor | None
) -> Tensor:
    return torch.empty_like(learner, memory_format=torch.contiguous_format)


_define(
    "distill_loss_backward",
    "(Tensor grad, Tensor learner_scores, Tensor guide_scores, float tau_learner, float tau_guide, Tensor? mask) -> Tensor",
    reference.distill_loss_backward,
    _distill_loss_backward_fake,
)


def _bd_step_fake(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    guide_scores: Tensor,
    distill_mask: Tensor | None,
    cf: str,
    lambda_: float,
    tau_learner: float,
    tau_guide: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    checks.step(user_table, item_table, item_bias, users, positives, negatives, distill_ids, guide_scores, distill_mask)
    checks.temperatures(tau_learner, tau_guide)
    checks.choice("cf", cf, ("bce", "bpr"))
    (n_rows, m), k, d = negatives.shape, distill_ids.shape[1], user_table.shape[1]
    new = user_table.new_empty
    return new(()), new(()), new(n_rows, d), new(n_rows, 1 + m + k, d), new(n_rows, 1 + m + k)


def _bd_step(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill_ids: Tensor,
    guide_scores: Tensor,
    distill_mask: Tensor | None,
    cf: str,
    lambda_: float,
    tau_learner: float,
    tau_guide: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (user_table, item_table, item_bias, users, positives, negatives, distill_ids, guide_scores, distill_mask)
    _bd_step_fake(*tensors, cf, lambda_, tau_learner, tau_guide)
    checks.ids_values("users", users, user_table.shape[0])
    checks.ids_values("positives", positives, item_table.shape[0])
    checks.ids_values("negatives", negatives, item_table.shape[0])
    live = distill_ids if distill_mask is None else distill_ids[distill_mask]
    checks.ids_values("distill_ids", live, item_table.shape[0])
    return reference.bd_step(*tensors, cf, lambda_, tau_learner, tau_guide)


_define(
    "bd_step",
    "(Tensor user_table, Tensor item_table, Tensor? item_bias, Tensor users, Tensor positives, Tensor negatives, "
    "Tensor distill_ids, Tensor guide_scores, Tensor? distill_mask, str cf, float lambda_, float tau_learner, "
    "float tau_guide) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bd_step,
    _bd_step_fake,
)
