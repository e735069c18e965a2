"""The Triton kernels of the loss against the reference: ids and rows exactly, sums within float32 rounding."""

from itertools import product

import pytest
import torch
from dispatches import dispatched
from torch.utils._pytree import tree_map_only

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import reference
from bdkernels.backends.triton import loss, update
from bdkernels.ranges import DISTILL_LOSSES, FUSED_LOSSES
from bdkernels.types.rule import RULES, Rule
from bdkernels.types.step import StepInputs

SIZES = [(5, 2, 3, 5), (1, 1, 0, 8), (3, 0, 4, 1), (3, 9, 13, 33), (0, 1, 2, 4), (2, 0, 0, 3)]  # rows, M, k, d


def step(b, m, k, d, bias=True, masked=True, n_users=9, n_items=11, cf="bce", kind="bce"):
    """What is masked out is an impossible id and a NaN, and rows are wider than they look."""
    tables = [torch.randn(n, d + 3)[:, 1 : d + 1] for n in (n_users, n_items)]
    mask = torch.rand(b, k) < (0.6 if masked else 2)
    return StepInputs(
        *tables,
        torch.randn(n_items) if bias else None,
        torch.randint(0, n_users, (b,)),
        torch.randint(0, n_items, (b,)),
        torch.randint(0, n_items, (b, m)),
        torch.randint(0, n_items, (b, k)).masked_fill(~mask, 10**12),
        (3 * torch.randn(b, k)).masked_fill(~mask, torch.nan),
        mask if masked else None,
        cf,
        distill_kind=kind,
        distill_weight=0.7,
        tau_learner=1.3,
        tau_guide=2.1,
    )


def copied(inputs):
    return tree_map_only(torch.Tensor, torch.clone, inputs)


def assert_close(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("cf", "kind", "bias", "masked"),
    [
        ("bpr", "bce", True, True),
        ("bce", "bce", False, True),
        ("bce", "bce", True, False),
        ("softmax", "listwise", True, True),
        ("softmax", "bce", False, False),
        ("bpr", "listwise", False, False),
    ],
)
def test_step(size, cf, kind, bias, masked):
    inputs = step(*size, bias, masked, cf=cf, kind=kind)
    assert_close(loss.fused_gradient(inputs), reference.fused_gradient(inputs))


def test_extreme_scores_stay_finite():
    for cf, kind in product(FUSED_LOSSES, DISTILL_LOSSES):
        inputs = step(3, 2, 2, 4, masked=False, cf=cf, kind=kind)
        inputs.user_table.mul_(100)
        assert_close(loss.fused_gradient(inputs), reference.fused_gradient(inputs))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "losses", "bias"),
    [("sgd", ("bce", "bce"), True), ("adagrad", ("bpr", "bce"), False), ("adam", ("softmax", "listwise"), True)],
)
def test_update(size, kind, losses, bias):
    inputs, rule = step(*size, bias, cf=losses[0], kind=losses[1]), Rule(kind, 0.1, 0.01, 0.9, 0.99, 1e-6)
    tables = inputs.tables[: 2 + bias]
    state = [torch.rand(t.shape) for t in tables for _ in range(RULES.index(kind))]
    results = []
    for backend in (update, reference):
        own, mine = copied(inputs), copied(state)
        losses = backend.fused_step(own, mine, rule)
        results.append([*losses, *own.tables[: 2 + bias], *mine])
    assert_close(*results)
    rest = [i for i in range(11) if i not in inputs.listed()]
    assert torch.equal(results[0][3][rest], inputs.item_table[rest])


@pytest.mark.parametrize("piece", [8, 16])
def test_many_touches_of_one_row(monkeypatch, piece):
    """Of one piece, of a few and of more than are gathered together, one after the other in one batch."""
    monkeypatch.setattr(update, "PIECE", piece)
    inputs = step(25, 7, 0, 3, n_users=2, n_items=3)
    inputs.positives.fill_(0)
    inputs.negatives.fill_(1)
    inputs.negatives[:9, 2] = 2
    results = []
    for backend in (update, reference):
        own = copied(inputs)
        backend.fused_step(own, [], Rule("sgd", 0.1, 0.0))
        results.append(own.tables)
    assert_close(*results)


def test_a_rate_on_the_device_and_wide_keys(monkeypatch):
    """The bits of a rate that the rule has, and of keys of 32 bits."""
    inputs, rule = step(5, 2, 3, 5), Rule("adam", 0.1, 0.01, 0.9, 0.99, 1e-6)
    state = [torch.rand(t.shape) for t in inputs.tables for _ in range(2)]
    results = []
    for lr, narrow in ((), 100), ((torch.tensor(0.1),), 100), ((), 19):
        monkeypatch.setattr(update, "NARROW", narrow)
        own, mine = copied(inputs), copied(state)
        losses = update.fused_step(own, mine, rule._replace(lr=0.0) if lr else rule, *lr)
        results.append([*losses, *own.tables, *mine])
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))
    assert update.keys_of(inputs, torch.ones(2, dtype=torch.int64)).dtype == torch.int64


def test_a_step_is_few_launches():
    """What the interpreter itself does around a launch is not told apart: launches, and the operators that it never calls."""
    inputs = step(5, 2, 3, 5, n_users=1)
    optimizer = bd.SparseAdam([t.clone() for t in inputs.tables])
    users, positives, negatives, ids, guide, mask = inputs.batch
    batch = users * 0, positives, negatives, bd.Draws(ids, mask), guide
    found = dispatched(lambda: bd.fused_step(optimizer, *batch, backend="triton"), "triton")
    inner = ("launch", "aten::set_", "aten::empty", "aten::copy_", "aten::new_empty")
    assert found["launch"] == 4
    assert found.total() - sum(found[name] for name in inner) <= 5, found


def test_ids_out_of_range_are_noted():
    for name, row, value in (
        ("users", 4, 9),
        ("positives", 0, -1),
        ("negatives", 3, 11),
        ("distill_ids", 2, 11),
        ("", 0, 0),
    ):
        own = step(5, 2, 3, 5, masked=False)
        if name:
            getattr(own, name)[row] = value
        counts = torch.ones(2, dtype=torch.int64)
        update.keys_of(own, counts)
        assert counts.tolist() == [15, int(not name)]
    counts = torch.ones(2, dtype=torch.int64)
    update.keys_of(own := step(5, 2, 3, 5), counts)  # what is masked out may be anything
    assert counts.tolist() == [int(own.distill_mask.sum()), 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", DISTILL_LOSSES)
@pytest.mark.parametrize("shape", [(7, 3), (1,), (0, 3), (3, 0), (41, 50), (2, 3, 70)])
def test_distill_loss(monkeypatch, kind, shape, dtype):
    monkeypatch.setattr(loss, "LIST", 32)
    z, g = (4 * torch.randn(2, *shape)).to(dtype)
    for mask in (None, torch.rand(shape) < 0.5, torch.zeros(shape, dtype=torch.bool)):
        arguments = z, g, 1.2, 3.0, mask, kind
        assert_close([loss.distill_loss(*arguments)], [reference.distill_loss(*arguments)])
        got, want = (backend.distill_loss_backward(torch.tensor(1.5), *arguments) for backend in (loss, reference))
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_lists_of_numbers_that_overflow():
    """Falling, rising, and apart by more than float32 has an exponential for; minus infinity has no share."""
    z = torch.tensor([[1e4, 0.0, -1e4, 3.0], [-3e38, 1e4, 2e4, 3e38], [5.0, -torch.inf, 4.0, -torch.inf]])
    g = z.flip(1).where(z.flip(1).isfinite(), -1.0)
    g[2, 1] = g[2, 3] = -torch.inf
    for given in (None, torch.tensor([[True, True, False, True]]).expand(3, 4)):
        arguments = z, g, 1e-3, 2.0, given, "listwise"
        got, want = (backend.distill_loss_backward(torch.tensor(1.5), *arguments) for backend in (loss, reference))
        assert got.isfinite().all()
        torch.testing.assert_close(got, want)
        assert_close([loss.distill_loss(*arguments)], [reference.distill_loss(*arguments)])


@pytest.mark.parametrize("kind", DISTILL_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distill_loss_through_the_operator(monkeypatch, kind, dtype):
    """Value and gradient come from the kernels: the reference's are not there to help."""
    z, g, mask = torch.randn(6, 9).to(dtype), torch.randn(6, 9), torch.rand(6, 9) < 0.5
    results = []
    for backend in ("reference", "triton"):
        leaf = z.clone().requires_grad_()
        value = bd.distill_loss(leaf, g, 1.2, 3.0, mask, kind=kind, backend=backend)
        (2 * value).backward()
        results.append((value.detach(), leaf.grad))
        monkeypatch.setattr(reference, "distill_loss", None)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert backends.steps(z.device, "triton").distill_loss is loss.distill_loss
    assert backends.steps(z.device, "triton").distill_loss_backward is loss.distill_loss_backward


def test_float64_scores_are_the_references():
    z = torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(bd.BackendError, match="backend=triton: expected float32, got float64"):
        bd.distill_loss(z, z, backend="triton")
    assert bd.distill_loss(z, z).dtype == torch.float64
