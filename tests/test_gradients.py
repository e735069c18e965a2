"""Gradients of `score`, and the derivatives that the differentiable operators refuse rather than drop."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vmap

import bdkernels as bd

IDS = torch.tensor([[0, 3, 3], [8, 3, 1], [5, 5, 5], [2, 8, 0]])


def tables(dtype=torch.float32, bias=True):
    made = torch.randn(4, 5), torch.randn(9, 5), torch.randn(9)
    made = [t.to(dtype).requires_grad_() for t in made]
    return made if bias else [*made[:2], None]


def by_torch(users, items, bias):
    out = (users[:, None] * items[IDS]).sum(2)
    return out if bias is None else out + bias[IDS]


@pytest.mark.parametrize("bias", [True, False])
def test_score_gradcheck(bias):
    made = tables(torch.float64, bias)
    assert torch.autograd.gradcheck(lambda *t: bd.score(bd.Factors(*t), IDS), made)
    torch.testing.assert_close(bd.score(bd.Factors(*made), IDS), by_torch(*made))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_score_gives_each_table_its_gradient(backend, dtype, sparse):
    made = tables(dtype)
    weight = torch.randn(IDS.shape)
    got = torch.autograd.grad((bd.score(bd.Factors(*made), IDS, sparse=sparse, backend=backend) * weight).sum(), made)
    assert [g.is_sparse for g in got] == [False, sparse, sparse]
    wide = [t.detach().float().requires_grad_() for t in made]
    for g, want in zip(got, torch.autograd.grad((by_torch(*wide) * weight).sum(), wide), strict=True):
        assert g.dtype == dtype
        tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(g.to_dense().float(), want, **tolerance)


def test_a_loss_of_scores_reaches_every_table(backend):
    users, items, bias = tables()
    bd.distill_loss(bd.score(bd.Factors(users, items, bias), IDS, backend=backend), torch.randn(4, 3)).backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (users, items, bias))


def test_score_asks_only_for_what_is_wanted(backend):
    users, items, bias = tables()
    assert not bd.score(bd.Factors(*(t.detach() for t in (users, items, bias))), IDS, backend=backend).requires_grad
    with torch.no_grad():
        assert not bd.score(bd.Factors(users, items, bias), IDS, backend=backend).requires_grad
    bd.score(bd.Factors(users, items.detach(), bias.detach()), IDS, backend=backend).sum().backward()
    assert users.grad is not None and items.grad is None and bias.grad is None


@pytest.mark.parametrize("sparse", [False, True])
def test_score_compiled(backend, sparse):
    def run(users, items, bias):
        return bd.score(bd.Factors(users, items, bias), IDS, sparse=sparse, backend=backend).sin().sum()

    torch._dynamo.reset()
    results = []
    made = tables()
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        results.append(torch.autograd.grad(function(*made), made))
    for one, other in zip(*results, strict=True):
        assert one.is_sparse == other.is_sparse
        torch.testing.assert_close(one.to_dense(), other.to_dense())


def test_score_backward_is_exempt_from_autocast():
    made = tables()
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(bd.score(bd.Factors(*made), IDS).sum(), made)
    for g, want in zip(got, torch.autograd.grad(by_torch(*made).sum(), made), strict=True):
        torch.testing.assert_close(g, want)


def distilled(x):
    return bd.distill_loss(x, torch.ones(4, 5))


def scored(x):
    return bd.score(bd.Factors(x, torch.ones(9, 5)), IDS).sum()


def stepped(x):
    draws = bd.Draws(IDS, IDS >= 0)
    return bd.fused_loss(x, torch.ones(9, 5), None, IDS[:, 0] % 4, IDS[:, 0], IDS[:, :1], draws, torch.ones(4, 3)).loss


DIFFERENTIABLE = pytest.mark.parametrize("f", [distilled, scored, stepped])
INSTEAD = "it has first derivatives by torch.autograd .* compute this part with operations of torch itself"


def forward_mode(f):
    def run(x):
        with forward_ad.dual_level():
            return f(forward_ad.make_dual(x, torch.ones_like(x)))

    return run


def compiled_jvp(f):
    return lambda x: torch.compile(lambda y: jvp(f, (y,), (torch.ones_like(y),))[1], backend="eager")(x)


@DIFFERENTIABLE
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),)),
        grad,
        hessian,
        lambda f: lambda x: vmap(grad(f))(torch.stack([x, x])),
        lambda f: lambda x: grad(lambda y: vmap(f)(y).sum())(torch.stack([x, x])),
        forward_mode,
        compiled_jvp,
    ],
    ids=["jvp", "grad", "hessian", "vmap of grad", "grad of vmap", "forward mode", "compiled jvp"],
)
@pytest.mark.filterwarnings("ignore")  # of torch itself, for a vmap without a batching rule
def test_other_derivatives_are_refused(f, transform):
    torch._dynamo.reset()
    with pytest.raises(Exception, match=f"no (forward-mode )?derivative.*: {INSTEAD}"):
        transform(f)(torch.randn(4, 5))


@DIFFERENTIABLE
def test_second_derivatives_are_refused(f):
    """Whichever way leads to them: none is a silent 0."""
    x = torch.randn(4, 5, requires_grad=True)
    (first,) = torch.autograd.grad(f(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"no second derivative: {INSTEAD}"):
        torch.autograd.grad(first.to_dense().square().sum(), x)
    with pytest.raises(RuntimeError, match=f"no second derivative: {INSTEAD}"):
        torch.autograd.functional.jvp(lambda y: f(y) * 1.0, x, torch.ones_like(x))
    assert not torch.autograd.grad(f(x), x)[0].requires_grad


@DIFFERENTIABLE
@pytest.mark.filterwarnings("ignore")
def test_vmap_without_derivatives_is_right(f):
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(vmap(f)(x), torch.stack([f(x[0]), f(x[1])]))


def test_integers_are_constants_to_every_transform():
    """Ranks and draws within a function that torch.func differentiates."""
    items = torch.randn(9, 5)

    def loss(users):
        f = bd.Factors(users, items)
        drawn = bd.sample(f, f, 3, to_student=bd.Uniform(), user_ids=torch.arange(4), step=0).to_student.ids
        listed = torch.cat([drawn, bd.topk(f, 2).ids], 1)
        return ((users[:, None] * items[listed]).sum(2) / bd.rank(f, listed)).sum()

    users = torch.randn(4, 5)
    leaf = users.clone().requires_grad_()
    torch.testing.assert_close(grad(loss)(users), torch.autograd.grad(loss(leaf), leaf)[0])
    assert jvp(loss, (users,), (torch.ones_like(users),))[1] != 0
