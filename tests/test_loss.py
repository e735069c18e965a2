"""distill_loss and bd_step_loss: values against NumPy formulas, gradients against finite differences and against autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bdkernels as bd


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_distill(z, g, tau_l, tau_g, mask):
    p, t = sigmoid(z / tau_l), sigmoid(g / tau_g)
    terms = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return terms[mask].mean() if mask.any() else 0.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5,), (2, 3, 4)])
@pytest.mark.parametrize(("tau_l", "tau_g"), [(1.0, 1.0), (0.5, 5.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_distill_loss_value(rng, shape, tau_l, tau_g, masked):
    z, g = rng.standard_normal(shape) * 3, rng.standard_normal(shape) * 3
    mask = rng.random(shape) < 0.6 if masked else np.ones(shape, bool)
    given = torch.from_numpy(mask) if masked else None
    got = bd.distill_loss(torch.from_numpy(z), torch.from_numpy(g), tau_l, tau_g, given)
    np.testing.assert_allclose(got.item(), numpy_distill(z, g, tau_l, tau_g, mask), rtol=1e-12)


def test_distill_loss_gradcheck():
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    g, mask = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5) < 0.5
    for m in (None, mask, torch.zeros_like(mask)):
        assert torch.autograd.gradcheck(lambda x, m=m: bd.distill_loss(x, g, 0.7, 2.0, m), (z,))


def test_distill_loss_follows_the_guide_only():
    z, g = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    bd.distill_loss(z, g).backward()
    assert g.grad is None
    assert z.grad is not None


def test_distill_loss_is_deaf_to_what_is_masked():
    """NaN and infinities under the mask reach neither the loss nor the gradient; extreme scores stay finite."""
    z = torch.tensor([[float("nan"), 1.0, float("inf"), 80.0]], requires_grad=True)
    g = torch.tensor([[0.0, float("nan"), 1.0, -80.0]])
    mask = torch.tensor([[False, False, False, True]])
    loss = bd.distill_loss(z, g, mask=mask)
    loss.backward()
    assert loss.item() == pytest.approx(80.0)
    assert z.grad.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    nothing = bd.distill_loss(z, g, mask=torch.zeros_like(mask))
    assert nothing.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distill_loss_error_is_that_of_float32(dtype):
    """Half precision is widened first: the loss is that of the rounded scores, the gradient has the scores' dtype."""
    z = torch.randn(64, 8).to(dtype).requires_grad_()
    g = torch.randn(64, 8).to(dtype)
    loss = bd.distill_loss(z, g, 2.0, 1.0)
    loss.backward()
    want = bd.distill_loss(z.detach().double(), g.double(), 2.0, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    assert z.grad.dtype == dtype


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


def plain_step(user, item, bias, users, positives, negatives, draws, guide, cf, lambda_, tau_l, tau_g):
    """The same loss in everyday autograd."""

    def s(ids):
        dots = (user[users][:, None] * item[ids]).sum(-1)
        return dots if bias is None else dots + bias[ids]

    pos, neg, z = s(positives[:, None]), s(negatives), s(draws.ids.clamp(min=0))
    if cf == "bce":
        logits = torch.cat([pos, neg], 1)
        labels = torch.zeros_like(logits).index_fill_(1, torch.tensor([0]), 1.0)
        cf_loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
    else:
        cf_loss = -F.logsigmoid(pos - neg).sum(1).mean()
    target = torch.sigmoid(guide / tau_g)
    terms = F.binary_cross_entropy_with_logits(z / tau_l, target, reduction="none")
    distill = terms[draws.mask].mean() if draws.mask.any() else terms.sum() * 0
    return cf_loss + lambda_ * distill


@pytest.mark.parametrize("cf", ["bce", "bpr"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_bd_step_loss_against_autograd(cf, with_bias, sparse):
    user, item, bias, *rest = step_inputs()
    leaves = [t.clone().requires_grad_() for t in (user, item, bias)]
    twins = [t.clone().requires_grad_() for t in (user, item, bias)]
    if not with_bias:
        leaves[2], twins[2] = None, None
    options = {"cf": cf, "lambda_": 0.3, "tau_learner": 0.8, "tau_guide": 2.0}
    out = bd.bd_step_loss(*leaves, *rest, **options, sparse=sparse)
    want = plain_step(*twins, *rest, cf, 0.3, 0.8, 2.0)
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(out.cf + 0.3 * out.distill, want)
    (2 * out.loss).backward()
    (2 * want).backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        if leaf is not None:
            assert leaf.grad.is_sparse == sparse
            torch.testing.assert_close(leaf.grad.to_dense(), twin.grad)


def test_bd_step_loss_gradcheck():
    user, item, bias, *rest = step_inputs()
    leaves = tuple(t.requires_grad_() for t in (user, item, bias))
    for cf in ("bce", "bpr"):
        assert torch.autograd.gradcheck(
            lambda *p, cf=cf: bd.bd_step_loss(*p, *rest, cf=cf, lambda_=0.4, sparse=False).loss, leaves
        )


@pytest.mark.parametrize("anything", [-5, 15, 2**63 - 1, -(2**63)])
def test_bd_step_loss_is_deaf_to_what_is_masked(anything):
    """Masked ids may be no ids at all, and no row is touched for them: here row 0, which holds NaN."""
    user, item, bias, _, _, _, draws, guide = step_inputs()
    users, positives, negatives = torch.arange(5), torch.tensor([2, 2, 14, 1, 7]), torch.tensor([[3]] * 5)
    item[0] = float("nan")
    mask = torch.tensor([[True, False, False, True]] * 5)
    guide[~mask] = float("nan")
    leaves = [t.requires_grad_() for t in (user, item, bias)]
    ids = (draws.ids.clamp(min=1)).masked_fill(~mask, anything)
    loss = bd.bd_step_loss(*leaves, users, positives, negatives, bd.Draws(ids, mask), guide).loss
    loss.backward()
    assert loss.isfinite()
    for leaf in leaves:
        assert leaf.grad.coalesce().values().isfinite().all()
    assert 0 not in leaves[1].grad.coalesce().indices()


def test_bd_step_loss_touches_only_its_rows():
    user, item, bias, users, positives, negatives, draws, guide = step_inputs(torch.float32)
    leaves = [t.requires_grad_() for t in (user, item, bias)]
    bd.bd_step_loss(*leaves, users, positives, negatives, draws, guide).loss.backward()
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
