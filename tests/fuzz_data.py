"""What test_fuzz.py feeds: cases, the tensors that they stand for, which of those are wrong, and dense oracles in C's fmaf."""

import ctypes
import ctypes.util
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import oracle
import torch
from hypothesis import strategies as st

import bdkernels as bd

SIZES = (0, 1, 2, 3, 5, 7, 16, 17, 25, 33, 65)
KINDS = ("exact", "ties", "normal", "subnormal", "huge", "infinite", "nan")
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "offset", "negative")
DTYPES, BAD_DTYPES = ("float32", "float32", "float16", "bfloat16"), ("float64", "int64")
SEEN, BAD_SEEN = (
    ("none", "random", "all", "strided", "empty"),
    ("unsorted", "repeated", "falls", "wraps", "long", "outside"),
)
OUTSIDE = (-1, -(2**63), 2**31, 2**32, 2**63 - 1)
SPECIAL = {
    "subnormal": (0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-39, 1.2e-38, 1e-23, -1e-20, 1.0),
    "huge": (0.0, -0.0, 3e38, -3e38, 3.4028235e38, 1e20, -1e20, 1.0, -1.0, 1e-45),
    "infinite": (np.inf, -np.inf, 1.0, -1.0, 2.0, 0.5),
    "nan": (np.nan, *[0.25 * i for i in range(1, 40)]),
}


@dataclass(frozen=True)
class Case:
    """An example: sizes, and which of each sort of data, all filled from one seed."""

    b: int
    n: int
    d: int
    c: int
    kind: str = "exact"
    dtype: str = "float32"
    layout: str = "contiguous"
    ids: str = "good"
    seen: str = "none"
    bias: bool = False
    number: int = 0  # which k, tau, alpha, seed: see Numbers
    wrong: bool = False  # whether numbers may be wrong too
    tile: int = 0
    seed: int = 0

    def rng(self, salt: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, salt))


def cases() -> st.SearchStrategy[Case]:
    """Good ones in the main, since one wrong argument hides the others; in the rest anything may be wrong."""
    good = some_cases(DTYPES, ("good", "repeated"), SEEN, False)
    one_wrong = (
        some_cases(BAD_DTYPES, ("good",), SEEN, False),
        some_cases(DTYPES, ("wrong",), SEEN, False),
        some_cases(DTYPES, ("good",), BAD_SEEN, False),
        some_cases(DTYPES, ("good",), SEEN, True),
    )
    return st.one_of(
        good, good, good, good, *one_wrong, some_cases(DTYPES + BAD_DTYPES, ("wrong",), SEEN + BAD_SEEN, True)
    )


def some_cases(dtypes, ids, seen, wrong: bool) -> st.SearchStrategy[Case]:
    one = st.sampled_from
    return st.builds(
        Case,
        b=one((0, 1, 1, 2, 3, 5, 25, 65)),
        n=one((*SIZES, 257, 1025)),
        d=one((0, 1, 2, 3, 5, 17)),
        c=one((0, 1, 2, 4, 5, 6, 17, 40)),
        kind=one(KINDS),
        dtype=one(dtypes),
        layout=one(LAYOUTS),
        ids=one(ids),
        seen=one(seen),
        bias=st.booleans(),
        number=st.integers(0, 10**6),
        wrong=st.just(wrong),
        tile=one((0, 0, 1, 7, 64)),
        seed=st.integers(0, 2**32 - 1),
    )  # fmt: skip


# ---- tensors ----


def layout(kind: str, t: torch.Tensor) -> torch.Tensor:
    """The same values (other rows where expanded) in other strides, with poison in the gaps."""
    if kind == "transposed" and t.dim() == 2:
        return t.T.contiguous().T
    if kind == "sliced" and t.dim():
        poison = float("nan") if t.is_floating_point() else 0 if t.dtype == torch.bool else -(2**62)
        wide = torch.full([2 * s + 1 for s in t.shape], poison, dtype=t.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in t.shape)]
        view.copy_(t)
        return view
    if kind == "expanded" and t.dim() and t.shape[0]:
        return t[:1].clone().expand_as(t)
    if kind == "offset":
        return torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape)
    if kind == "negative" and t.is_floating_point():
        return torch._neg_view(-t)
    return t


def floats(case: Case, salt: int, *shape: int, dtype: str | None = None) -> torch.Tensor:
    rng = case.rng(salt)
    if case.kind in SPECIAL:
        values = rng.choice(np.array(SPECIAL[case.kind], np.float32), shape)
        plain = rng.random(shape) < rng.choice([0.0, 0.5, 0.99])  # few or many of them
        values = np.where(plain, rng.integers(-16, 17, shape).astype(np.float32) / 8, values)
    elif case.kind == "normal":
        values = rng.standard_normal(shape)
    else:
        values = rng.integers(-16, 17, shape) / 8 if case.kind == "exact" else rng.integers(0, 2, shape)
    values = torch.from_numpy(np.asarray(values)).to(getattr(torch, dtype or case.dtype))
    return layout(case.layout, values)


def factors(case: Case, student: bool = False) -> bd.Factors:
    d = min(case.d, max(1, 40_000 // max(1, case.b * case.n)))  # the oracle is slow
    d = min(2, d) if student else d
    salt = 10 if student else 0
    bias = floats(case, salt + 3, case.n) if case.bias else None
    return bd.Factors(floats(case, salt + 1, case.b, d), floats(case, salt + 2, case.n, d), bias)


def ids(case: Case) -> torch.Tensor:
    return some_ids(case, 4, case.n, case.b, case.c)


def some_ids(case: Case, salt: int, limit: int, *shape: int) -> torch.Tensor:
    rng = case.rng(salt)
    values = rng.integers(0, max(1, limit), shape)
    if case.ids == "repeated":
        values[...] = values.flat[0] if values.size else 0
    if case.ids == "wrong" and values.size:
        values.flat[rng.integers(values.size)] = rng.choice([*OUTSIDE, limit])
    return layout(case.layout, torch.from_numpy(values))


def user_ids(case: Case) -> torch.Tensor:
    return some_ids(case, 5, 2**32, case.b)


def occurrences(case: Case) -> torch.Tensor | None:
    return None if case.rng(17).random() < 0.5 else some_ids(case, 18, 2**24, case.b)


def ties(case: Case) -> torch.Tensor:
    rng = case.rng(6)
    values = rng.integers(-3, case.n + 3, (case.b, case.c))
    values = np.where(rng.random(values.shape) < 0.2, rng.choice(OUTSIDE, values.shape), values)
    return layout(case.layout, torch.from_numpy(values))


def thresholds(case: Case) -> torch.Tensor:
    return floats(case, 8, case.b, case.c, dtype="float32")


def seen(case: Case) -> bd.Seen | None:
    rng, b, n = case.rng(9), case.b, case.n
    if case.seen == "none":
        return None
    share = {"all": 1.0, "empty": 0.0}.get(case.seen, rng.random())
    rows = [np.sort(rng.permutation(n)[: int(share * n)]) for _ in range(b)]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    indices = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64)
    if case.seen == "unsorted":
        indices = indices[::-1].copy()
    if case.seen == "repeated" and len(indices) > 1:
        indices[1] = indices[0]
    if case.seen == "outside" and len(indices):
        indices[-1] = rng.choice([*OUTSIDE, n])
    if case.seen == "falls" and b > 1:
        indptr[1] = indptr[-1] + 1
    if case.seen == "wraps" and b > 2:
        indptr[1:3] = 2**63 - 1, -2
    if case.seen == "long":
        indptr = np.append(indptr, indptr[-1])
    rows = torch.from_numpy(indptr), torch.from_numpy(indices)
    return bd.Seen(*(layout("sliced", t) for t in rows)) if case.seen == "strided" else bd.Seen(*rows)


def mask(case: Case, shape: tuple[int, ...]) -> torch.Tensor | None:
    rng = case.rng(20)
    return (
        layout(case.layout, torch.from_numpy(np.asarray(rng.random(shape) < rng.choice([0, 0.5, 1]))))
        if case.bias
        else None
    )


def shape(case: Case) -> tuple[int, ...]:
    return ((), (case.n,), (case.b, case.c), (2, case.b, case.d))[case.number % 4]


class Numbers:
    """Settings that the number of a case picks: extreme ones, and, where the case may be wrong, wrong ones."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def one(self, salt: int, good: tuple, bad: tuple = ()):
        rng = np.random.default_rng((self.case.number, salt))
        values = bad if self.case.wrong and bad and rng.random() < 0.3 else good
        return values[int(rng.integers(len(values)))]

    def offset(self) -> int:
        last = 2**31 - self.case.n
        return self.one(0, (0, 0, 1, 1000, last), (last + 1, -1, 2**63 - 1, -(2**63), 2**64))

    def topk(self) -> int:
        n = self.case.n
        return self.one(1, (1, 2, n // 2, n - 1, n), (n + 1, 0, -1, 2**31, 2**63 - 1, 2**64))

    def draws(self) -> int:
        return self.one(2, (1, 2, 3, 17, 40, 300), (0, -1, 2**31, 2**63 - 1, 2**64))

    def seed(self) -> int:
        return self.one(3, (0, 1, -1, 2**32, 2**63 - 1, -(2**63)), (2**63, -(2**64)))

    def step(self) -> int:
        return self.one(4, (0, 1, 7, 2**31, 2**32 - 1), (2**32, -1, 2**64))

    def weight(self) -> bd.Weight | str:
        value = self.one(5, (1e-300, 1e-3, 2.5, 252.0, 252, 1e300), (0, -1.0, np.inf, np.nan, 10**400, "1"))
        side = self.one(6, ("over", "over", "under"), ("left",))
        kind = self.one(7, (bd.Tanh, bd.Exp, bd.RankOnly, bd.Linear, bd.Uniform))
        try:
            if kind in (bd.Tanh, bd.Exp):
                return kind(value, side=side) if self.one(8, (True, False)) else kind(eps=value, side=side)
            return kind(value) if kind is bd.RankOnly else kind(side=side) if kind is bd.Linear else kind()
        except (ValueError, TypeError) as error:
            return str(error)

    def tau(self, which: int) -> float:
        bad = (0.0, -1.0, 1e-300, 1e300, np.inf, np.nan, 10**400)
        return self.one(9 + which, (0.5, 1, 1.0, 2.0, 5.0, 1e-30, 1e30), bad)

    def loss_dtypes(self) -> tuple[str, str]:
        names = ("float16", "bfloat16", "float32", "float64")
        return self.one(11, names), self.one(12, names)

    def cf(self) -> str:
        return self.one(14, ("bce", "bpr", "softmax"), ("hinge", ""))

    def distill_kind(self) -> str:
        return self.one(18, ("bce", "listwise"), ("mse", ""))

    def distill_weight(self) -> float:
        return self.one(13, (1.0, 0.5, 0.0, -1.0, 3), (np.nan, np.inf, 10**400))

    def mild_tau(self, which: int) -> float:
        return self.one(15 + which, (0.5, 2.0, 1), (0.0, -1.0, np.nan))

    def sparse(self) -> bool:
        return self.one(17, (True, False))


# ---- what is wrong ----


def given(*parts) -> list[torch.Tensor]:
    """The tensors in nested arguments."""
    flat = []
    for part in parts:
        flat += given(*part) if isinstance(part, tuple) else [part] if isinstance(part, torch.Tensor) else []
    return flat


def memory(t: torch.Tensor) -> torch.Tensor:
    """Every byte of the memory that a tensor lies in, gaps and all."""
    return torch.empty(0, dtype=torch.uint8).set_(t.detach().untyped_storage()).clone()


def bad_factors(f: bd.Factors) -> str | None:
    return (
        "the dtype of the factors"
        if f.user_factors.dtype not in (torch.float32, torch.float16, torch.bfloat16)
        else None
    )


def bad_ids(values: torch.Tensor, b: int, limit: int) -> str | None:
    return None if all(0 <= i < limit for i in values.flatten().tolist()) else "an id is out of range"


def bad_seen(s: bd.Seen | None, b: int, limit: int) -> str | None:
    if s is None:
        return None
    indptr, indices = s.indptr.tolist(), s.indices.tolist()
    if len(indptr) != b + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or indptr != sorted(indptr):
        return "indptr"
    rows = [indices[a:z] for a, z in pairwise(indptr)]
    good = all(r == sorted(set(r)) and all(0 <= i < limit for i in r) for r in rows)
    return None if good else "indices"


# ---- oracles ----

_fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
_fmaf.restype, _fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
_fma = np.frompyfunc(_fmaf, 3, 1)


def dense(f: bd.Factors) -> np.ndarray:
    """[B, N] float32 scores, one fmaf of the C library after the other."""
    users, items = (t.detach().resolve_neg().float().numpy() for t in (f.user_factors, f.item_factors))
    bias = np.zeros(len(items), np.float32) if f.item_bias is None else f.item_bias.resolve_neg().float().numpy()
    out = np.broadcast_to(bias, (len(users), len(items))).copy()
    with np.errstate(all="ignore"):  # overflow and NaN are wanted here
        for k in range(users.shape[1]):
            out = _fma(users[:, k, None], items[None, :, k], out).astype(np.float32).reshape(out.shape)
    return out


def ranks(scores: np.ndarray, s: bd.Seen | None) -> np.ndarray:
    """[B, N] rank that every item has or, if seen, would have."""
    out = np.empty(scores.shape, np.int64)
    for row, values in enumerate(scores):
        candidate = np.ones(len(values), bool)
        if s is not None:
            candidate[s.indices[s.indptr[row] : s.indptr[row + 1]].numpy()] = False
        order = np.lexsort((np.arange(len(values)), -values))
        out[row, order] = 1 + np.cumsum(candidate[order]) - candidate[order]
    return out


def distill(z, g, tau_z, tau_g, live):
    """Loss, slope of each term for z / tau, and the mean size of |z / tau| (NaN where a score that counts is not finite)."""
    with np.errstate(all="ignore"):
        x, y = (t.resolve_neg().double().numpy().astype(np.longdouble) / tau for t, tau in ((z, tau_z), (g, tau_g)))
        target = 1 / (1 + np.exp(-y))
        terms = np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))
        count = max(1, live.sum())
        size = np.abs(x)[live].sum() / count if np.isfinite(y[live]).all() or not np.isnan(y[live]).any() else np.nan
        return float(terms[live].sum() / count), (1 / (1 + np.exp(-x)) - target).astype(np.float64), float(size)


def check_distill(got, z, g, tau_z, tau_g, mask):
    assert not isinstance(got, str), got
    (grad,) = torch.autograd.grad(got, z)
    assert (got.dtype, grad.dtype) == (torch.float64 if z.dtype == torch.float64 else torch.float32, z.dtype)
    live = np.ones(z.shape, bool) if mask is None else mask.numpy()
    assert (grad.double().numpy()[~live] == 0).all()
    want, slope, size = distill(z.detach(), g, tau_z, tau_g, live)
    if not live.any():
        assert got.item() == 0
    elif np.isnan(size):
        assert np.isnan(got.item())
    elif size * live.sum() < 1e37 and tau_z >= 1e-6:  # else float32 overflows, and rightly
        fine = 1e-13 if torch.float64 == z.dtype == g.dtype else 3e-6
        assert abs(got.item() - want) <= fine * (1 + size)
        coarse = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(z.dtype, fine)
        bound = (fine + coarse * np.abs(slope)) / tau_z / live.sum() + (6e-8 if z.dtype == torch.float16 else 1e-37)
        largest = torch.finfo(z.dtype).max
        exact = np.clip(slope / tau_z / live.sum(), -largest, largest)
        assert (np.abs(np.clip(grad.double().numpy(), -largest, largest) - exact)[live] <= bound[live]).all()


def softmax_oracle(f: bd.Factors, rows: torch.Tensor, positives: torch.Tensor) -> tuple[float, float]:
    """The softmax loss over the catalog, and the size of what it is a difference of."""
    users, items, bias = (None if t is None else t.resolve_neg().double().numpy() for t in f)
    if not len(rows):
        return 0.0, 0.0
    scores = (users @ items.T + (0 if bias is None else bias))[rows.numpy()]
    most = scores.max(1)
    logs = most + np.log(np.exp(scores - most[:, None]).sum(1))
    sizes = (np.abs(users) @ np.abs(items).T + (0 if bias is None else np.abs(bias))).max()
    return float((logs - scores[np.arange(len(rows)), positives.numpy()]).mean()), float(sizes)


def takes(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether there is such a distillation loss of scores of this shape."""
    return kind == "bce" or (kind == "listwise" and bool(shape))


def check_listwise(got, z, g, tau_z, tau_g, mask, mild):
    assert not isinstance(got, str), got
    (grad,) = torch.autograd.grad(got, z)
    assert (got.dtype, grad.dtype) == (torch.float64 if z.dtype == torch.float64 else torch.float32, z.dtype)
    live = np.ones(z.shape, bool) if mask is None else mask.numpy()
    assert (grad.double().numpy()[~live] == 0).all()
    if mild and min(tau_z, tau_g) >= 0.5:
        rows = [each.detach().resolve_neg().double().numpy() for each in (z, g)]
        fine = 1e-12 if torch.float64 == z.dtype == g.dtype else 3e-6
        assert abs(got.item() - oracle.listwise(*rows, tau_z, tau_g, live)) <= fine * (1 + np.abs(rows).max(initial=0))
        coarse = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(z.dtype, 1e-6)
        assert (grad.double().sum(-1).abs() <= coarse * z.shape[-1] / tau_z).all()


class Step(NamedTuple):
    """Arguments of fused_loss."""

    user_table: torch.Tensor
    item_table: torch.Tensor
    item_bias: torch.Tensor | None
    users: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    distill: bd.Draws
    guide_scores: torch.Tensor
    cf: str
    distill_kind: str
    distill_weight: float
    tau_learner: float
    tau_guide: float
    sparse: bool


def step(case: Case) -> Step:
    number = Numbers(case)
    names = {"dtype": case.dtype if case.dtype in ("float64", "int64", "float16") else "float32"}
    n_users, n, b, d, m, k = max(1, case.d), case.n, case.b, case.d, case.c % 4, case.c % 3
    live = mask(case, (b, k))
    listed = some_ids(case, 33, n, b, k)
    if live is not None:
        poison = torch.from_numpy(case.rng(34).choice([*OUTSIDE, n], (b, k)))
        listed = torch.where(live, listed, poison)
    leaf_layout = "sliced" if case.layout == "expanded" else case.layout
    tables = (floats(case, 30, n_users, d, **names), floats(case, 31, n, d, **names), floats(case, 32, n, **names))
    tables = tuple(layout(leaf_layout, t.resolve_neg().clone()) if t.dtype != torch.int64 else t for t in tables)
    return Step(
        *tables[:2], tables[2] if case.bias else None, some_ids(case, 35, n_users, b), some_ids(case, 36, n, b),
        some_ids(case, 37, n, b, m), bd.Draws(listed, live), floats(case, 38, b, k, **names),
        number.cf(), number.distill_kind(), number.distill_weight(), number.mild_tau(0), number.mild_tau(1), number.sparse(),
    )  # fmt: skip


def bad_step(s: Step) -> str | None:
    n = len(s.item_table)
    live = s.distill.ids if s.distill.mask is None else s.distill.ids[s.distill.mask]
    if s.user_table.dtype not in (torch.float32, torch.float64):
        return "the dtype of the tables"
    known = s.cf in ("bce", "bpr", "softmax") and s.distill_kind in ("bce", "listwise")
    if not known or not abs(s.distill_weight) < 1e300 or not (s.tau_learner > 0 and s.tau_guide > 0):
        return "a setting"
    limits = ((s.users, len(s.user_table)), (s.positives, n), (s.negatives, n), (live, n))
    return next((why for values, limit in limits if (why := bad_ids(values, 0, limit))), None)


def step_oracle(s: Step) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and dense gradients by autograd over float64 tables, with everyday operations."""
    tables = [t.detach().double().clone().requires_grad_() for t in s[:3] if t is not None]

    def scores(ids):
        dots = (tables[0][s.users][:, None] * tables[1][ids]).sum(-1)
        return dots + tables[2][ids] if len(tables) == 3 else dots

    live = torch.ones_like(s.distill.ids, dtype=torch.bool) if s.distill.mask is None else s.distill.mask
    positive, negative = scores(s.positives[:, None]), scores(s.negatives)
    softplus, rows = (lambda x: torch.logaddexp(x, torch.zeros_like(x))), max(1, len(s.users))
    if s.cf == "softmax":
        cf = (torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]).sum()
    elif s.cf == "bpr":
        cf = softplus(negative - positive).sum()
    else:
        cf = softplus(-positive).sum() + softplus(negative).sum()
    x = scores(s.distill.ids.masked_fill(~live, 0)) if live.any() else tables[0].new_zeros(live.shape)
    y = s.guide_scores.detach().double()
    if s.distill_kind == "listwise":
        pairs = (
            ((a[on] / s.tau_learner).log_softmax(0), (b[on] / s.tau_guide).log_softmax(0))
            for a, b, on in zip(x, y, live, strict=True)
        )
        distill = sum(((p.exp() * (p - q)).sum() for q, p in pairs), tables[0].new_zeros(())) / rows
    else:
        x, target = x[live] / s.tau_learner, torch.sigmoid(y[live] / s.tau_guide)
        distill = (softplus(x) - x * target).sum() / max(1, int(live.sum()))
    loss = cf / rows + float(s.distill_weight) * distill
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), [torch.zeros_like(t) if t.grad is None else t.grad for t in tables]
