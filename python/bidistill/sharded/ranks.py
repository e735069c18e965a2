"""Evaluation where the model lies on several processes: each ranks for its own users, and all have the ranks of all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bdkernels import Seen
from bidistill.evaluate import batches
from bidistill.models import Recommender
from bidistill.part import Part


def ranks_of_all(
    model: Recommender, part: Part, users: np.ndarray, items: np.ndarray, batch: int, seen: Seen
) -> np.ndarray:
    """Exact ranks int64 [n] of the held-out interactions of all processes, on every one.

    Args:
        users, items: int64 [n], the interactions: the same on every process.
        seen: rows of this process's users.
    """
    exchange, device = part.world.exchange, seen.indptr.device
    owner = users // max(1, len(part.world.range(part.n_users, 0)))
    mine = np.flatnonzero(owner == part.world.rank)
    found = np.empty(len(mine), dtype=np.int64)
    own = batches(users[mine] - part.users.start, items[mine], batch)
    while True:  # as many calls on every process, with the widest list of any
        user_ids, item_ids, rows, columns, positions = next(own, _NOBODY)
        width = max(part.world.agree("evaluate", item_ids.shape[1]))
        if not width:
            break
        some = torch.from_numpy(user_ids).to(device)
        listed = torch.from_numpy(
            np.pad(item_ids, ((0, 0), (0, width - item_ids.shape[1])), "edge" if len(item_ids) else "empty")
        )
        ranked = part.rank(model.factors(some), listed.to(device), seen.rows(some))
        found[positions] = ranked.cpu().numpy()[rows, columns]
    sizes = np.bincount(owner, minlength=part.world.size).tolist()
    everyones: Tensor = exchange.gather(torch.from_numpy(found), sizes)
    out = np.empty(len(users), dtype=np.int64)
    out[np.argsort(owner, kind="stable")] = everyones.numpy()
    return out


_NONE = np.empty(0, dtype=np.int64)
_NOBODY = (_NONE, np.empty((0, 0), dtype=np.int64), _NONE, _NONE, _NONE)
