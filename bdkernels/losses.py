"""The public operators of the stage `loss`, in the types of this library; conventions and errors as in `functional`.

M negatives a row and the number of users, U, besides the letters there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.functional import Draws, _name, _parts, _tensor
from bdkernels.optim import RowOptimizer
from bdkernels.types.factors import Factors
from bdkernels.types.step import StepInputs


class StepLoss(NamedTuple):
    """Scalars of a step: of `fused_loss`, loss = cf + distill_weight * distill is differentiable; the rest is for the log."""

    loss: Tensor
    cf: Tensor
    distill: Tensor


def distill_loss(
    learner_scores: Tensor,
    guide_scores: Tensor,
    tau_learner: float = 1.0,
    tau_guide: float = 1.0,
    mask: Tensor | None = None,
    *,
    kind: str = "bce",
    backend: str | None = None,
) -> Tensor:
    """Distillation loss D of the learner's scores x for the guide's y, with soft targets at a temperature (Hinton et al. 2015).

    bce: mean over the mask of -(t log s + (1 - t) log(1 - s)), where s = sigmoid(x / tau_learner), t = sigmoid(y / tau_guide).
    listwise: mean over rows of KL(p || q) = sum of p (log p - log q), where p = softmax(y / tau_guide), q = softmax(x /
        tau_learner) over the entries of a row that the mask leaves; a row without any counts as 0 (Cao et al. 2007).

    Args:
        learner_scores: any shape, floating; for "listwise" a row is the last dimension. The gradient goes here alone.
        guide_scores: the same shape and device; a constant to the gradient.
        tau_learner, tau_guide: temperatures of the learner and of the guide, > 0.
        mask: bool of the same shape: which entries count; None for all. What is masked out may hold anything.
        kind: "bce" or "listwise".
        backend: see `score`; the gradient's too. Those of "cpu" and "cuda" are the reference's; float64 scores are served by
            the reference alone.

    Returns:
        scalar, float32 (float64 for float64 scores); 0 where nothing counts.
    """
    _tensor("learner_scores", learner_scores)
    guide = _tensor("guide_scores", guide_scores).detach()
    mask = None if mask is None else _tensor("mask", mask)
    for name, value in (("tau_learner", tau_learner), ("tau_guide", tau_guide)):
        checks.float64(name, value)
    checks.instance("kind", kind, str)
    return torch.ops.bdkernels.distill_loss(
        learner_scores, guide, tau_learner, tau_guide, mask, kind, backend=_name(backend)
    )


class SoftmaxLoss(NamedTuple):
    """What `softmax_losses` gives.

    Attributes:
        loss: scalar, with the gradient.
        log_sums: [R], log sum_i exp(s(r, i)) of each row of the user factors, a constant: with them and a few scores, parts of
            the loss are told apart, or chances of items computed.
    """

    loss: Tensor
    log_sums: Tensor


def softmax_loss(
    factors: Factors, rows: Tensor, positives: Tensor, weights: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Softmax cross entropy over the whole catalog, without a table of the users' scores.

        loss = sum over the B interactions of weights[b] * (log sum_i exp(s(rows[b], i)) - s(rows[b], positives[b]))

    which with the weights 1 / B is the negative log-likelihood of the interactions where each is a draw from its user's
    distribution over all items (multinomial likelihood; Liang et al., "Variational autoencoders for collaborative filtering", WWW
    2018). With other weights it is the cross entropy against soft targets (Hinton et al. 2015): a guide's chances of some of a
    user's items are their weights. Each row of the user factors is scored once, however many interactions it has, so put
    those of a user into the same call. That is 6 R N d operations with the gradients, and one block of scores in memory: 8 MB on
    a CPU, 0.5 GB on a GPU, or one user's.

    Args:
        factors: user_factors [R, d], item_factors [N, d], item_bias [N] or None, float32 or float64; where they require it they
            get dense gradients. On a GPU the products follow torch's settings of TF32.
        rows: [B] int64 in [0, R), the user factors of each interaction.
        positives: [B] int64 item ids.
        weights: [B] of the dtype of the factors, constants; None: 1 / B each, so that the loss is a mean.
        backend: see `score`; all take the products of torch. float64 is refused by "cpu", "cuda" and "triton".

    Returns:
        scalar of the dtype of the factors; 0 where B is 0.

    Raises:
        ValueError: an argument is wrong, or the loss is not finite. On a GPU it is returned as it is.
    """
    return softmax_losses(factors, rows, positives, weights, backend=backend).loss


def softmax_losses(
    factors: Factors, rows: Tensor, positives: Tensor, weights: Tensor | None = None, *, backend: str | None = None
) -> SoftmaxLoss:
    """`softmax_loss`, and the logarithms of the sums that it went through."""
    _tensor("rows", rows), _tensor("positives", positives)
    if weights is not None:
        _tensor("weights", weights)
        if weights.requires_grad:
            raise ValueError("weights: expected constants, got a tensor that requires grad: give weights.detach()")
    return SoftmaxLoss(
        *torch.ops.bdkernels.softmax_loss(*_parts(factors), rows, positives, weights, backend=_name(backend))
    )


def fused_loss(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill: Draws,
    guide_scores: Tensor,
    *,
    cf: str = "bce",
    distill_kind: str = "bce",
    distill_weight: float = 1.0,
    tau_learner: float = 1.0,
    tau_guide: float = 1.0,
    sparse: bool = True,
    backend: str | None = None,
) -> StepLoss:
    """One learner's whole training loss, with the gradient of just the rows that it touches.

        loss = CF(positives, negatives) + distill_weight * D(scores of the distilled items, guide_scores)

    D is `distill_loss`. CF is averaged over rows; of one with the positive's score s_0 and s_1 .. s_M of M negatives it is

    bce: binary cross entropy, label 1 for the positive alone: -log sigmoid(s_0) - sum of log sigmoid(-s_j);
    bpr: sum of -log sigmoid(s_0 - s_j) over the pairs (Rendle et al. 2009);
    softmax: log(exp(s_0) + sum of exp(s_j)) - s_0, without a correction for the negatives' probabilities, which is one constant
        where they are uniform (Bengio and Senecal 2008).

    Args:
        user_table: [U, d] float32 or float64 parameter; item_table: [N, d]; item_bias: [N] or None, of the same dtype.
        users: [B] int64; positives: [B] int64; negatives: [B, M] int64, item ids.
        distill: ids [B, k] and mask [B, k], from `sample` with the rows of `users`. What is masked out may hold anything.
        guide_scores: [B, k], the other model's scores of the distilled items; a constant to the gradient.
        cf: "bce", "bpr" or "softmax"; distill_kind: the `kind` of `distill_loss`, "bce" or "listwise".
        distill_weight: weight of the distillation; tau_learner, tau_guide: its temperatures, > 0.
        sparse: gradients as sparse rows, as from torch.nn.Embedding(sparse=True), so that a step's cost does not grow with N
            or U; False for dense gradients, which any optimizer takes.
        backend: see `score`. float64 tables are served by the reference alone, so "cpu" refuses them.

    Raises:
        ValueError: an argument is wrong, or a score or a loss is not finite. On a GPU the losses are returned as they are: NaN
            or infinite ones say that the gradient is not to be used.
    """
    checks.instance("distill", distill, Draws)
    checks.instance("sparse", sparse, bool)
    batch = users, positives, negatives, distill.ids, guide_scores, distill.mask
    step = StepInputs(
        user_table, item_table, item_bias, *batch, cf, distill_kind, distill_weight, tau_learner, tau_guide
    )
    if not step.typed():
        checks.step_types(step)
    step = step._replace(guide_scores=guide_scores.detach())
    return StepLoss(*torch.ops.bdkernels.fused_loss(*step, sparse=sparse, backend=_name(backend)))


def fused_step(
    optimizer: RowOptimizer,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill: Draws,
    guide_scores: Tensor,
    *,
    cf: str = "bce",
    distill_kind: str = "bce",
    distill_weight: float = 1.0,
    tau_learner: float = 1.0,
    tau_guide: float = 1.0,
    backend: str | None = None,
) -> StepLoss:
    """One learner's whole training step: the loss of `fused_loss`, its gradient, and the update of the rows, in one call.

    The optimizer stands where the tables do in `fused_loss`: it holds them and changes them in place, just the rows that the
    batch touches. Repeats of a user or an item are summed before the rule is applied, in the order of the batch, so that the
    result does not depend on the thread count. On an error nothing has changed.

    torch.compile makes constants of the numbers in a global variable, so hand it the optimizer as an argument; lr may then change
    from step to step. A captured CUDA graph repeats the numbers of its capture, but for those that the optimizer has on the
    device: an lr that is a tensor, and where it is `capturable` the count of steps, of which SparseAdam's lr_t depends.

    Args:
        optimizer: `SGD`, `Adagrad` or `SparseAdam` of (user_table, item_table, item_bias or None). Parameters that require
            grad are fine: autograd sees an in-place change, no gradient.
        users .. guide_scores, cf .. tau_guide: the batch, and what is minimised; see `fused_loss`.
        backend: see `score`. float64 tables are served by the reference alone, so "cpu" refuses them.

    Returns:
        the losses before the update; they carry no gradient.

    Raises:
        ValueError: an argument is wrong, or a score or a loss is not finite. On a GPU the losses are returned as they are, so as
            not to wait for them, and rows of the batch have changed: NaN or infinite ones say that the training has diverged.
    """
    if not (isinstance(optimizer, RowOptimizer) and isinstance(distill, Draws)):
        checks.instance("optimizer", optimizer, RowOptimizer)
        checks.instance("distill", distill, Draws)
    ids, mask = distill
    user_table, item_table, *bias = [table.detach() for table in optimizer.tables().values()]
    step = StepInputs(
        user_table, item_table, bias[0] if bias else None, users, positives, negatives, ids,
        guide_scores.detach() if isinstance(guide_scores, Tensor) else guide_scores, mask,
        cf, distill_kind, distill_weight, tau_learner, tau_guide,
    )  # fmt: skip
    if not step.typed():
        checks.step_types(step)
    rule, lr, count = optimizer.queued_rule()
    if lr is None and torch.compiler.is_dynamo_compiling():
        rule, lr = rule._replace(lr=0.0), torch.ones((), dtype=torch.float64) * rule.lr
    cf_loss, distill_loss = torch.ops.bdkernels.fused_step(
        *step, optimizer.row_state(), *rule, lr, count, backend="" if backend is None else _name(backend)
    )
    optimizer.count_step()
    return StepLoss(cf_loss + distill_weight * distill_loss, cf_loss, distill_loss)
