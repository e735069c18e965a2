"""The operators of the stage `score`. `autograd` makes `score` of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import reference
from bdkernels.ops.define import define, stages
from bdkernels.types.factors import Factors

DTYPES = (*checks.FLOATS, torch.float64)


class ScoreInputs(NamedTuple):
    """See `bdkernels.score`."""

    factors: Factors
    ids: Tensor  # [B, C]


class ScoreGradInputs(NamedTuple):
    """What the gradients of `score` are made of, and which of them are wanted."""

    grad: Tensor  # [B, C], of the scores
    users: Tensor  # [B, d]
    items: Tensor  # [N, d]
    ids: Tensor  # [B, C]
    of_users: bool
    of_items: bool


def _check_score(s: ScoreInputs) -> Tensor:
    users = s.factors.user_factors
    checks.factors(s.factors, dtypes=DTYPES)
    checks.tensor("ids", s.ids, (users.shape[0], "C"), (torch.int64,), users.device)
    return users.new_empty(s.ids.shape, dtype=checks.loss_dtype(users))


def _score(s: ScoreInputs, backend: str) -> Tensor:
    f, ids = s
    run = stages(backend, f, listed=ids.shape[1])
    n_items = f.item_factors.shape[0]
    if ids.device.type in checks.ASSERTS or n_items == 0:
        own = checks.own_ids("ids", ids, n_items)
        scores = run.score(f, own)
    else:  # ids that are in range whatever they were, and one question at the end whether anything is wrong
        own = ids.clamp(0, n_items - 1)
        scores = run.score(f, own)
        if not ((own != ids) | scores.isnan()).any():
            return scores
        checks.ids_values("ids", ids, n_items)
    checks.no_nan_listed(scores, own)
    return scores


define("score_forward", ScoreInputs, "Tensor", _check_score, _score)


def _check_grad(s: ScoreGradInputs) -> tuple[Tensor, Tensor]:
    (b, d), c, dtype = s.users.shape, s.ids.shape[1], checks.loss_dtype(s.users)
    checks.tensor("grad", s.grad, (b, c), (dtype,), s.users.device)
    new = s.grad.new_empty
    return new(b if s.of_users else 0, d), new(b * c if s.of_items else 0, d)


def _score_backward(s: ScoreGradInputs, backend: str) -> tuple[Tensor, Tensor]:
    """The gradient for the users [B, d], and for the listed item rows [B * C, d], of those that are wanted, else none."""
    none = s.grad.new_empty(0, s.users.shape[1])
    return (
        reference.score_backward_users(s.grad, s.items, s.ids) if s.of_users else none,
        reference.score_backward_items(s.grad, s.users) if s.of_items else none.clone(),
    )


define("score_backward", ScoreGradInputs, "(Tensor, Tensor)", _check_grad, _score_backward)
