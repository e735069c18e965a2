"""What methods that learn from lists of items have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bdkernels import Draws, Scorer, Uniform, Weight, sample
from bidistill.distill.method import Request
from bidistill.seeds import seed_of

NOTHING = -1e30  # the score of an item that is not there: it has no share in a sum of exponentials, nor a gradient


def check_positive(settings: object, *names: str) -> None:
    """Raise ValueError for a setting that is not above 0, or is no whole number where its type is int."""
    for name in names:
        value = getattr(settings, name)
        whole = isinstance(getattr(type(settings), name), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a {'whole ' if whole else ''}number above 0, found {value!r}")


def drawn(asked: Request, guide: Scorer, learner: Scorer, k: int, weight: Weight, stream: str = "") -> Draws:
    """k unseen items for each row, drawn by `bdkernels.sample` with replacement.

    Args:
        guide, learner: of the same rows; the weight's ranks are theirs.
        stream: draws of another stream are independent of these.
    """
    counted = (
        torch.zeros(1, dtype=torch.int64, device=asked.users.device) if weight == Uniform() else None
    )  # no rank counts
    return sample(
        guide,
        learner,
        k,
        asked.seen,
        to_student=weight,
        to_teacher=None,
        user_ids=asked.users,
        step=asked.step,
        seed=seed_of(asked.seed, stream) if stream else asked.seed,
        occurrence=asked.occurrence,
        subset=counted,
    ).to_student


def joined(*parts: Draws) -> Draws:
    """Draws [B, k] side by side."""
    return Draws(torch.cat([part.ids for part in parts], 1), torch.cat([part.mask for part in parts], 1))


def of_ids(ids: Tensor) -> Draws:
    """Draws of ids [B, k] int64, -1 where there is none."""
    return Draws(ids, ids >= 0)


def distinct(draws: Draws) -> Draws:
    """Each item of a row once: later places of it are masked. Draws with replacement become draws without, in their order."""
    ids = draws.ids.where(draws.mask, -1)
    order = ids.sort(dim=1, stable=True)
    repeated = torch.zeros_like(draws.mask)
    repeated[:, 1:] = order.values[:, 1:] == order.values[:, :-1]
    return of_ids(ids.masked_fill(torch.zeros_like(repeated).scatter(1, order.indices, repeated), -1))


def relaxed_list_loss(
    scores: Tensor, guide_scores: Tensor, mask: Tensor, others: Tensor, others_mask: Tensor
) -> Tensor:
    """The negative log likelihood of a list in the guide's order, above other items that have no order among them:

        - sum_k log( exp(s_k) / (sum_{i >= k} exp(s_i) + sum_j exp(o_j)) ),

    where s_1, s_2, ... are the learner's scores of the list's items, the best by the guide first, and o_j those of the others:
    equation 6 of DE-RRD (Kang et al., CIKM 2020), after Plackett and Luce. Averaged over rows; one without a list counts 0.

    Args:
        scores, guide_scores: [B, K] float32, of the list's items in any order; the gradient goes to `scores`.
        mask: [B, K] bool, which of them are there.
        others, others_mask: [B, L], the learner's scores of the others, likewise.
    """
    order = guide_scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    live = mask.gather(1, order)
    ordered = scores.gather(1, order).masked_fill(~live, NOTHING)
    below = ordered.flip(1).logcumsumexp(1).flip(1)
    if others.shape[1]:
        below = torch.logaddexp(below, others.masked_fill(~others_mask, NOTHING).logsumexp(1, keepdim=True))
    return (below - ordered).where(live, 0.0).sum(1).mean()


def cross_entropy(scores: Tensor, guide_scores: Tensor, mask: Tensor) -> Tensor:
    """[B]: - sum_i p_i log q_i, where p and q are the softmaxes of the guide's and the learner's scores over the live items of a
    row; 0 where there are none."""
    chances = guide_scores.masked_fill(~mask, NOTHING).softmax(1).where(mask, 0.0)
    return -(chances * scores.masked_fill(~mask, NOTHING).log_softmax(1).where(mask, 0.0)).sum(1)


def of_shares(draws: Draws, scores: Tensor) -> tuple[Draws, Tensor]:
    """Draws and logits [B, k] of a guide whose scores [B, k] are in proportion to chances: their logarithms.

    A softmax at the temperature tau then gives chances in proportion to scores ** (1 / tau), whatever the scale of a user's
    scores is. An item of a score that is not above 0 has no chance: it is masked.
    """
    live = draws.mask & (scores > 0)
    return Draws(draws.ids, live), scores.where(live, 1.0).log()
