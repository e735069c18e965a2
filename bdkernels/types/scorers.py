"""What `rank`, `topk`, `count_above` and `sample` score with: factors, scores that the caller has, or blocks of them."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from bdkernels.types.factors import Factors


class Scores(NamedTuple):
    """Scores of every item for each user of the batch, which the caller has in memory.

    Attributes:
        scores: [B, N] float32, of any strides; infinities are fine, NaN is an error.
    """

    scores: Tensor

    @property
    def n_rows(self) -> int:
        """B, the users of the batch."""
        return self.scores.shape[0]

    @property
    def n_items(self) -> int:
        """N, the items of the catalog."""
        return self.scores.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        return self.scores.device


class ItemScorer(Protocol):
    """Any object that scores B users on blocks of items: a model whose score is no dot product.

    The operators ask for blocks of a bounded size, first to last, and hold one at a time, so no [B, N] tensor exists. They ask
    more than once, and an item must get the same bits each time: a model is in evaluation mode, without dropout. It is an error
    if the score of a listed item changes while the operator counts.

    It may have two methods more, which save work and change no result:

        listed(ids: Tensor) -> Tensor
            scores [B, C] float32 of listed items [B, C] int64, with the bits that `block` gives to them. Without it they are
            taken from a pass over the blocks before the pass that counts.
        take(rows: Tensor) -> ItemScorer
            the scorer of some of its rows [R] int64. Without it all B rows are scored also where a few are asked for. Where its
            bits differ from those of the whole batch, as those of matrix products may, ranks are those of the bits at hand.
    """

    @property
    def n_rows(self) -> int:
        """B, the users of the batch."""
        ...

    @property
    def n_items(self) -> int:
        """N, the items of the catalog, fewer than 2^31."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the blocks are, and the ids and `seen` of the call."""
        ...

    def block(self, first: int, stop: int) -> Tensor:
        """Scores [B, stop - first] float32 of the items first .. stop - 1; infinities are fine, NaN is an error."""
        ...


Scorer: TypeAlias = Factors | Scores | ItemScorer
