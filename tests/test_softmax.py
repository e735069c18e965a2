"""softmax_loss: values and gradients against NumPy in float64, whatever the blocks; extremes; errors."""

import numpy as np
import pytest
import torch

import bdkernels as bd
from bdkernels.ops import softmax


def problem(rng, r=6, n=40, d=5, b=17, bias=True, dtype=torch.float32):
    users, items = (torch.from_numpy(rng.standard_normal((each, d))).to(dtype) for each in (r, n))
    given = torch.from_numpy(rng.standard_normal(n)).to(dtype) if bias else None
    rows, positives = torch.from_numpy(rng.integers(0, r, b)), torch.from_numpy(rng.integers(0, n, b))
    return bd.Factors(users, items, given), rows, positives


def dense(f, rows, positives, weights=None):
    """Loss and gradients, one interaction after the other."""
    users, items = (t.double().numpy() for t in f[:2])
    bias = np.zeros(len(items)) if f.item_bias is None else f.item_bias.double().numpy()
    loss, grads = 0.0, [np.zeros_like(users), np.zeros_like(items), np.zeros(len(items))]
    weights = [1 / len(rows)] * len(rows) if weights is None else weights.tolist()
    for row, positive, weight in zip(rows.tolist(), positives.tolist(), weights, strict=True):
        scores = items @ users[row] + bias
        chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        loss -= weight * np.log(chances[positive])
        slope = weight * (chances - (np.arange(len(items)) == positive))
        grads[0][row] += slope @ items
        grads[1] += slope[:, None] * users[row]
        grads[2] += slope
    return loss, grads


def run(f, rows, positives, weights=None):
    leaves = [t.clone().requires_grad_() for t in f if t is not None]
    loss = bd.softmax_loss(bd.Factors(*leaves), rows, positives, weights)
    loss.backward()
    return loss.detach(), [t.grad for t in leaves]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scores", [1, 40, 81, 10**6])  # one user at a time, two, all
def test_against_numpy(rng, monkeypatch, scores, bias):
    monkeypatch.setitem(softmax.SCORES, "cpu", scores)
    for dtype, close in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        arguments = problem(rng, bias=bias, dtype=dtype)
        want, gradients = dense(*arguments)
        loss, found = run(*arguments)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss.item(), want, rtol=close)
        for got, gradient in zip(found, gradients, strict=False):
            np.testing.assert_allclose(got.numpy(), gradient, atol=close)
        assert bd.softmax_loss(*arguments).item() == loss.item()  # the same without a gradient


@pytest.mark.parametrize("scores", [1, 81, 10**6])
def test_weights(rng, monkeypatch, scores):
    """Any weights, 0 and negative ones too; those of a mean by hand are the mean."""
    monkeypatch.setitem(softmax.SCORES, "cpu", scores)
    for dtype, close in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        f, rows, positives = problem(rng, dtype=dtype)
        weights = torch.from_numpy(rng.standard_normal(17)).to(dtype)
        weights[3] = 0
        want, gradients = dense(f, rows, positives, weights)
        loss, found = run(f, rows, positives, weights)
        np.testing.assert_allclose(loss.item(), want, rtol=close)
        for got, gradient in zip(found, gradients, strict=True):
            np.testing.assert_allclose(got.numpy(), gradient, atol=close)
        assert bd.softmax_loss(f, rows, positives, weights).item() == loss.item()
        even = torch.full_like(weights, 1 / 17)
        torch.testing.assert_close(bd.softmax_loss(f, rows, positives, even), bd.softmax_loss(f, rows, positives))


def test_log_sums(rng):
    f, rows, positives = problem(rng, dtype=torch.float64)
    users = f.user_factors.clone().requires_grad_()
    found = bd.softmax_losses(f._replace(user_factors=users), rows, positives)
    assert not found.log_sums.requires_grad
    scores = f.user_factors @ f.item_factors.T + f.item_bias
    torch.testing.assert_close(found.log_sums, scores.logsumexp(1))
    torch.testing.assert_close(found.loss.detach(), (found.log_sums[rows] - scores[rows, positives]).mean())


def test_gradcheck(rng):
    f, rows, positives = problem(rng, 3, 7, 2, 5, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in f]
    assert torch.autograd.gradcheck(lambda *t: bd.softmax_loss(bd.Factors(*t), rows, positives), leaves)


def test_only_what_is_wanted_gets_a_gradient(rng):
    f, rows, positives = problem(rng)
    items = f.item_factors.clone().requires_grad_()
    (3 * bd.softmax_loss(f._replace(item_factors=items), rows, positives)).backward()
    np.testing.assert_allclose(items.grad.numpy(), 3 * dense(f, rows, positives)[1][1], atol=1e-5)
    assert f.user_factors.grad is None


def test_a_row_without_an_interaction_learns_nothing(rng):
    f, _, positives = problem(rng)
    _, (of_users, *_) = run(f, torch.full_like(positives, 2), positives)
    assert of_users[2].abs().sum() > 0
    assert of_users[[0, 1, 3, 4, 5]].abs().sum() == 0


@pytest.mark.parametrize("size", [1e4, 1e18])
def test_large_scores_stay_finite(size):
    """The largest score takes all: the loss is the distance to it."""
    users = torch.tensor([[1.0], [-1.0]])
    items = torch.tensor([[size], [-size], [0.0]])
    loss, gradients = run(bd.Factors(users, items), torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(size)  # 0 for the first user, 2 * size for the second
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[1].tolist() == [[0.5], [-0.5], [0.0]]


def test_nothing_to_learn():
    empty = torch.zeros(0, dtype=torch.int64)
    loss, gradients = run(bd.Factors(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)), empty, empty)
    assert loss == 0
    assert all((g == 0).all() for g in gradients)
    loss, gradients = run(bd.Factors(torch.ones(2, 3), torch.ones(0, 3)), empty, empty)
    assert loss == 0
    assert gradients[0].eq(0).all()


def test_a_bias_of_an_embedding(rng):
    f, rows, positives = problem(rng)
    loss, gradients = run(f, rows, positives)
    column = f._replace(item_bias=f.item_bias[:, None])
    got, found = run(column, rows, positives)
    assert got == loss
    assert found[2].shape == (40, 1)
    assert torch.equal(found[2].squeeze(1), gradients[2])


def test_strided_tables(rng):
    f, rows, positives = problem(rng)
    views = [torch.cat([t, torch.full_like(t, torch.nan)], 1)[:, :5] for t in f[:2]]
    assert bd.softmax_loss(bd.Factors(*views, f.item_bias), rows, positives) == bd.softmax_loss(f, rows, positives)


def test_errors(rng):
    f, rows, positives = problem(rng)
    with pytest.raises(ValueError, match=r"rows: expected numbers in \[0, 6\)"):
        bd.softmax_loss(f, rows + 6, positives)
    with pytest.raises(ValueError, match=r"positives: expected ids in \[0, 40\)"):
        bd.softmax_loss(f, rows, positives - 40)
    with pytest.raises(ValueError, match=r"positives: expected shape \[17\]"):
        bd.softmax_loss(f, rows, positives[:3])
    with pytest.raises(ValueError, match=r"weights: expected shape \[17\]"):
        bd.softmax_loss(f, rows, positives, torch.ones(3))
    with pytest.raises(ValueError, match="weights: expected float32"):
        bd.softmax_loss(f, rows, positives, torch.ones(17, dtype=torch.float64))
    with pytest.raises(ValueError, match="weights: expected constants"):
        bd.softmax_loss(f, rows, positives, torch.ones(17, requires_grad=True))
    with pytest.raises(ValueError, match="user_factors: expected float32 or float64"):
        bd.softmax_loss(bd.Factors(*(t.half() for t in f)), rows, positives)
    with pytest.raises(bd.NonFiniteLoss):
        bd.softmax_loss(f._replace(user_factors=f.user_factors * torch.inf), rows, positives)
    with pytest.raises(TypeError, match="rows: expected Tensor, got list"):
        bd.softmax_loss(f, rows.tolist(), positives)
    with pytest.raises(bd.BackendError, match="backend: expected one of"):
        bd.softmax_loss(f, rows, positives, backend="none")


def test_no_second_derivative(rng):
    f, rows, positives = problem(rng)
    users = f.user_factors.clone().requires_grad_()
    (grad,) = torch.autograd.grad(
        bd.softmax_loss(f._replace(user_factors=users), rows, positives), users, create_graph=True
    )
    with pytest.raises(RuntimeError, match="softmax_loss: no second derivative"):
        grad.sum().backward()


def test_compiled(rng):
    f, rows, positives = problem(rng)
    leaves = [t.clone().requires_grad_() for t in f]
    compiled = torch.compile(lambda *t: bd.softmax_loss(bd.Factors(*t), rows, positives) * 2, fullgraph=True)
    compiled(*leaves).backward()
    _, want = run(f, rows, positives)
    for leaf, gradient in zip(leaves, want, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)
