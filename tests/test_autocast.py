"""torch.autocast: operators compute what they compute without it, and take what the rest of a mixed-precision step makes."""

import pytest
import torch
from stages import STAGES, problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import bdkernels as bd

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALF
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_nothing_changes(monkeypatch, backend, stage, dtype):
    """The same bits and dtypes, forward and backward, for tables in float32."""
    monkeypatch.setenv("BDKERNELS_BACKEND", backend)
    p = problem()
    want = stage(p)
    with torch.autocast("cpu", dtype):
        assert (p.scores[:, :2] @ torch.randn(2, 2)).dtype == dtype  # it is on
        got = stage(p)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@HALF
@pytest.mark.parametrize("kind", ["bce", "listwise"])
def test_scores_of_half_precision(backend, dtype, kind):
    """What a matmul gives within autocast: the loss is float32, the gradient has the scores' dtype, parameters keep theirs."""
    tower, items = torch.nn.Linear(6, 4), torch.randn(9, 4)
    with torch.autocast("cpu", dtype):
        z, guide = tower(torch.randn(5, 6)) @ items.T, torch.randn(5, 9)
        loss = bd.distill_loss(z, guide, kind=kind, backend=backend)
    assert (z.dtype, loss.dtype) == (dtype, torch.float32)
    (slope, grad) = torch.autograd.grad(loss, (z, tower.weight))
    assert (slope.dtype, grad.dtype) == (dtype, torch.float32)
    want = bd.distill_loss(z.detach(), torch.zeros(5, 9), kind=kind, backend=backend)
    exact = bd.distill_loss(z.detach().double(), torch.zeros(5, 9), kind=kind)
    torch.testing.assert_close(want.double(), exact, rtol=1e-6, atol=1e-7)


@HALF
def test_factors_of_half_precision(backend, dtype):
    """Towers within autocast give users and items of one dtype; one of each is an error that says so."""
    towers = torch.nn.Linear(6, 4), torch.nn.Linear(7, 4)
    with torch.autocast("cpu", dtype):
        f = bd.Factors(towers[0](torch.randn(5, 6)), towers[1](torch.randn(30, 7)))
        ids = bd.topk(f, 3, backend=backend).ids
        assert torch.equal(bd.rank(f, ids, backend=backend), torch.arange(1, 4).expand(5, 3))
        assert bd.score(f, ids, backend=backend).dtype == torch.float32
        with pytest.raises(ValueError, match=f"item_factors: expected {str(dtype)[6:]}, got torch.float32"):
            bd.topk(f._replace(item_factors=f.item_factors.float()), 3, backend=backend)


def test_tables_of_a_step_are_float32(backend):
    """Whether autocast is on or not: their gradients are rows of the same tables."""
    p = problem()
    tables = [t.bfloat16() for t in p.tables]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="user_table: expected float32 or float64"),
    ):
        bd.fused_loss(*tables, *p.batch, p.draws, p.guide, backend=backend)


@pytest.mark.parametrize("sparse", [False, True])
def test_scaled_losses(backend, sparse):
    """GradScaler multiplies the loss, divides the gradients, and looks into them for infinities; sparse ones too."""
    p = problem()
    tables = [t.requires_grad_() for t in p.tables]
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.optim.SGD(tables, lr=1.0)
    loss, again = (
        bd.fused_loss(*tables, *p.batch, p.draws, p.guide, sparse=sparse, backend=backend).loss for _ in range(2)
    )
    want = torch.autograd.grad(again, tables)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for table, grad in zip(tables, want, strict=True):
        torch.testing.assert_close(table.grad.to_dense(), grad.to_dense())


@pytest.fixture
def autocast_of_cuda():
    """As within torch.autocast("cuda"), which turns itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


OPS = torch.ops.bdkernels
FORWARD = {name: STAGES[name] for name in ("score", "rank", "count_above_block", "topk", "sample")} | {
    "distill_loss": lambda p: (OPS.distill_loss(p.guide.bfloat16(), p.guide, 1.0, 2.0, p.draws.mask, "listwise"),),
    "distill_loss_backward": lambda p: (
        OPS.distill_loss_backward(p.guide.sum(), p.guide.bfloat16(), p.guide, 1.0, 2.0, p.draws.mask, "listwise"),
    ),
    "fused_gradient": lambda p: OPS.fused_gradient(
        *p.tables, *p.batch, p.draws.ids, p.guide, p.draws.mask, "softmax", "listwise", 0.5, 1.0, 2.0
    ),
}


@pytest.mark.parametrize("stage", FORWARD.values(), ids=FORWARD)
def test_fake_tensors_on_cuda(autocast_of_cuda, stage):
    """Shapes, dtypes and devices of what would run there; no autograd and no views, which need a driver even so."""
    p = problem()
    with FakeTensorMode():
        there = tree_map_only(torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"), p)
        assert (there.guide @ there.guide.T).dtype == torch.bfloat16  # it is on
        got = stage(there)
    for fake, real in zip(got, stage(p), strict=True):
        assert (fake.shape, fake.dtype, fake.device.type) == (real.shape, real.dtype, "cuda")
