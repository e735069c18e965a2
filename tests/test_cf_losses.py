"""The losses against sums written out one by one in float64."""

import math

import pytest
import torch
from bidistill.losses.bce import bce
from bidistill.losses.bpr import bpr
from bidistill.losses.softmax import softmax


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture(params=[(1, 1), (3, 1), (7, 4)], ids=str)
def scores(request):
    rows, columns = request.param
    generator = torch.Generator().manual_seed(rows)
    positive = torch.randn(rows, generator=generator) * 3
    negatives = torch.randn(rows, columns, generator=generator) * 3
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    mask[0, 0] = True
    return positive, negatives, mask


def test_bce(scores):
    positive, negatives, mask = scores
    terms = [-math.log(sigmoid(p)) for p in positive.tolist()]
    terms += [-math.log(1 - sigmoid(n)) for n in negatives[mask].tolist()]
    assert bce(*scores).item() == pytest.approx(sum(terms) / len(positive), rel=1e-5)


def test_bpr(scores):
    positive, negatives, mask = scores
    terms = [-math.log(sigmoid(positive[b].item() - negatives[b, m].item())) for b, m in mask.nonzero().tolist()]
    assert bpr(*scores).item() == pytest.approx(sum(terms) / len(positive), rel=1e-5)


def test_softmax(scores):
    positive, negatives, mask = scores
    terms = []
    for s, others, live in zip(positive.tolist(), negatives, mask, strict=True):
        terms.append(math.log(math.exp(s) + sum(math.exp(n) for n in others[live].tolist())) - s)
    assert softmax(*scores).item() == pytest.approx(sum(terms) / len(positive), rel=1e-5)


@pytest.mark.parametrize("loss", [bce, bpr, softmax])
def test_masked_negatives_get_no_gradient(loss, scores):
    positive, negatives, mask = scores
    negatives = negatives.clone().requires_grad_()
    loss(positive, negatives, mask).backward()
    assert (negatives.grad[~mask] == 0).all()
    assert (negatives.grad[mask] != 0).all()


def test_no_negative_at_all():
    positive, negatives = torch.tensor([0.5], requires_grad=True), torch.tensor([[7.0]])
    none = torch.tensor([[False]])
    assert bpr(positive, negatives, none).item() == softmax(positive, negatives, none).item() == 0
    assert bce(positive, negatives, none).item() == pytest.approx(-math.log(sigmoid(0.5)), rel=1e-5)


@pytest.mark.parametrize("loss", [bce, bpr, softmax])
def test_huge_scores_stay_finite(loss):
    positive = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = loss(positive, torch.tensor([[1e4], [-1e4]]), torch.ones(2, 1, dtype=torch.bool))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(positive.grad).all()


@pytest.mark.parametrize("loss", [bce, bpr, softmax])
def test_gradcheck(loss):
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    negatives = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 3, generator=generator) < 0.6
    assert torch.autograd.gradcheck(lambda p, n: loss(p, n, mask), (positive, negatives))
