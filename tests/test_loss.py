"""distill_loss and fused_loss: values against NumPy formulas, gradients against finite differences and against autograd."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F

import bdkernels as bd
from bdkernels import backends
from bdkernels.ranges import DISTILL_LOSSES, FUSED_LOSSES

ROOT = Path(__file__).parents[1]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_distill(z, g, tau_l, tau_g, mask):
    p, t = sigmoid(z / tau_l), sigmoid(g / tau_g)
    terms = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return terms[mask].mean() if mask.any() else 0.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5,), (2, 3, 4)])
@pytest.mark.parametrize(("tau_l", "tau_g"), [(1.0, 1.0), (0.5, 5.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_distill_loss_value(rng, backend, shape, tau_l, tau_g, masked):
    z, g = rng.standard_normal(shape) * 3, rng.standard_normal(shape) * 3
    mask = rng.random(shape) < 0.6 if masked else np.ones(shape, bool)
    want = numpy_distill(z, g, tau_l, tau_g, mask)
    scores, given = (torch.from_numpy(z), torch.from_numpy(g)), torch.from_numpy(mask) if masked else None
    np.testing.assert_allclose(bd.distill_loss(*scores, tau_l, tau_g, given).item(), want, rtol=1e-12)
    got = bd.distill_loss(*(s.float() for s in scores), tau_l, tau_g, given, backend=backend)
    np.testing.assert_allclose(got.item(), want, rtol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5,), (2, 3, 4), (4, 0), (0, 3), (3, 50)])
@pytest.mark.parametrize(("tau_l", "tau_g", "size"), [(1.0, 1.0, 3), (0.5, 5.0, 3), (0.5, 2.0, 1e4)])
@pytest.mark.parametrize("masked", [False, True])
def test_listwise_value(rng, backend, shape, tau_l, tau_g, size, masked):
    """A row is the last dimension, one without a live score weighs 0, and the mean is over all rows."""
    z, g = rng.standard_normal(shape) * size, rng.standard_normal(shape) * size
    mask = rng.random(shape) < 0.5 if masked else np.ones(shape, bool)
    want = oracle.listwise(z, g, tau_l, tau_g, mask)
    scores, given = (torch.from_numpy(z), torch.from_numpy(g)), torch.from_numpy(mask) if masked else None
    got = bd.distill_loss(*scores, tau_l, tau_g, given, kind="listwise")
    np.testing.assert_allclose(got.item(), want, rtol=1e-12, atol=1e-14)
    narrow = (*(s.float() for s in scores), tau_l, tau_g, given)
    got = bd.distill_loss(*narrow, kind="listwise", backend=backend)
    np.testing.assert_allclose(got.item(), want, rtol=2e-6, atol=2e-7 * size)


def test_distill_loss_gradcheck():
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    g, mask = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5) < 0.5
    for m, kind in product((None, mask, torch.zeros_like(mask)), DISTILL_LOSSES):
        assert torch.autograd.gradcheck(lambda x, m=m, kind=kind: bd.distill_loss(x, g, 0.7, 2.0, m, kind=kind), (z,))


def test_distill_loss_follows_the_guide_only(backend):
    z, g = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    bd.distill_loss(z, g, backend=backend).backward()
    assert g.grad is None
    assert z.grad is not None


def test_distill_loss_is_deaf_to_what_is_masked(backend):
    """NaN and infinities under the mask reach neither the loss nor the gradient; extreme scores stay finite."""
    z = torch.tensor([[float("nan"), 1.0, float("inf"), 80.0]], requires_grad=True)
    g = torch.tensor([[0.0, float("nan"), 1.0, -80.0]])
    mask = torch.tensor([[False, False, False, True]])
    loss = bd.distill_loss(z, g, mask=mask, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(80.0)
    assert z.grad.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    nothing = bd.distill_loss(z, g, mask=torch.zeros_like(mask), backend=backend)
    assert nothing.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distill_loss_error_is_that_of_float32(backend, dtype):
    """Half precision is widened first: loss and gradient are those of the rounded scores, the gradient in their dtype."""
    z = torch.randn(64, 80).to(dtype)[:, ::10].requires_grad_()  # strided
    g = torch.randn(8, 64).to(dtype).T
    loss = bd.distill_loss(z, g, 2.0, 1.0, backend=backend)
    wide = z.detach().double().requires_grad_()
    want = bd.distill_loss(wide, g.double(), 2.0, 1.0)
    (grad,), (exact,) = torch.autograd.grad(3 * loss, z), torch.autograd.grad(3 * want, wide)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    rounding = max(1e-6, torch.finfo(dtype).eps)
    torch.testing.assert_close(grad.double(), exact, rtol=rounding, atol=rounding * 3 / 2 / z.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distill_loss_has_the_learners_precision(dtype):
    """Whatever the guide's: as the fake says, and to the last digits of float64."""
    z, g, mask = torch.randn(6, 5, dtype=dtype), torch.randn(6, 5), torch.rand(6, 5) < 0.6
    want = z.clone().double().requires_grad_()
    F.binary_cross_entropy_with_logits(want[mask] / 0.7, torch.sigmoid(g[mask].to(dtype) / 2).double()).backward()
    for guide in (g, g.double()):
        leaf = z.clone().requires_grad_()
        loss = bd.distill_loss(leaf, guide, 0.7, 2.0, mask)
        loss.backward()
        assert loss.dtype == leaf.grad.dtype == dtype
    torch.testing.assert_close(leaf.grad.double(), want.grad, rtol=0, atol=1e-15 if dtype == torch.float64 else 1e-8)


def test_distill_loss_runs_where_it_is_told_to(monkeypatch, backend):
    """Both ways: no other backend's stages are asked for."""
    asked = []

    def steps(device, name, dtype):
        asked.append((name, dtype))
        return backends.steps(device, name, dtype)

    monkeypatch.setattr("bdkernels.ops.loss.steps", steps)
    z = torch.randn(3, 2).half().requires_grad_()
    bd.distill_loss(z, z, backend=backend).backward()
    assert asked == [(backend, torch.float16)] * 2


def test_distill_loss_of_float64_is_the_references():
    z = torch.randn(3, 2, dtype=torch.float64)
    if backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    with pytest.raises(bd.BackendError, match="backend=cpu: expected float32, got float64, which cpu does not take"):
        bd.distill_loss(z, z, backend="cpu")
    assert torch.equal(bd.distill_loss(z, z), bd.distill_loss(z, z, backend="reference"))


def test_distill_loss_backward_refuses_what_does_not_fit(backend):
    z, one = torch.randn(3, 2), torch.ones(())
    run = torch.ops.bdkernels.distill_loss_backward
    with pytest.raises(ValueError, match=r"guide_scores: expected shape \[3, 2\], got \[2, 3\]"):
        run(one, z, z.T, 1.0, 1.0, None, "bce", backend=backend)
    with pytest.raises(ValueError, match=r"grad: expected shape \[\], got \[1\]"):
        run(one[None], z, z, 1.0, 1.0, None, "bce", backend=backend)


def step_inputs(dtype=torch.float64, masked=True):
    user, item = torch.randn(9, 4, dtype=dtype), torch.randn(15, 4, dtype=dtype)
    bias = torch.randn(15, dtype=dtype)
    users, positives = torch.tensor([3, 3, 0, 8, 5]), torch.tensor([2, 2, 14, 0, 7])
    negatives = torch.randint(0, 15, (5, 3))
    ids = torch.randint(0, 15, (5, 4))
    mask = torch.rand(5, 4) < 0.7 if masked else torch.ones(5, 4, dtype=torch.bool)
    return (
        user,
        item,
        bias,
        users,
        positives,
        negatives,
        bd.Draws(ids.masked_fill(~mask, -1), mask),
        torch.randn(5, 4, dtype=dtype),
    )


def plain_step(user, item, bias, users, positives, negatives, draws, guide, cf, kind, distill_weight, tau_l, tau_g):
    """The same loss in everyday autograd."""

    def s(ids):
        dots = (user[users][:, None] * item[ids]).sum(-1)
        return dots if bias is None else dots + bias[ids]

    pos, neg, z = s(positives[:, None]), s(negatives), s(draws.ids.clamp(min=0))
    if cf == "bce":
        logits = torch.cat([pos, neg], 1)
        labels = torch.zeros_like(logits).index_fill_(1, torch.tensor([0]), 1.0)
        cf_loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
    elif cf == "bpr":
        cf_loss = -F.logsigmoid(pos - neg).sum(1).mean()
    else:
        cf_loss = F.cross_entropy(torch.cat([pos, neg], 1), torch.zeros_like(users))
    if kind == "listwise":
        rows = [
            F.kl_div(F.log_softmax(x[on] / tau_l, 0), F.softmax(y[on] / tau_g, 0), reduction="sum")
            for x, y, on in zip(z, guide, draws.mask, strict=True)
        ]
        return cf_loss + distill_weight * torch.stack(rows).mean()
    target = torch.sigmoid(guide / tau_g)
    terms = F.binary_cross_entropy_with_logits(z / tau_l, target, reduction="none")
    distill = terms[draws.mask].mean() if draws.mask.any() else terms.sum() * 0
    return cf_loss + distill_weight * distill


@pytest.mark.parametrize("cf", FUSED_LOSSES)
@pytest.mark.parametrize("kind", DISTILL_LOSSES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_fused_loss_against_autograd(cf, kind, with_bias, sparse):
    user, item, bias, *rest = step_inputs()
    rest[-2].mask[1] = False  # a row without anything distilled
    leaves = [t.clone().requires_grad_() for t in (user, item, bias)]
    twins = [t.clone().requires_grad_() for t in (user, item, bias)]
    if not with_bias:
        leaves[2], twins[2] = None, None
    options = {"cf": cf, "distill_kind": kind, "distill_weight": 0.3, "tau_learner": 0.8, "tau_guide": 2.0}
    out = bd.fused_loss(*leaves, *rest, **options, sparse=sparse)
    want = plain_step(*twins, *rest, cf, kind, 0.3, 0.8, 2.0)
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(out.cf + 0.3 * out.distill, want)
    (2 * out.loss).backward()
    (2 * want).backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        if leaf is not None:
            assert leaf.grad.is_sparse == sparse
            torch.testing.assert_close(leaf.grad.to_dense(), twin.grad)


def tables_and_batch(b, m, k, d=19, n_users=40, n_items=60, masked=True):
    """float32 tables and a batch with many repeats; what is masked out is an impossible id and a NaN."""
    tables = [torch.randn(n_users, d), torch.randn(n_items, d), torch.randn(n_items)]
    mask = torch.rand(b, k) < (0.7 if masked else 2.0)
    draws = bd.Draws(torch.randint(0, n_items, (b, k)).masked_fill(~mask, 10**12), mask)
    guide = (torch.randn(b, k) * 3).masked_fill(~mask, float("nan"))
    batch = torch.randint(0, n_users, (b,)), torch.randint(0, n_items, (b,)), torch.randint(0, n_items, (b, m))
    return tables, (*batch, draws, guide)


def step_results(tables, batch, **options):
    leaves = [None if t is None else t.clone().requires_grad_() for t in tables]
    out = bd.fused_loss(*leaves, *batch, **options)
    out.loss.backward()
    grads = [leaf.grad.to_dense() for leaf in leaves if leaf is not None]
    return [out.loss.detach(), out.cf, out.distill, *grads]


@pytest.mark.parametrize(("cf", "kind"), [("bce", "bce"), ("bpr", "bce"), ("softmax", "listwise"), ("softmax", "bce")])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("b", "m", "k"),
    [(1, 1, 1), (37, 1, 10), (64, 5, 0), (64, 33, 3), (0, 1, 2), (5, 0, 2), (9, 16, 16)],
)
def test_fused_loss_error_is_that_of_plain_float32(backend, cf, kind, with_bias, b, m, k):
    """Against float64, no backend is further off than plain PyTorch in float32, but for a few roundings."""
    tables, batch = tables_and_batch(b, m, k)
    if not with_bias:
        tables[2] = None
    options = {"cf": cf, "distill_kind": kind, "distill_weight": 0.6, "tau_learner": 0.7, "tau_guide": 2.0}
    wide = [None if t is None else t.double() for t in tables]
    truth = step_results(wide, (*batch[:-1], batch[-1].double()), **options)
    plain = step_results(tables, batch, **options, backend="reference")
    for got, want, base in zip(step_results(tables, batch, **options, backend=backend), truth, plain, strict=True):
        assert got.dtype == torch.float32
        budget = (base.double() - want).abs() + 2e-6 * (1 + want.abs())
        assert ((got.double() - want).abs() <= budget).all()


def test_fused_loss_is_deaf_to_what_is_masked(backend):
    tables, (users, positives, negatives, draws, guide) = tables_and_batch(20, 2, 6)
    clean = bd.Draws(draws.ids.where(draws.mask, 0), draws.mask), guide.where(draws.mask, 0.0)
    poisoned = step_results(tables, (users, positives, negatives, draws, guide), backend=backend)
    for a, b in zip(
        poisoned, step_results(tables, (users, positives, negatives, *clean), backend=backend), strict=True
    ):
        assert torch.equal(a, b)
    nothing = bd.Draws(torch.full_like(draws.ids, -1), torch.zeros_like(draws.mask))
    out = bd.fused_loss(*tables, users, positives, negatives, nothing, guide * float("nan"), backend=backend)
    assert out.distill == 0 and out.loss == out.cf


def test_fused_loss_gradient_rows_are_touched_rows(backend):
    """Nothing stands in for a masked entry that the batch does not touch anyway: lazy optimizers move what is listed."""
    tables, (users, positives, negatives, draws, guide) = tables_and_batch(6, 1, 3)
    item = tables[1].requires_grad_()
    bd.fused_loss(tables[0], item, None, users, positives, negatives, draws, guide, backend=backend).loss.backward()
    listed = {*positives.tolist(), *negatives.flatten().tolist(), *draws.ids[draws.mask].tolist()}
    assert set(item.grad.coalesce().indices()[0].tolist()) == listed


def test_fused_loss_of_nan_tables_is_an_error(backend):
    tables, (users, *rest) = tables_and_batch(8, 2, 3, masked=False)
    tables[0][users[0]] = float("nan")
    with pytest.raises(bd.NonFiniteLoss, match="losses: expected finite numbers, got cf nan"):
        bd.fused_loss(*tables, users, *rest, backend=backend)


def test_fused_loss_takes_strided_tables(backend):
    tables, batch = tables_and_batch(9, 2, 3)
    padded = [torch.full((t.shape[0], 24), float("nan")) for t in tables[:2]]
    for wide, t in zip(padded, tables[:2], strict=True):
        wide[:, 2:21] = t
    want = step_results(tables, batch, backend=backend)
    for views in ([p[:, 2:21] for p in padded], [t.T.contiguous().T for t in tables[:2]]):
        out = bd.fused_loss(*views, tables[2], *batch, backend=backend)
        assert torch.equal(out.loss, want[0])


def test_fused_loss_takes_an_empty_catalog_of_any_strides(backend):
    tables, batch = tables_and_batch(0, 1, 2)
    for items in (torch.empty(0, 19), torch.empty(19, 0).T, torch.empty_strided((0, 19), (1, 19))):
        assert bd.fused_loss(tables[0], items, None, *batch, backend=backend).loss == 0


def test_fused_loss_does_not_depend_on_threads(backend, two_threads):
    tables, batch = tables_and_batch(301, 2, 5)
    two = step_results(tables, batch, backend=backend, sparse=True)
    torch.set_num_threads(1)
    for a, b in zip(two[:3], step_results(tables, batch, backend=backend)[:3], strict=True):
        assert torch.equal(a, b) or backend == "reference"  # its sums are PyTorch's


def test_fused_loss_gradcheck():
    user, item, bias, *rest = step_inputs()
    leaves = tuple(t.requires_grad_() for t in (user, item, bias))
    for cf, kind in product(FUSED_LOSSES, DISTILL_LOSSES):
        options = {"cf": cf, "distill_kind": kind, "distill_weight": 0.4, "sparse": False}
        assert torch.autograd.gradcheck(lambda *p, o=options: bd.fused_loss(*p, *rest, **o).loss, leaves)


@pytest.mark.parametrize("anything", [-5, 15, 2**63 - 1, -(2**63)])
def test_fused_loss_touches_no_row_for_what_is_masked(anything):
    """Masked ids may be no ids at all, and no row is touched for them: here row 0, which holds NaN."""
    user, item, bias, _, _, _, draws, guide = step_inputs()
    users, positives, negatives = torch.arange(5), torch.tensor([2, 2, 14, 1, 7]), torch.tensor([[3]] * 5)
    item[0] = float("nan")
    mask = torch.tensor([[True, False, False, True]] * 5)
    guide[~mask] = float("nan")
    leaves = [t.requires_grad_() for t in (user, item, bias)]
    ids = (draws.ids.clamp(min=1)).masked_fill(~mask, anything)
    loss = bd.fused_loss(*leaves, users, positives, negatives, bd.Draws(ids, mask), guide).loss
    loss.backward()
    assert loss.isfinite()
    for leaf in leaves:
        assert leaf.grad.coalesce().values().isfinite().all()
    assert 0 not in leaves[1].grad.coalesce().indices()


def test_fused_loss_touches_only_its_rows():
    user, item, bias, users, positives, negatives, draws, guide = step_inputs(torch.float32)
    leaves = [t.requires_grad_() for t in (user, item, bias)]
    bd.fused_loss(*leaves, users, positives, negatives, draws, guide).loss.backward()
    assert set(leaves[0].grad.coalesce().indices()[0].tolist()) == set(users.tolist())
    listed = {*positives.tolist(), *negatives.flatten().tolist(), *draws.ids[draws.mask].tolist()}
    dense = leaves[1].grad.to_dense()
    assert set(dense.abs().sum(1).nonzero().flatten().tolist()) <= listed
    optimizer = torch.optim.SparseAdam(leaves, lr=0.1)
    before = [t.detach().clone() for t in leaves]
    optimizer.step()
    untouched = [i for i in range(15) if i not in listed]
    assert torch.equal(leaves[1][untouched], before[1][untouched])
    assert not torch.equal(leaves[1][positives], before[1][positives])


# ---- softmax and listwise ----


def losses_and_slopes(backend, scores, m, guide, mask=None, dtype=torch.float32, **options):
    """Of a step whose scores [B, 1 + M + k] are the items' biases: both losses, and the slope of the whole loss in each."""
    b, width = scores.shape
    ids = torch.arange(b * width).view(b, width)
    tables = [
        torch.zeros(1, 1, dtype=dtype),
        torch.zeros(b * width, 1, dtype=dtype),
        scores.flatten().to(dtype).requires_grad_(),
    ]
    users = torch.zeros(b, dtype=torch.int64)
    mask = torch.ones(b, width - 1 - m, dtype=torch.bool) if mask is None else mask
    draws = bd.Draws(ids[:, 1 + m :], mask)
    batch = (users, ids[:, 0], ids[:, 1 : 1 + m], draws, guide.to(dtype))
    out = bd.fused_loss(*tables, *batch, **options, sparse=False, backend=backend)
    out.loss.backward()
    return out.cf.item(), out.distill.item(), tables[2].grad.view(b, width)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize(("m", "k"), [(0, 0), (0, 5), (1, 0), (1, 1), (15, 16), (64, 7), (1000, 100)])
def test_softmax_and_listwise_against_long_doubles(rng, backend, m, k, size):
    """Scores of up to +-1e4 overflow nowhere, and rows without anything live weigh 0; slopes are those of finite differences."""
    b = 6
    scores = torch.from_numpy(rng.standard_normal((b, 1 + m + k)) * size).float()
    scores[0, 0], scores[1, 0] = 2 * size, -2 * size
    guide, mask = (
        torch.from_numpy(rng.standard_normal((b, k)) * size).float(),
        torch.from_numpy(rng.random((b, k)) < 0.5),
    )
    mask[2] = False
    options = {"cf": "softmax", "distill_kind": "listwise", "distill_weight": 0.5, "tau_learner": 0.7, "tau_guide": 3.0}
    cf, distill, slopes = losses_and_slopes(backend, scores, m, guide, mask, **options)

    def loss(s):
        found = oracle.listwise(s[:, 1 + m :], guide.double().numpy(), 0.7, 3.0, mask.numpy())
        return oracle.cf_loss("softmax", s[:, 0], s[:, 1 : 1 + m]) + 0.5 * found

    exact = scores.double().numpy()
    np.testing.assert_allclose(cf, oracle.cf_loss("softmax", exact[:, 0], exact[:, 1 : 1 + m]), rtol=2e-6, atol=1e-7)
    want = oracle.listwise(exact[:, 1 + m :], guide.double().numpy(), 0.7, 3.0, mask.numpy())
    np.testing.assert_allclose(distill, want, rtol=2e-6, atol=1e-6)
    assert slopes.isfinite().all() and not slopes[:, 1 + m :][~mask].any()
    for at in [(0, 0), (1, 0), *((int(i) % b, int(j) % (1 + m + k)) for i, j in rng.integers(0, 10**6, (20, 2)))]:
        ahead, behind = exact.copy(), exact.copy()
        ahead[at] += 1e-4
        behind[at] -= 1e-4
        # Scores as large as 1e4 are given to 5e-4, and their exponentials and differences are not better than that.
        assert abs((loss(ahead) - loss(behind)) / 2e-4 - slopes[at].item()) < 1e-6 + 1e-7 * size


def test_softmax_of_one_negative_is_bpr(backend):
    scores, guide = 5 * torch.randn(40, 2), torch.zeros(40, 0)
    softmax, bpr = (losses_and_slopes(backend, scores, 1, guide, cf=cf) for cf in ("softmax", "bpr"))
    assert softmax[0] == pytest.approx(bpr[0], rel=1e-6)
    torch.testing.assert_close(softmax[2], bpr[2], rtol=1e-6, atol=0)


def test_softmax_keeps_the_digits_of_a_positive_far_ahead(backend):
    """The loss of a row that is right is about the chance of being wrong, which 1 + that would round away."""
    scores = torch.tensor([[30.0, 0.0, 0.0, 1.0]])
    cf, _, slopes = losses_and_slopes(backend, scores, 3, torch.zeros(1, 0), cf="softmax")
    want = np.array([2 + np.e, 1, 1, np.e]) * np.exp(-30) * [-1, 1, 1, 1]
    assert cf == pytest.approx(want[1:].sum(), rel=1e-5)
    np.testing.assert_allclose(slopes[0].numpy(), want, rtol=1e-5)


def test_listwise_of_equal_shares_is_nothing(backend):
    """A learner that lists as its guide does, one number higher, has nothing to learn."""
    guide = torch.randn(7, 20)
    scores = torch.cat([torch.zeros(7, 1), guide / 2 + torch.randn(7, 1)], 1)
    options = {"distill_kind": "listwise", "tau_learner": 1.0, "tau_guide": 2.0}
    _, distill, slopes = losses_and_slopes(backend, scores, 0, guide, **options)
    assert abs(distill) < 1e-6 and slopes[:, 1:].abs().max() < 1e-7


@pytest.mark.parametrize("kind", DISTILL_LOSSES)
def test_a_guide_that_is_sure(backend, kind):
    """Minus infinity says never; NaN that counts is an error, and infinity, of which a list has no shares."""
    scores, guide = torch.randn(2, 4), torch.tensor([[-np.inf, 0.0, 1.0], [1.0, -np.inf, -np.inf]])
    options = {"distill_kind": kind, "backend": backend}
    _, distill, slopes = losses_and_slopes(scores=scores, m=0, guide=guide, **options)
    assert np.isfinite(distill) and slopes.isfinite().all()
    if kind == "listwise":
        np.testing.assert_allclose(
            distill, oracle.listwise(scores[:, 1:].numpy(), guide.numpy(), 1, 1, guide == guide), rtol=1e-5
        )
    for bad in (np.nan, *([np.inf] if kind == "listwise" else [])):
        with pytest.raises(bd.NonFiniteLoss, match="distill nan"):
            losses_and_slopes(scores=scores, m=0, guide=guide.index_fill(1, torch.tensor([1]), bad), **options)


def test_kernels_number_the_losses_as_the_ranges_do():
    text = (ROOT / "csrc/core/step.h").read_text()
    for enum, losses in (("CfLoss", FUSED_LOSSES), ("DistillLoss", DISTILL_LOSSES)):
        (found,) = re.findall(rf"enum class {enum} : int64_t {{ (.*) }};", text)
        assert found.split(", ") == [f"k{loss.capitalize()}" for loss in losses]
