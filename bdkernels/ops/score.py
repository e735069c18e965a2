"""The operators of the stage `score`: schema, checks, dispatch. `autograd` makes `score` of them."""

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import reference
from bdkernels.ops.define import FACTORS, OPTIONS, define, stages
from bdkernels.types.factors import Factors

DTYPES = (*checks.FLOATS, torch.float64)


def _score_fake(users: Tensor, items: Tensor, item_bias: Tensor | None, ids: Tensor, *, backend: str = "") -> Tensor:
    checks.factors(Factors(users, items, item_bias), dtypes=DTYPES)
    checks.tensor("ids", ids, (users.shape[0], "C"), (torch.int64,), users.device)
    return users.new_empty(ids.shape, dtype=checks.loss_dtype(users))


def _score(users: Tensor, items: Tensor, item_bias: Tensor | None, ids: Tensor, *, backend: str = "") -> Tensor:
    _score_fake(users, items, item_bias, ids)
    ids = checks.own_ids("ids", ids, items.shape[0])
    f = Factors(users, items, item_bias)
    scores = stages(backend, f, listed=ids.shape[1]).score(f, ids)
    checks.no_nan_listed(scores, ids)
    return scores


define("score_forward", f"({FACTORS}, Tensor ids, {OPTIONS}) -> Tensor", _score, _score_fake)


def _score_backward_fake(
    grad: Tensor, users: Tensor, items: Tensor, ids: Tensor, of_users: bool, of_items: bool
) -> tuple[Tensor, Tensor]:
    (b, d), c, dtype = users.shape, ids.shape[1], checks.loss_dtype(users)
    checks.tensor("grad", grad, (b, c), (dtype,), users.device)
    new = grad.new_empty
    return new(b if of_users else 0, d), new(b * c if of_items else 0, d)


def _score_backward(
    grad: Tensor, users: Tensor, items: Tensor, ids: Tensor, of_users: bool, of_items: bool
) -> tuple[Tensor, Tensor]:
    of_none = _score_backward_fake(grad, users, items, ids, of_users, of_items)
    return (
        reference.score_backward_users(grad, items, ids) if of_users else of_none[0],
        reference.score_backward_items(grad, users) if of_items else of_none[1],
    )


# The gradient for the users [B, d], and for the listed item rows [B * C, d], of those that are wanted, else none.
define(
    "score_backward",
    "(Tensor grad, Tensor users, Tensor items, Tensor ids, bool of_users, bool of_items) -> (Tensor, Tensor)",
    _score_backward,
    _score_backward_fake,
)
