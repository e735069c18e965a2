"""A metric of one's own: average precision at k."""

import numpy as np
from bidistill import METRICS, UserRanks


def average_precision(held: UserRanks, k: int) -> np.ndarray:
    """The precision at each hit in the top k, averaged over the hits that the user's held-out items allow there."""
    held = held.sorted()
    hits = np.arange(1, len(held.ranks) + 1) - held.starts[held.rows]  # of the user, down to each held-out item
    return held.sum((held.ranks <= k) * hits / held.ranks) / np.minimum(held.counts, k)


METRICS.register("average_precision", average_precision)
