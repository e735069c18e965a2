"""Sampling, both models and both directions: (a), (b), (c) of issue 3, and (d), the same users over growing catalogs.

Random factors stand for trained ones: the cost does not depend on the values but for the share of proposals that is accepted,
and that is about the released settings' (48 % and 12 %) for independent models, too.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import bdkernels as bd
from bdkernels.tools.measure import Work
from benchmarks import peers
from benchmarks.case import Case
from benchmarks.floor import Floor
from benchmarks.machine import memory_gb

K, SEEN = 32, 25
SIZES = {  # users, items, dims of teacher and student
    "a": (256, 25_187, (50, 5)),
    "b": (64, 1_000_000, (64, 16)),
    "c": (1024, 1_000_000, (128, 32)),
    "1e4": (64, 10_000, (64, 16)),
    "1e5": (64, 100_000, (64, 16)),
    "1e7": (64, 10_000_000, (64, 16)),
    "10m": (1024, 10_000_000, (64, 16)),  # only a GPU has time for it
}
TINY = (8, 600, (5, 2))
PER_USER_PAIRS = 100_000_000  # (user, item) pairs that one user at a time takes minutes for
CHECKED_USERS, FLOAT64_USERS, CHUNK = 16, 2, 1 << 17


def build(name: str, *, tiny: bool) -> Case:
    """The case of this name in SIZES."""
    n_users, n_items, dims = TINY if tiny else SIZES[name]
    teacher, student, seen = inputs(n_users, n_items, dims)
    asked = (teacher, student, seen, K)
    contenders: dict[str, Any] = {"bdkernels": partial(draws, *asked), "floor": Floor(teacher, student)}
    absent = {}
    if (needs := n_users * n_items * peers.DENSE_BYTES / 1e9) > memory_gb():
        absent["dense_eager"] = f"out of memory: asks for {needs:.0f} GB"
    else:
        contenders["dense_eager"] = partial(peers.dense_eager, *asked)
    for peer in ("dense_compiled", "per_user_argsort") if name in ("a", "b", "c", "10m") else ():
        if peer == "dense_compiled" and "dense_eager" in absent:
            absent[peer] = absent["dense_eager"]
        elif peer == "per_user_argsort" and n_users * n_items > PER_USER_PAIRS:
            absent[peer] = "takes minutes: four sorts of the catalog for each user"
        else:
            contenders[peer] = partial(getattr(peers, peer), *asked)
    if "dense_compiled" in contenders:
        contenders["dense_compiled"].sets_up = True
    pairs = n_users * n_items
    table_bytes = sum(4 * (n_users + n_items) * d for d in dims)
    return Case(
        {"users": n_users, "items": n_items, "dims": list(dims), "draws": K},
        contenders,
        partial(check, teacher, student, seen),
        Work(2 * pairs, 2 * pairs * sum(dims), table_bytes + 2 * n_users * K * 8),
        absent,
        frozenset({"dense_compiled", "per_user_argsort"} if name == "b" else ()),
    )


def inputs(n_users: int, n_items: int, dims: tuple[int, int]) -> tuple[bd.Factors, bd.Factors, bd.Seen]:
    """Teacher and student, whose factors are the teacher's first ones and noise, and seen rows; made in place, for 10^7 items."""
    torch.manual_seed(7)
    d_t, d_s = dims
    teacher = bd.Factors(*(torch.empty(n, d_t).uniform_(-1, 1) for n in (n_users, n_items)))
    items = torch.empty(n_items, d_s).uniform_(-1, 1).add_(teacher.item_factors[:, :d_s])
    student = bd.Factors(teacher.user_factors[:, :d_s].clone(), items)
    pairs = torch.arange(n_users).repeat(SEEN), torch.randint(0, n_items, (SEEN * n_users,))
    return teacher, student, bd.Seen.from_pairs(*pairs, n_users)


def draws(teacher: bd.Factors, student: bd.Factors, seen: bd.Seen, k: int) -> tuple[Tensor, Tensor]:
    """This library, with the backend that it chooses."""
    user_ids = torch.arange(len(teacher.user_factors), device=teacher.user_factors.device)
    out = bd.sample(teacher, student, k, seen, user_ids=user_ids, step=0)
    return out.to_student.ids, out.to_teacher.ids


def check(teacher: bd.Factors, student: bd.Factors, seen: bd.Seen, results: dict[str, Any]) -> None:
    """Our ranks against float64 counts; then everyone's draws by those ranks: unseen, in support, and equal mean gaps."""
    users = torch.arange(min(CHECKED_USERS, teacher.user_factors.shape[0]))
    models = [f._replace(user_factors=f.user_factors[users]) for f in (teacher, student)]
    rows = seen.rows(users)
    n = (teacher.n_items - rows.counts())[:, None]
    taken = set(zip(rows.row_of_each().tolist(), rows.indices.tolist(), strict=True))
    gaps: dict[str, list[Tensor]] = {}
    for name, result in results.items():
        if name == "floor":
            continue
        gaps[name] = []
        for ids in (some[users] for some in result):
            drawn = zip(users[:, None].expand_as(ids).flatten().tolist(), ids.flatten().tolist(), strict=True)
            assert not taken & set(drawn), f"{name} drew a seen item"
            assert ids.min() >= 0, f"{name} drew too few items"
            ranks = [bd.rank(f, ids, rows) for f in models]
            if name == "bdkernels":
                check_ranks(models, ids, rows, ranks)
            gaps[name].append((ranks[0] - ranks[1]) / n)
        assert (gaps[name][0] > -4 / n).all(), f"{name} drew an item of weight 0"  # a sort may swap neighbours
    for name, pair in gaps.items():
        for own, other in zip(gaps["bdkernels"], pair, strict=True):
            error = (own.var() / own.numel() + other.var() / other.numel()).sqrt()
            assert (own.mean() - other.mean()).abs() <= 6 * error, f"{name} draws from another distribution"
    if "floor" in results:
        results["floor"].check()


def check_ranks(models: list[bd.Factors], ids: Tensor, rows: bd.Seen, ranks: list[Tensor]) -> None:
    """Ranks of a few users against counts in float64, a chunk of items at a time; fp32 may swap neighbours."""
    for f, found in zip(models, ranks, strict=True):
        users, few = f.user_factors[:FLOAT64_USERS].double(), ids[:FLOAT64_USERS]
        bias = torch.zeros(f.n_items) if f.item_bias is None else f.item_bias
        own = (users[:, None] * f.item_factors[few].double()).sum(2) + bias[few]
        want = torch.ones_like(few)
        for first in range(0, f.n_items, CHUNK):
            scores = users @ f.item_factors[first : first + CHUNK].double().T + bias[first : first + CHUNK]
            for row, score in enumerate(scores):
                mine = rows.indices[rows.indptr[row] : rows.indptr[row + 1]] - first
                score[mine[(mine >= 0) & (mine < len(score))]] = -torch.inf
            want += (scores[:, None] > own[:, :, None]).sum(2)
        slack = 2 + f.n_items // 100_000
        assert (found[: len(few)] - want).abs().max() <= slack, "ranks differ from a float64 count"
