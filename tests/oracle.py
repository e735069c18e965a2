"""Oracles written independently of the library: dense, float64, sort-based, one user at a time, in NumPy.

The factors that tests feed are small multiples of 1/8, so every score is exact in float32 and float64 alike, ties are many, and
ranks must agree exactly.
"""

import numpy as np
import torch

from bdkernels import Factors, Seen


def exact(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Random multiples of 1/8 in [-2, 2]: sums of products of a few hundred of them are exact in float32."""
    return torch.from_numpy(rng.integers(-16, 17, size=shape).astype(np.float32) / 8)


def factors(rng: np.random.Generator, b: int, n: int, d: int, bias: bool = True) -> Factors:
    return Factors(exact(rng, b, d), exact(rng, n, d), exact(rng, n) if bias else None)


def random_seen(rng: np.random.Generator, b: int, n: int, most: int) -> Seen:
    """Each user has seen up to `most` items, the first user none, the second up to all but one."""
    rows = [rng.choice(n, size=int(rng.integers(0, min(most, n - 1) + 1)), replace=False) for _ in range(b)]
    if b:
        rows[0] = rows[0][:0]
    if b > 1 and n <= 600:
        rows[1] = rng.permutation(n)[: n - 1]
    return seen_of(rows)


def seen_of(rows) -> Seen:
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    flat = np.concatenate([np.sort(np.asarray(r, dtype=np.int64)) for r in rows]) if rows else np.zeros(0, np.int64)
    return Seen(torch.from_numpy(indptr), torch.from_numpy(flat.astype(np.int64)))


def seen_row(seen: Seen | None, b: int) -> np.ndarray:
    if seen is None:
        return np.zeros(0, np.int64)
    return seen.indices[seen.indptr[b] : seen.indptr[b + 1]].numpy()


def scores(f: Factors) -> np.ndarray:
    """[B, N] float64."""
    out = f.user_factors.double().numpy() @ f.item_factors.double().numpy().T
    return out if f.item_bias is None else out + f.item_bias.double().numpy()


def ranks(f: Factors, seen: Seen | None) -> np.ndarray:
    """[B, N] rank that every item has or, if seen, would have."""
    s = scores(f)
    out = np.empty(s.shape, np.int64)
    ids = np.arange(s.shape[1])
    for b in range(s.shape[0]):
        candidate = np.ones(s.shape[1], bool)
        candidate[seen_row(seen, b)] = False
        order = np.lexsort((ids, -s[b]))
        before = np.cumsum(candidate[order]) - candidate[order]
        out[b, order] = before + 1
    return out


def cf_loss(cf: str, positive, negatives) -> float:
    """Of scores [B] and [B, M], in long doubles: summed over a row, averaged over rows."""
    rows = []
    for s, others in zip(np.asarray(positive, np.longdouble), np.asarray(negatives, np.longdouble), strict=True):
        if cf == "softmax":
            top = max(s, others.max(initial=-np.inf))
            rows.append(np.log(np.exp(s - top) + np.exp(others - top).sum()) + top - s)
        else:
            margins = np.array([-s, *others]) if cf == "bce" else others - s
            rows.append(np.logaddexp(margins, np.longdouble(0)).sum())
    return float(np.mean(rows)) if rows else 0.0


def listwise(learner, guide, tau_learner: float, tau_guide: float, mask) -> float:
    """Mean over rows of KL(p || q), of shares of the live scores of a row [..., k], in long doubles."""

    def shares(scores, tau):
        weights = np.exp((scores - scores.max()) / tau)
        return weights / weights.sum(), (scores - scores.max()) / tau - np.log(weights.sum())

    rows, k = [], np.shape(learner)[-1]
    flat = (np.asarray(each).reshape(-1, k) for each in (learner, guide, mask)) if k else ()
    for x, y, live in zip(*flat, strict=True):
        if live.any():
            _, log_q = shares(x[live].astype(np.longdouble), tau_learner)
            p, log_p = shares(y[live].astype(np.longdouble), tau_guide)
            rows.append((p[p > 0] * (log_p - log_q)[p > 0]).sum())
        else:
            rows.append(0.0)
    return float(np.mean(rows)) if rows else 0.0


def probabilities(kind: str, parameter: float, side: str, rank_guide, rank_learner, unseen) -> np.ndarray:
    """[N] exact probabilities of one user; zeros if there is no positive weight. Formulas as design.md prints them."""
    n = unseen.sum()
    g = (rank_guide - rank_learner) / n * (1 if side == "over" else -1)
    with np.errstate(over="ignore"):
        w = {
            "tanh": lambda: np.tanh(parameter * np.maximum(g, 0)),
            "exp": lambda: np.exp(parameter * (g - g[unseen].max())),
            "linear": lambda: np.maximum(g, 0),
            "uniform": lambda: np.ones(len(g)),
            "rank_only": lambda: np.exp(-(rank_guide - 1) / parameter),
        }[kind]()
    w = np.where(unseen, w, 0.0)
    return w / w.sum() if w.sum() > 0 else w
