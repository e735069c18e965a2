"""Structs as the arguments of the compiled libraries: contiguous tensors and plain numbers. The C++ library takes an empty tensor
for None.
"""

import torch
from torch import Tensor

from bdkernels.ranges import DISTILL_LOSSES, FUSED_LOSSES
from bdkernels.types.factors import Factors
from bdkernels.types.rule import RULES, Rule
from bdkernels.types.seen import Seen
from bdkernels.types.step import StepInputs
from bdkernels.weights import KINDS, WeightCode


def rows(f: Factors) -> tuple[Tensor, Tensor, Tensor | None]:
    """users float32, items whose rows may be strided, bias or None."""
    items, bias = f.item_factors, f.item_bias
    return (
        f.user_factors.float().contiguous(),
        items if items.stride(1) == 1 else items.contiguous(),
        None if bias is None else bias.contiguous(),
    )


def factors(f: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """The same, an empty tensor for None."""
    users, items, bias = rows(f)
    return users, items, items.new_empty(0) if bias is None else bias


def lists(s: Seen | None) -> tuple[Tensor | None, Tensor | None]:
    """indptr, indices; None twice for None."""
    return (None, None) if s is None else (s.indptr.contiguous(), s.indices.contiguous())


def seen(s: Seen | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The same, two empty tensors for None."""
    indptr, indices = lists(s)
    if indptr is None or indices is None:
        none = torch.empty(0, dtype=torch.int64, device=like.device)
        return none, none
    return indptr, indices


def weight(code: WeightCode) -> tuple[int, float, bool]:
    """Number of the kind, -1 for none; parameter, flipped."""
    kind, parameter, flipped = code
    return KINDS.index(kind) if kind else -1, parameter, flipped


def tables(s: StepInputs, none: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """user_table and item_table, whose rows may be strided; item_bias, or `none`. The tables themselves where a step may change
    them.
    """
    user, item, bias = s.user_table, s.item_table, s.item_bias
    return (
        user if user.stride(1) == 1 else user.contiguous(),
        item if item.stride(1) == 1 else item.contiguous(),
        none if bias is None else bias.contiguous(),
    )


def batch(s: StepInputs, none: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """users, positives, negatives, distill_ids, guide_scores; distill_mask, or `none`."""
    return (
        s.users.contiguous(), s.positives.contiguous(), s.negatives.contiguous(), s.distill_ids.contiguous(),
        s.guide_scores.contiguous(), none if s.distill_mask is None else s.distill_mask.contiguous(),
    )  # fmt: skip


def objective(s: StepInputs) -> tuple[int, int, float, float, float]:
    """Numbers of the two losses, as csrc/core/step.h counts them; and the numbers of the loss."""
    losses = FUSED_LOSSES.index(s.cf), DISTILL_LOSSES.index(s.distill_kind)
    return *losses, s.distill_weight, s.tau_learner, s.tau_guide


def rule(r: Rule) -> tuple[int, float, float, float, float, float]:
    """Number of the rule, and its numbers."""
    return RULES.index(r.kind), *r[1:]
