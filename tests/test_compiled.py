"""torch.compile: every operator in one graph with whatever stands around it, compiled once for all sizes and all steps."""

import pytest
import torch
from chosen import BACKENDS
from stages import STAGES, problem
from test_loss import tables_and_batch
from torch._dynamo.testing import CompileCounterWithBackend

import bdkernels as bd

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch itself, while it traces
    pytest.mark.parametrize("backend", BACKENDS, indirect=True),  # in no float mode: a graph calls the same stages
]
RULES = pytest.mark.parametrize("rule", [bd.SGD, bd.Adagrad, bd.SparseAdam])


@pytest.fixture
def compiled():
    """Compiles to one graph and runs its parts as they are; `frame_count` tells how often it was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def compile(function):
        return torch.compile(function, fullgraph=True, backend=counter)

    compile.counter = counter  # type: ignore[attr-defined]
    return compile


def fresh(tables):
    return [t.detach().clone().requires_grad_() for t in tables]


@pytest.mark.parametrize("name", ["score", "rank", "count_above", "count_above_block", "topk", "sample"])
def test_without_gradient(compiled, monkeypatch, backend, name):
    """One graph for the first sizes, one for all others."""
    monkeypatch.setenv("BDKERNELS_BACKEND", backend)
    run = compiled(STAGES[name])
    for b, n in ((5, 203), (7, 211), (12, 97), (3, 90)):
        p = problem(b, n)
        for one, other in zip(run(p), STAGES[name](p), strict=True):
            assert torch.equal(one, other)
    assert compiled.counter.frame_count <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bce", "listwise"])
def test_distill_loss(compiled, backend, dtype, kind):
    def run(x, weight, guide, mask):
        scores = x.to(dtype) @ weight.to(dtype)
        return 2 * bd.distill_loss(scores, guide, 0.7, 2.0, mask, kind=kind, backend=backend).sin()

    step = compiled(run)
    for b in (4, 9, 2):
        x, guide, mask = torch.randn(b, 6), torch.randn(b, 3), torch.rand(b, 3) < 0.6
        weights = fresh([torch.randn(6, 3)] * 2)
        for function, weight in zip((step, run), weights, strict=True):
            function(x, weight, guide, mask).backward()
        torch.testing.assert_close(weights[0].grad, weights[1].grad)
    assert compiled.counter.frame_count <= 2


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("lower", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("cf", "kind"), [("bpr", "bce"), ("softmax", "listwise")])
def test_fused_loss(backend, sparse, lower, cf, kind):
    """Loss, its parts, and gradients; of sparse ones, which torch.compile cannot trace, it makes no break."""
    losses = {"cf": cf, "distill_kind": kind}

    def run(tables, batch):
        return bd.fused_loss(*tables, *batch, **losses, distill_weight=0.3, sparse=sparse, backend=backend)

    torch._dynamo.reset()
    step = torch.compile(run, fullgraph=True, backend=lower)
    tables, batch = tables_and_batch(8, 2, 3)
    results = []
    for function in (step, run):
        leaves = fresh(tables)
        out = function(leaves, batch)
        (out.loss * 2).backward()
        assert all(leaf.grad.is_sparse == sparse for leaf in leaves)
        results.append([*(t.detach() for t in out), *(leaf.grad.to_dense() for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_numbers_that_change(backend):
    """Compiled again, never stale: torch once kept the old value of a number that was used twice (pytorch 194976)."""

    def run(tables, batch, distill_weight, tau):
        return bd.fused_loss(*tables, *batch, distill_weight=distill_weight, tau_learner=tau, backend=backend).loss

    torch._dynamo.reset()
    step, tables = torch.compile(run, fullgraph=True), tables_and_batch(1, 1, 1)[0]
    for i in range(1, 5):
        leaves, batch = [fresh(tables) for _ in range(2)], tables_and_batch(5, 2, 3)[1]
        losses = step(leaves[0], batch, i / 5, 1 + i / 7), run(leaves[1], batch, i / 5, 1 + i / 7)
        torch.testing.assert_close(*losses)
        for one, other in zip(*map(torch.autograd.grad, losses, leaves), strict=True):
            torch.testing.assert_close(one.to_dense(), other.to_dense())


@RULES
@pytest.mark.parametrize("lower", ["aot_eager", "inductor"])
def test_fused_step(lower, backend, rule):
    """Neither the number of steps nor the learning rate, which a scheduler changes, ends up in the graph."""
    tables, _ = tables_and_batch(1, 1, 1)
    optimizers = [rule([t.clone() for t in tables], lr=0.1) for _ in range(2)]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8) for optimizer in optimizers]

    def run(optimizer, batch):
        return bd.fused_step(optimizer, *batch, backend=backend).loss

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(lower)
    step = torch.compile(run, fullgraph=True, backend=counter)
    for i in range(12):
        batch = tables_and_batch(3 + i % 5, 2, 3)[1]
        torch.testing.assert_close(step(optimizers[0], batch), run(optimizers[1], batch))
        for scheduler in schedulers:
            scheduler.step()
    assert counter.frame_count <= 3
    assert optimizers[0].step_count == optimizers[1].step_count == 12
    for one, other in zip(optimizers[0].row_state(), optimizers[1].row_state(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(optimizers[0].item_table, optimizers[1].item_table)


def test_bad_values_are_found_in_a_graph(compiled, backend):
    """Shapes while it compiles, values at each call."""
    f, ids = bd.Factors(torch.randn(3, 4), torch.randn(10, 4)), torch.zeros(3, 2, dtype=torch.int64)
    run = compiled(lambda ids: bd.rank(f, ids, backend=backend) + 1)
    run(ids)
    with pytest.raises(ValueError, match=r"ids: expected ids in \[0, 10\), got 10 to 10"):
        run(ids + 10)
    with pytest.raises(Exception, match=r"ids: expected shape \[3, C\], got"):
        run(ids[:2])


def test_within_autocast(compiled, backend):
    """Half precision around the operator, none in it."""
    tower = torch.nn.Linear(6, 9)
    x, guide = torch.randn(5, 6), torch.randn(5, 9)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return bd.distill_loss(tower(x), guide, backend=backend)

    losses = compiled(run)(x), run(x)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, tower.weight)[0] for loss in losses))
