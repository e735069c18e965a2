"""The operators of the softmax loss over the whole catalog, of the stage `loss`. `autograd` makes the differentiable one of them.

Every backend takes the products of matrices that torch's own library does at the speed of the hardware: no kernel of ours is
behind it. Users are taken a few at a time, so many that their scores for all items are at most SCORES numbers, or those of one
user where a catalog is larger. From these come the sums of exponentials and, while they are in memory, all gradients: three
products of [users, d] x [d, N], and no table of all users' scores.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import steps
from bdkernels.ops.define import define
from bdkernels.storage import mapped
from bdkernels.types.factors import Factors

# Numbers in memory at a time: 8 MB, near the caches, and 0.5 GB, for products that are large enough.
SCORES = {"cpu": 1 << 21, "cuda": 1 << 27}
LEAST = SCORES["cpu"]


class SoftmaxInputs(NamedTuple):
    """See `bdkernels.softmax_loss`."""

    factors: Factors  # [R, d], [N, d], [N] or None
    rows: Tensor  # [B], of the user factors
    positives: Tensor  # [B], items
    weights: Tensor | None = None  # [B]; None: 1 / B each


Losses = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _check(s: SoftmaxInputs) -> None:
    f, device = s.factors, s.factors.user_factors.device
    checks.factors(f, dtypes=(torch.float32, torch.float64))
    checks.tensor("rows", s.rows, ("B",), (torch.int64,), device)
    checks.tensor("positives", s.positives, (s.rows.shape[0],), (torch.int64,), device)
    if s.weights is not None:
        checks.tensor("weights", s.weights, (s.rows.shape[0],), (f.user_factors.dtype,), device)


def _check_loss(s: SoftmaxInputs) -> Losses:
    _check(s)
    users = s.factors.user_factors
    return users.new_empty(()), users.new_empty(users.shape[0])


def _check_gradient(s: SoftmaxInputs) -> Gradients:
    users, items, _ = s.factors
    return *_check_loss(s), torch.empty_like(users), torch.empty_like(items), items.new_empty(items.shape[0])


def _softmax_loss(s: SoftmaxInputs, backend: str) -> Losses:
    """The loss [], and the logarithms of the sums of exponentials [R]."""
    return _run(s, backend, None)


def _softmax_gradient(s: SoftmaxInputs, backend: str) -> Gradients:
    """The same, and the gradients of the loss for the user factors [R, d], the item factors [N, d] and the biases [N]."""
    users, items, _ = s.factors
    gradients = torch.empty_like(users), torch.zeros_like(items), items.new_zeros(items.shape[0])
    return *_run(s, backend, gradients), *gradients


def _run(s: SoftmaxInputs, backend: str, gradients: tuple[Tensor, Tensor, Tensor] | None) -> Losses:
    """The loss and the logarithms, and the gradients written to what is given: 0 before, but for those of the users."""
    users, items, bias = s.factors
    steps(users.device, backend, users.dtype)  # a backend that cannot be had is an error, as in the other operators
    mapped.trainable(users, items, bias)
    rows, positives = (
        checks.own_ids("rows", s.rows, users.shape[0], "numbers"),
        checks.own_ids("positives", s.positives, items.shape[0]),
    )
    if not len(items):
        if gradients is not None:
            gradients[0].zero_()
        return users.new_zeros(()), users.new_full((users.shape[0],), -torch.inf)
    share = 1 / max(1, len(rows))  # of an interaction in the mean
    if s.weights is None:
        weights = torch.bincount(rows, minlength=users.shape[0]).to(users.dtype).mul_(share)[:, None]  # [R, 1]
    else:
        weights = users.new_zeros(users.shape[0]).index_add_(0, rows, s.weights)[:, None]
    logs = torch.empty_like(weights)  # of the sums of exponentials
    step = max(1, SCORES.get(users.device.type, LEAST) // max(1, items.shape[0]))
    for u, weight, log, grad in zip(
        users.split(step),
        weights.split(step),
        logs.split(step),
        (users if gradients is None else gradients[0]).split(step),
        strict=True,
    ):
        scores = u @ items.T if bias is None else torch.addmm(bias, u, items.T)
        most = scores.amax(1, keepdim=True)
        total = scores.sub_(most).exp_().sum(1, keepdim=True)
        torch.add(most, total.log(), out=log)
        if gradients is not None:
            scores.mul_(weight / total)
            torch.mm(scores, items, out=grad)
            gradients[1].addmm_(scores.T, u)
            gradients[2].add_(scores.sum(0))
    own, other = users[rows], items[positives]
    scores = (own * other).sum(1)
    if bias is not None:
        scores += bias[positives]
    if gradients is not None:
        ones, alpha = torch.ones_like(scores), -share
        if s.weights is not None:
            own, other, ones, alpha = own * s.weights[:, None], other * s.weights[:, None], s.weights, -1.0
        gradients[0].index_add_(0, rows, other, alpha=alpha)
        gradients[1].index_add_(0, positives, own, alpha=alpha)
        gradients[2].index_add_(0, positives, ones, alpha=alpha)
    ends = [end for t in s.factors if t is not None and t.numel() for end in torch.aminmax(t)]
    none_or_nan = sum(end - end for end in ends)  # a loss may be finite where a gradient is not
    terms = logs[rows, 0] - scores
    total = terms.sum(dtype=torch.float64).mul_(share) if s.weights is None else (terms.double() * s.weights).sum()
    loss = total.to(users.dtype) + none_or_nan
    checks.finite_losses(loss, torch.zeros_like(loss))
    return loss, logs[:, 0]


define("softmax_loss_forward", SoftmaxInputs, "(Tensor, Tensor)", _check_loss, _softmax_loss)
define(
    "softmax_gradient", SoftmaxInputs, "(Tensor, Tensor, Tensor, Tensor, Tensor)", _check_gradient, _softmax_gradient
)
