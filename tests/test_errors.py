"""Bad arguments: a ValueError that names the argument, what was expected and what was found, in every backend and under fakes."""

import pytest
import torch
from draws import numbered

import bdkernels as bd

NAN = float("nan")


def good() -> dict:
    return {
        "user_factors": torch.randn(3, 4),
        "item_factors": torch.randn(10, 4),
        "item_bias": torch.randn(10),
        "ids": torch.randint(0, 10, (3, 2)),
        "indptr": torch.tensor([0, 2, 2, 3]),
        "indices": torch.tensor([1, 5, 0]),
    }


CASES = [
    ({"user_factors": torch.randn(4)}, r"user_factors: expected shape \[B, d\], got \[4\]"),
    ({"item_factors": torch.randn(10, 5)}, r"item_factors: expected shape \[N, 4\], got \[10, 5\]"),
    ({"item_factors": torch.randn(10, 4).half()}, r"item_factors: expected float32, got torch.float16"),
    (
        {"user_factors": torch.randn(3, 4).double()},
        r"user_factors: expected float32 or float16 or bfloat16, got torch.float64",
    ),
    ({"item_bias": torch.randn(9)}, r"item_bias: expected shape \[10\], got \[9\]"),
    ({"item_factors": torch.randn(10, 4, device="meta")}, r"item_factors: expected device cpu, got meta"),
    ({"ids": torch.zeros(2, 2, dtype=torch.int64)}, r"ids: expected shape \[3, C\], got \[2, 2\]"),
    ({"ids": torch.zeros(3, 2, dtype=torch.int32)}, r"ids: expected int64, got torch.int32"),
    ({"ids": torch.full((3, 2), 10)}, r"ids: expected ids in \[0, 10\), got 10 to 10"),
    ({"ids": torch.full((3, 2), -1)}, r"ids: expected ids in \[0, 10\), got -1 to -1"),
    ({"indptr": torch.tensor([0, 2, 3])}, r"seen.indptr: expected shape \[4\], got \[3\]"),
    ({"indptr": torch.tensor([0, 2, 2, 4])}, r"seen.indptr: expected first 0 and last 3, got \[0, 4\]"),
    ({"indptr": torch.tensor([0, 3, 2, 3])}, r"seen.indptr: expected non-decreasing values"),
    ({"indptr": torch.tensor([0, 2**63 - 1, -2, 3])}, r"seen.indptr: expected non-decreasing values"),
    ({"indices": torch.tensor([5, 1, 0])}, r"seen.indices: expected strictly increasing ids in each row"),
    ({"indices": torch.tensor([5, 5, 0])}, r"seen.indices: expected strictly increasing ids in each row"),
    ({"indices": torch.tensor([1, 10, 0])}, r"seen.indices: expected ids in \[0, 10\), got 0 to 10"),
    ({"indices": torch.tensor([1, 5, 0], dtype=torch.int32)}, r"seen.indices: expected int64"),
]


@pytest.mark.parametrize(("change", "message"), CASES, ids=[m[:40] for _, m in CASES])
def test_rank_arguments(backend, change, message):
    a = {**good(), **change}
    f = bd.Factors(a["user_factors"], a["item_factors"], a["item_bias"])
    with pytest.raises(ValueError, match=message):
        bd.rank(f, a["ids"], bd.Seen(a["indptr"], a["indices"]), backend=backend)


@pytest.mark.parametrize("where", ["user_factors", "item_factors", "item_bias"])
@pytest.mark.parametrize("c", [2, 6])
def test_nan_scores_are_named(backend, where, c):
    a = good()
    a[where] = a[where].clone()
    a[where][1] = NAN
    f = bd.Factors(a["user_factors"], a["item_factors"], a["item_bias"])
    ids = torch.tensor([[2, 3, 4, 5, 6, 7][:c]] * 3)
    row = 1 if where == "user_factors" else 0
    place = f"user row {row}, item {2 if where == 'users' else 1}"
    with pytest.raises(ValueError, match="NaN for user row 1" if where == "user_factors" else f"NaN for {place}"):
        bd.rank(f, ids, backend=backend)
    with pytest.raises(ValueError, match="expected finite scores, got NaN"):
        bd.topk(f, 2, backend=backend)
    with pytest.raises(ValueError, match="expected finite scores, got NaN"):
        bd.sample(f, f, 2, **numbered(f), backend=backend)
    with pytest.raises(ValueError, match="expected finite scores, got NaN"):
        bd.score(f, torch.ones(3, 1, dtype=torch.int64), backend=backend)


def test_nan_from_infinities_is_found(backend):
    f = bd.Factors(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0], [float("inf"), float("inf")]]))
    with pytest.raises(ValueError, match="NaN for user row 0, item 1"):
        bd.rank(f, torch.tensor([[0]]), backend=backend)


def test_nan_thresholds(backend):
    a = good()
    f, tie = bd.Factors(a["user_factors"], a["item_factors"]), torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="thresholds: expected no NaN"):
        bd.count_above(f, torch.full((3, 1), NAN), tie, backend=backend)
    with pytest.raises(ValueError, match=r"scores: expected no NaN, got NaN at \[0, 0\]"):
        bd.count_above_block(torch.full((3, 5), NAN), torch.zeros(3, 1), tie, backend=backend)
    for offset in (-1, 2**31 - 9, 2**63 - 1):  # the last id is below 2^31
        with pytest.raises(ValueError, match=f"item_offset: expected an integer >= 0 and <= 2147483638, got {offset}"):
            bd.count_above(f, torch.zeros(3, 1), tie, item_offset=offset, backend=backend)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 0}, r"k: expected an integer >= 1 and <= 2147483647, got 0"),
        ({"k": 2**31}, r"k: expected an integer >= 1 and <= 2147483647, got 2147483648"),
        ({"step": -1}, r"step: expected an integer >= 0 and <= 4294967295, got -1"),
        ({"user_ids": torch.tensor([0, 1])}, r"user_ids: expected shape \[3\], got \[2\]"),
        ({"user_ids": torch.tensor([0, 1, 2**32])}, r"user_ids: expected ids in \[0, 4294967296\)"),
        ({"user_ids": torch.tensor([0, 1, -1])}, r"user_ids: expected ids in"),
    ],
)
def test_sample_arguments(backend, kwargs, message):
    f = bd.Factors(torch.randn(3, 4), torch.randn(10, 4))
    with pytest.raises(ValueError, match=message):
        bd.sample(f, f, **numbered(f, k=2) | kwargs, backend=backend)


def test_models_of_different_sizes(backend):
    f = bd.Factors(torch.randn(3, 4), torch.randn(10, 4))
    with pytest.raises(ValueError, match=r"student.item_factors: expected shape \[10, d\], got \[11, 4\]"):
        bd.sample(f, bd.Factors(f.user_factors, torch.randn(11, 4)), 2, **numbered(f), backend=backend)
    with pytest.raises(ValueError, match=r"student.user_factors: expected shape \[3, d\], got \[2, 4\]"):
        bd.sample(f, bd.Factors(f.user_factors[:2], f.item_factors), 2, **numbered(f), backend=backend)
    empty = bd.Factors(torch.randn(3, 4), torch.randn(0, 4))
    with pytest.raises(ValueError, match="number of items: expected an integer >= 1, got 0"):
        bd.sample(empty, empty, 2, **numbered(f), backend=backend)


@pytest.mark.parametrize("k", [0, 11])
def test_topk_beyond_the_catalog(backend, k):
    f = bd.Factors(torch.randn(3, 4), torch.randn(10, 4))
    with pytest.raises(ValueError, match=f"k: expected an integer >= 1 and <= 10, got {k}"):
        bd.topk(f, k, backend=backend)


def test_losses():
    z = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"guide_scores: expected shape \[2, 3\], got \[3, 2\]"):
        bd.distill_loss(z, z.T)
    with pytest.raises(ValueError, match="tau_guide: expected a number in .*, got 0.0"):
        bd.distill_loss(z, z, tau_guide=0.0)
    for tau in (1e-300, 1e300):  # 0 and infinity in float32
        with pytest.raises(ValueError, match="tau_learner: expected a number in"):
            bd.distill_loss(z, z, tau_learner=tau)
    with pytest.raises(ValueError, match="mask: expected bool, got torch.float32"):
        bd.distill_loss(z, z, mask=torch.ones(2, 3))
    draws = bd.Draws(torch.tensor([[5]]), torch.tensor([[True]]))
    tables = (torch.randn(2, 3), torch.randn(4, 3), None)
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"distill_ids: expected ids in \[0, 4\), got 5 to 5"):
        bd.fused_loss(*tables, one, one, one[None], draws, torch.randn(1, 1))
    for wrong in (NAN, 1e39, -1e39, 1e-50):
        with pytest.raises(ValueError, match="distill_weight: expected 0, or in size a number in"):
            bd.fused_loss(*tables, one, one, one[None], draws, torch.randn(1, 1), distill_weight=wrong)
    with pytest.raises(ValueError, match="distill_weight / tau_learner: expected a finite float32, got 1e"):
        bd.fused_loss(*tables, one, one, one[None], draws, torch.randn(1, 1), distill_weight=1e9, tau_learner=1e-37)
    with pytest.raises(ValueError, match="cf: expected 'bce' or 'bpr' or 'softmax', got 'hinge'"):
        bd.fused_loss(*tables, one, one, one[None], draws, torch.randn(1, 1), cf="hinge")
    with pytest.raises(ValueError, match="distill_kind: expected 'bce' or 'listwise', got 'mse'"):
        bd.fused_loss(*tables, one, one, one[None], draws, torch.randn(1, 1), distill_kind="mse")
    with pytest.raises(ValueError, match="kind: expected 'bce' or 'listwise', got 'mse'"):
        bd.distill_loss(z, z, kind="mse")
    with pytest.raises(
        ValueError, match="learner_scores: expected a list in each row: at least one dimension, got none"
    ):
        bd.distill_loss(z[0, 0], z[0, 0], kind="listwise")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bd.Tanh(0.0), "alpha: expected a finite number > 0, got 0.0"),
        (lambda: bd.Exp(NAN), "alpha: expected a finite number > 0, got nan"),
        (lambda: bd.Exp(10**400), "alpha: expected a finite number > 0, got 1000"),
        (lambda: bd.Exp(2.0, eps=0.1), "alpha, eps: expected one of them"),
        (lambda: bd.Tanh(eps=-1.0), "eps: expected a finite number > 0"),
        (lambda: bd.Linear(side="left"), "side: expected 'over' or 'under', got 'left'"),
        (lambda: bd.RankOnly(mu=0), "mu: expected a finite number > 0"),
    ],
)
def test_weights(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def everything() -> dict:
    """Every public function's good arguments."""
    f = bd.Factors(torch.randn(3, 4), torch.randn(10, 4), torch.randn(10))
    seen = bd.Seen(torch.tensor([0, 2, 2, 3]), torch.tensor([1, 5, 0]))
    ids = torch.zeros(3, 2, dtype=torch.int64)
    z, rows = torch.randn(3, 2), torch.arange(3)
    counted = {"thresholds": z, "tie_ids": ids, "seen": seen, "item_offset": 0}
    tau = {"tau_learner": 1.0, "tau_guide": 2.0}
    return {
        "score": {"factors": f, "ids": ids},
        "rank": {"scorer": f, "ids": ids, "seen": seen},
        "count_above": {"scorer": f, **counted},
        "count_above_block": {"scores": torch.randn(3, 10), **counted},
        "topk": {"scorer": f, "k": 2, "seen": seen},
        "sample": {
            "teacher": f, "student": f, "k": 2, "seen": seen, "to_student": bd.Tanh(), "to_teacher": bd.Exp(),
            "seed": 1, "step": 2, "user_ids": rows,
        },
        "distill_loss": {"learner_scores": z, "guide_scores": z, "mask": z > 0, "kind": "bce", **tau},
        "fused_loss": {
            "user_table": f.user_factors, "item_table": f.item_factors, "item_bias": f.item_bias,
            "users": rows, "positives": rows,
            "negatives": ids, "distill": bd.Draws(ids, z > 0), "guide_scores": z, "cf": "bce", "distill_kind": "bce",
            "distill_weight": 0.5, **tau,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, named in everything().items() for name in named])
def test_wrong_python_types(op, name):
    """A TypeError that names the argument, before torch sees it; numbers that 64 bits cannot hold are a ValueError."""
    run, named = getattr(bd, op), everything()[op]
    run(**named)
    for wrong in ([[0.5]], "half", object()):
        if isinstance(named[name], str) and isinstance(wrong, str):
            continue
        with pytest.raises(TypeError, match=f"^{name}: expected .*, got {type(wrong).__name__}"):
            run(**{**named, name: wrong})
    if isinstance(named[name], tuple):
        for part in named[name]._fields:
            with pytest.raises(TypeError, match=f"^{name}.{part}: expected Tensor, got list"):
                run(**{**named, name: named[name]._replace(**{part: [1]})})
    if isinstance(named[name], int | float):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            run(**{**named, name: 10**400})
    if isinstance(named[name], torch.Tensor):
        with pytest.raises(ValueError, match=f"{name}: expected a dense tensor, got torch.sparse_coo"):
            run(**{**named, name: named[name].to_sparse()})


def test_seen_pairs():
    with pytest.raises(ValueError, match=r"users: expected ids in \[0, 2\), got 0 to 2"):
        bd.Seen.from_pairs(torch.tensor([0, 2]), torch.tensor([1, 1]), 2)
    with pytest.raises(ValueError, match=r"items: expected ids in \[0, 2\^31\), got -1 to 1"):
        bd.Seen.from_pairs(torch.tensor([0, 1]), torch.tensor([1, -1]), 2)
    with pytest.raises(ValueError, match="expected two 1-D tensors of one length"):
        bd.Seen.from_pairs(torch.tensor([0, 1]), torch.tensor([1]), 2)
    seen = bd.Seen.from_pairs(torch.tensor([1, 0, 1, 1]), torch.tensor([5, 2, 5, 3]), 3)
    assert (seen.indptr.tolist(), seen.indices.tolist()) == ([0, 1, 3, 3], [2, 3, 5])
    assert seen.rows(torch.tensor([1, 1, 2])).indices.tolist() == [3, 5, 3, 5]


def test_one_half_of_seen():
    with pytest.raises(ValueError, match="seen: expected both of indptr and indices, got one"):
        torch.ops.bdkernels.rank(
            torch.randn(1, 1), torch.randn(1, 1), None, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0, 0]), None
        )


def test_fakes_refuse_the_same():
    """Shapes are checked before anything runs, so torch.compile and meta tensors refuse them too."""
    f = bd.Factors(torch.randn(3, 4, device="meta"), torch.randn(10, 5, device="meta"))
    with pytest.raises(ValueError, match=r"item_factors: expected shape \[N, 4\]"):
        bd.rank(f, torch.zeros(3, 1, dtype=torch.int64, device="meta"))
