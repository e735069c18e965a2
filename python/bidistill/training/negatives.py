"""Negatives: unseen items of each interaction's own, without a loop and without rejection, or items that interactions share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bdkernels import Draws, Seen
from bdkernels.types.seen import Unseen
from bidistill.distributed.partition import Share
from bidistill.training.types import SharedNegatives

MARKS = 1 << 18  # a power of two, far more than items that a batch lists, and less than a cache


class NegativeSampler:
    """Draws unseen items, all equally likely: a random number r below the count of unseen items, then the r-th of them.

    Args:
        seen: sorted CSR rows of every user, numbered as in `draw`.
        n_items: size of the catalog.

    Attributes:
        always: whether every user has something unseen, so that no mask has a False.
    """

    def __init__(self, seen: Seen, n_items: int) -> None:
        self.unseen = Unseen(seen, n_items)
        self.always = bool((self.unseen.counts > 0).all())

    def draw(
        self, users: Tensor, n: int, generator: torch.Generator | None = None, share: Share | None = None
    ) -> Draws:
        """Draw n items for each of users [B] int64, with replacement.

        share: whose users these are, if they are not a whole batch: they draw what they draw in the whole batch.

        Returns:
            ids [B, n] int64, and mask [B, n] bool. A user who has seen every item gets id -1 and mask False.
        """
        unseen = self.unseen.counts[users][:, None]  # [B, 1]
        share = share or Share(users, None, users)
        uniform = torch.rand(share.everyone.shape[0], n, generator=generator, dtype=torch.float64)
        uniform = share.keep(uniform).to(users.device)
        nth = torch.minimum((uniform * unseen).long(), unseen - 1).clamp(min=0)
        ids = self.unseen.nth(users, nth)
        return Draws(ids, ids >= 0)


class SharedSampler:
    """Draws items that the rows of a batch have in common, so that a step touches about as many items as it has rows.

    A group of rows has a list of items, and scoring it is one product of matrices. Sources:

    shared: `negatives` uniform draws from the catalog for every `negatives` rows (a sampled softmax with uniform proposals:
        Bengio and Senecal 2008). All items have the same probability: log q is one constant, which the losses do not see.
    batch: the positives of the other rows of a group of `negatives` + 1 (Covington et al., RecSys 2016, draw theirs by
        popularity too). These have the probabilities q of the interactions, and log q is subtracted from all scores, of the
        positive too (Yi et al., RecSys 2019, equation 3).

    What a row's user has in training, the positive too, is masked.

    Args:
        seen: sorted CSR rows of every user.
        popularity: [n_items] int64, training interactions of each item.
        source: "shared" or "batch".
        negatives: how many a row has, at most.
    """

    def __init__(self, seen: Seen, popularity: Tensor, source: str, negatives: int) -> None:
        self.seen, self.n_items, self.source, self.negatives = seen, len(popularity), source, negatives
        # An item without an interaction is no positive, so its log q is never read.
        logs = (popularity.clamp(min=1) / popularity.sum().clamp(min=1)).log()
        self.log_q = logs.float() if source == "batch" else None

    def draw(self, users: Tensor, positives: Tensor, generator: torch.Generator | None = None) -> SharedNegatives:
        """The negatives of a batch of training interactions: users, positives [B] int64."""
        rows = len(users)
        if self.source == "batch":
            size = min(self.negatives + 1, rows)
            groups = math.ceil(rows / size)
            places = torch.arange(groups * size, device=users.device) % rows  # the first rows fill up the last group
            ids = positives[places].view(groups, size)
        else:
            groups = math.ceil(rows / self.negatives)
            size = math.ceil(rows / groups)
            ids = torch.randint(self.n_items, (groups, self.negatives), generator=generator).to(users.device)
        return SharedNegatives(ids, size, ~self.drawn_and_seen(users, ids, size), self.log_q)

    def drawn_and_seen(self, users: Tensor, ids: Tensor, size: int) -> Tensor:
        """[B, M] bool: which items of its group ids [G, M] each row's user has seen; groups have `size` rows."""
        (groups, width), device = ids.shape, users.device
        keys, places = (torch.arange(groups, device=device)[:, None] * self.n_items + ids).flatten().sort()
        listed = torch.zeros(MARKS, dtype=torch.bool, device=device)
        listed[_mark(keys)] = True
        seen = self.seen.rows(users)
        rows = torch.arange(len(users), device=device)
        starts = rows.div(size, rounding_mode="floor") * self.n_items
        had = starts.repeat_interleave(seen.counts(), output_size=len(seen.indices)) + seen.indices
        some = listed.index_select(0, _mark(had)).nonzero().flatten()  # which may be listed: nearly all of these are
        row, had = torch.searchsorted(seen.indptr, some, right=True) - 1, had.index_select(0, some)
        first, stop = (torch.searchsorted(keys, had, right=right) for right in (False, True))
        times = stop - first  # an item may be listed several times
        before = times.cumsum(0) - times
        at = torch.arange(int(times.sum()), device=device) + (first - before).repeat_interleave(times)
        found = torch.zeros(len(users), width, dtype=torch.bool, device=device)
        found[row.repeat_interleave(times), places[at] % width] = True
        return found


def _mark(keys: Tensor) -> Tensor:
    """[n] numbers below MARKS of int64 keys: the middle bits of a product (Knuth's multiplicative hashing)."""
    return (keys * 0x9E3779B1 >> 20) & (MARKS - 1)
