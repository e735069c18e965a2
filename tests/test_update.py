"""fused_step: against autograd and torch.optim, bit for bit across threads and instruction sets, just the touched rows."""

import os
import subprocess
import sys

import pytest
import torch
from test_loss import plain_step, tables_and_batch

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import cpu

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch.optim.Adagrad's own
OPTIMIZERS = {
    "sgd": (lambda t, **o: bd.SGD(t, 0.1, **o), lambda t: torch.optim.SGD(t, 0.1)),
    "adagrad": (
        lambda t, **o: bd.Adagrad(t, 0.1, eps=1e-8, initial_accumulator_value=0.01, **o),
        lambda t: torch.optim.Adagrad(t, 0.1, eps=1e-8, initial_accumulator_value=0.01),
    ),
    "adam": (
        lambda t, **o: bd.SparseAdam(t, 0.05, betas=(0.8, 0.95), **o),
        lambda t: torch.optim.SparseAdam(t, 0.05, betas=(0.8, 0.95)),
    ),
}
OPTIONS = {"cf": "bpr", "distill_kind": "bce", "distill_weight": 0.6, "tau_learner": 0.7, "tau_guide": 2.0}


def make(rule, tables, **options):
    """A fused optimizer on copies of the tables."""
    return OPTIMIZERS[rule][0]([None if t is None else t.clone() for t in tables], **options)


def results(optimizer):
    tables = optimizer.user_table, optimizer.item_table, optimizer.item_bias
    return [t.detach() for t in (*tables, *optimizer.row_state()) if t is not None]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def touched(batch):
    users, positives, negatives, draws, _ = batch
    return users.unique(), torch.cat([positives, negatives.flatten(), draws.ids[draws.mask]]).unique()


def torch_step(tables, optimizer, batch, weight_decay, options):
    """One step of everyday PyTorch: dense autograd, then the touched rows as a sparse gradient."""
    *rest, draws, guide = batch
    clean = bd.Draws(draws.ids.where(draws.mask, 0), draws.mask), guide.where(draws.mask, 0.0)
    optimizer.zero_grad()
    loss = plain_step(*tables, *rest, *clean, *options.values())
    loss.backward()
    users, items = touched(batch)
    for table, ids in zip(tables, (users, items, items), strict=True):
        if table is not None:
            rows = table.grad[ids] + weight_decay * table.detach()[ids]
            table.grad = torch.sparse_coo_tensor(
                ids[None], rows, table.shape, is_coalesced=True, check_invariants=False
            )
    optimizer.step()
    return loss.detach()


def batches(kind, steps, dtype):
    sizes = {"many": (40, 4, 5), "one row": (1, 1, 1), "nothing distilled": (30, 1, 0), "wide": (12, 31, 2)}
    for step in range(steps):
        torch.manual_seed(step + 1)
        _, (users, positives, negatives, draws, guide) = tables_and_batch(*sizes.get(kind, (40, 3, 4)))
        if kind == "all the same":
            users, positives, negatives = (torch.full_like(t, 7) for t in (users, positives, negatives))
            draws = bd.Draws(draws.ids.where(~draws.mask, 7), draws.mask)
        if kind == "all masked":
            draws = bd.Draws(torch.full_like(draws.ids, -1), torch.zeros_like(draws.mask))
        yield users, positives, negatives, draws, guide.to(dtype)


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
@pytest.mark.parametrize("kind", ["many", "one row", "nothing distilled", "wide", "all the same", "all masked"])
@pytest.mark.parametrize(
    ("losses", "with_bias", "weight_decay"),
    [
        (("bce", "bce"), True, 0.0),
        (("bpr", "bce"), True, 0.02),
        (("bpr", "bce"), False, 0.0),
        (("softmax", "listwise"), True, 0.02),
    ],
)
def test_like_torch_optim(backend, rule, kind, losses, with_bias, weight_decay):
    """float32 in every backend; float64, near enough to tell a wrong formula, in the reference, which alone has it."""
    dtypes = (torch.float32, torch.float64) if backend == "reference" else (torch.float32,)
    for dtype in dtypes:
        options = OPTIONS | dict(zip(("cf", "distill_kind"), losses, strict=True))
        like_torch_optim(backend, rule, kind, options, with_bias, weight_decay, dtype)


def like_torch_optim(backend, rule, kind, options, with_bias, weight_decay, dtype):
    tables = [t.to(dtype) for t in tables_and_batch(1, 1, 1)[0]]
    if (
        options["cf"] == "softmax"
    ):  # smaller scores: Adam makes full steps of shares so small that they are rounding alone
        tables = [0.3 * t for t in tables]
    if not with_bias:
        tables[2] = None
    twins = [None if t is None else t.clone().requires_grad_() for t in tables]
    optimizer = make(rule, tables, weight_decay=weight_decay)
    peer = OPTIMIZERS[rule][1]([t for t in twins if t is not None])
    rtol, atol = (1e-10, 1e-12) if dtype == torch.float64 else (2e-5, 2e-5)
    for batch in batches(kind, 4, dtype):
        out = bd.fused_step(optimizer, *batch, **options, backend=backend)
        want = torch_step(twins, peer, batch, weight_decay, options)
        torch.testing.assert_close(out.loss, want, rtol=rtol, atol=atol)
        for got, twin in zip(results(optimizer), (t for t in twins if t is not None), strict=False):
            torch.testing.assert_close(got, twin.detach(), rtol=rtol, atol=atol)
    assert optimizer.step_count == 4


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
def test_losses_are_those_of_fused_loss(backend, rule):
    tables, batch = tables_and_batch(33, 3, 4)
    want = bd.fused_loss(*tables, *batch, **OPTIONS, backend=backend)
    out = bd.fused_step(make(rule, tables), *batch, **OPTIONS, backend=backend)
    assert same(out, want)


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
def test_other_rows_keep_their_bits(backend, rule):
    tables, batch = tables_and_batch(3, 1, 2)
    optimizer = make(rule, tables, weight_decay=0.1)
    before = [t.clone() for t in results(optimizer)]
    bd.fused_step(optimizer, *batch, backend=backend)
    each = len(optimizer.names)
    owners = [0, 1, 2] + [i for i in range(3) for _ in range(each)]
    users, items = touched(batch)
    for was, now, owner in zip(before, results(optimizer), owners, strict=True):
        ids = users if owner == 0 else items
        moved = (was != now).reshape(len(was), -1).any(1).nonzero().flatten()
        assert torch.equal(moved, ids)


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
@pytest.mark.parametrize("spread", [40, 4000])
def test_threads_change_no_bit(backend, rule, spread, two_threads):
    """Repeats of a row may lie in the ranges of two threads: one of them owns it."""
    torch.manual_seed(5)
    tables, batch = tables_and_batch(700, 2, 9, n_users=spread // 2, n_items=spread)
    outcomes = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        optimizer = make(rule, tables)
        outs = [bd.fused_step(optimizer, *batch, **OPTIONS, backend=backend) for _ in range(2)]
        outcomes.append([*results(optimizer), *outs[0], *outs[1]])
    if backend == "cpu":
        assert same(*outcomes)
    else:  # its sums are PyTorch's
        torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("isa", cpu.ISAS)
def test_instruction_sets_change_no_bit(isa):
    """Forced by BDKERNELS_ISA in processes of their own."""
    if backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    code = (
        "import sys; sys.path.insert(0, 'tests'); import torch, bdkernels as bd; from test_update import *; torch.manual_seed(3);"
        "tables, batch = tables_and_batch(50, 35, 40, d=37); optimizer = make('adam', tables, weight_decay=0.1);"
        "out = [bd.fused_step(optimizer, *batch, cf=cf, distill_kind=kind, backend='cpu').loss"
        " for cf, kind in (('bce', 'bce'), ('bpr', 'bce'), ('softmax', 'listwise'))];"
        "print(cpu.isa(), hash(b''.join(t.numpy().tobytes() for t in (*out, *results(optimizer)))))"
    )

    def run(name):
        env = {**os.environ, "BDKERNELS_ISA": name, "PYTHONHASHSEED": "0"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)

    out = run(isa)
    if "one that this CPU has" in out.stderr + out.stdout:
        pytest.skip(f"this CPU has no {isa}")
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == [isa, run("").stdout.split()[1]]


def test_what_is_masked_moves_nothing(backend):
    tables, (users, positives, negatives, draws, guide) = tables_and_batch(20, 2, 6)
    clean = bd.Draws(draws.ids.where(draws.mask, 3), draws.mask), guide.where(draws.mask, 1.0)
    optimizers = make("adam", tables), make("adam", tables)
    bd.fused_step(optimizers[0], users, positives, negatives, draws, guide, backend=backend)
    bd.fused_step(optimizers[1], users, positives, negatives, *clean, backend=backend)
    assert same(results(optimizers[0]), results(optimizers[1]))


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
def test_an_empty_batch_moves_nothing(backend, rule):
    tables, batch = tables_and_batch(0, 1, 2)
    optimizer = make(rule, tables)
    before = [t.clone() for t in results(optimizer)]
    out = bd.fused_step(optimizer, *batch, backend=backend)
    assert out.loss == 0
    assert same(before, results(optimizer))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("cf", "kind"), [("bce", "bce"), ("bpr", "bce"), ("softmax", "listwise")])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda u, v, b, guide: u[3].fill_(NAN),
        lambda u, v, b, guide: v.fill_(INF),  # of a positive: a loss of 0 or more, and a gradient that is NaN
        lambda u, v, b, guide: b.fill_(-INF),
        lambda u, v, b, guide: (u.fill_(1e30), v.fill_(1e30)),
        lambda u, v, b, guide: guide.fill_(NAN),
    ],
    ids=["nan user", "infinite items", "infinite bias", "overflow", "nan guide"],
)
def test_losses_that_are_not_finite_are_an_error(backend, spoil, cf, kind):
    """And nothing has changed then; on a GPU, for which the simulated backends stand, the rows of the batch have."""
    tables, batch = tables_and_batch(8, 1, 2, n_users=9, n_items=400, masked=False)
    users, guide = torch.arange(8), batch[-1]
    spoil(*tables, guide)
    optimizer = make("adam", tables)
    before = [t.clone() for t in results(optimizer)]
    message = "losses: expected finite numbers, got cf"
    with pytest.raises(bd.NonFiniteLoss, match=message):
        bd.fused_step(optimizer, users, *batch[1:], cf=cf, distill_kind=kind, backend=backend)
    assert optimizer.step_count == 0
    if backend in ("reference", "cpu") and "BDKERNELS_TEST_DEVICE" not in os.environ:
        assert same([t.view(torch.int32) for t in before], [t.view(torch.int32) for t in results(optimizer)])
        with pytest.raises(bd.NonFiniteLoss, match=message):
            bd.fused_loss(*tables, users, *batch[1:], cf=cf, distill_kind=kind, backend=backend)


def test_what_no_row_meets_may_be_anything(backend):
    tables, (users, positives, negatives, draws, guide) = tables_and_batch(20, 2, 6)
    tables[1][59] = NAN
    no = [torch.where(ids == 59, 1, ids) for ids in (positives, negatives, draws.ids)]
    guide = guide.where(draws.mask, NAN)
    out = bd.fused_step(make("adam", tables), users, *no[:2], bd.Draws(no[2], draws.mask), guide, backend=backend)
    assert out.loss.isfinite()


def test_parameters_and_strided_rows(backend):
    """Parameters that require grad, and rows inside of wider ones, whose other columns keep their bits."""
    tables, batch = tables_and_batch(15, 2, 3)
    wide = [torch.full((len(t), 30), 5.0) for t in tables[:2]]
    for w, t in zip(wide, tables[:2], strict=True):
        w[:, 4:23] = t
    plain = OPTIMIZERS["adagrad"][0]([torch.nn.Parameter(t.clone()) for t in tables])
    inside = bd.Adagrad([*(w[:, 4:23] for w in wide), tables[2].clone()], 0.1, eps=1e-8, initial_accumulator_value=0.01)
    for optimizer in (plain, inside):
        assert not bd.fused_step(optimizer, *batch, backend=backend).loss.requires_grad
    assert same(results(plain), results(inside))
    for w in wide:
        assert (w[:, :4] == 5).all() and (w[:, 23:] == 5).all()


def test_autograd_notices_the_change(backend):
    tables, batch = tables_and_batch(4, 1, 2)
    item = torch.nn.Parameter(tables[1])
    stale = (item**2).sum()
    bd.fused_step(bd.SGD([tables[0], item]), *batch, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
def test_a_run_goes_on_from_its_state(backend, rule, tmp_path):
    tables, batch = tables_and_batch(15, 2, 3)
    straight = make(rule, tables)
    for _ in range(2):
        bd.fused_step(straight, *batch, backend=backend)
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    resumed = make(rule, [straight.user_table, straight.item_table, straight.item_bias])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for optimizer in (straight, resumed):
        bd.fused_step(optimizer, *batch, backend=backend)
    assert resumed.step_count == 3
    assert same(results(straight), results(resumed))


def test_a_foreign_state_is_refused():
    tables, _ = tables_and_batch(1, 1, 1)
    adam = bd.SparseAdam(tables)
    with pytest.raises(ValueError, match="state_dict: expected of user_table .*exp_avg.*, got .*sum"):
        adam.load_state_dict(bd.Adagrad(tables).state_dict())
    other = bd.SparseAdam([tables[0][:5].clone(), *tables[1:]]).state_dict()
    with pytest.raises(ValueError, match=r"state_dict: user_table\.exp_avg: expected shape \[40, 19\], got \[5, 19\]"):
        adam.load_state_dict(other)


def wrong(name, value):
    """A batch of which one tensor is replaced."""
    names = ("users", "positives", "negatives", "distill", "guide_scores")
    _, batch = tables_and_batch(4, 1, 2, masked=False)
    return {**dict(zip(names, batch, strict=True)), name: value}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("users", torch.tensor([0, 1, 2, 40]), r"users: expected ids in \[0, 40\), got 0 to 40"),
        ("positives", torch.tensor([0, -1, 2, 3]), r"positives: expected ids in \[0, 60\), got -1 to 3"),
        ("negatives", torch.full((4, 1), 60), r"negatives: expected ids in \[0, 60\), got 60 to 60"),
        (
            "distill",
            bd.Draws(torch.full((4, 2), -1), torch.ones(4, 2, dtype=torch.bool)),
            r"distill_ids: expected ids in \[0, 60\), got -1 to -1",
        ),
        ("users", torch.zeros(4), "users: expected int64, got torch.float32"),
        ("guide_scores", torch.zeros(4, 2).double(), "guide_scores: expected float32, got torch.float64"),
        ("guide_scores", torch.zeros(4, 3), r"guide_scores: expected shape \[4, 2\], got \[4, 3\]"),
    ],
)
def test_errors_change_nothing(backend, name, value, message):
    optimizer = make("adam", tables_and_batch(4, 1, 2)[0])
    before = [t.clone() for t in results(optimizer)]
    with pytest.raises(ValueError, match=message):
        bd.fused_step(optimizer, **wrong(name, value), backend=backend)
    assert optimizer.step_count == 0
    assert same(before, results(optimizer))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda u, v, b: bd.SGD([u.half(), v, b]), "user_table: expected float32 or float64, got torch.float16"),
        (lambda u, v, b: bd.SGD([u, v.double(), b]), "item_table: expected float32, got torch.float64"),
        (lambda u, v, b: bd.SGD([u, v[:, :3], b]), r"item_table: expected shape \[N, 19\], got \[60, 3\]"),
        (lambda u, v, b: bd.SGD([u, v, b[:5]]), r"item_bias: expected shape \[60\], got \[5\]"),
        (
            lambda u, v, b: bd.SGD([u, v.T.contiguous().T, b]),
            r"item_table: expected rows in one piece each, got strides",
        ),
        (
            lambda u, v, b: bd.SGD([u[:1].expand(40, 19), v, b]),
            r"user_table: expected rows in one piece each, got strides",
        ),
        (lambda u, v, b: bd.SGD([u, v, v[:, 0]]), "item_bias: expected a contiguous tensor, got stride"),
        (lambda u, v, b: bd.SGD([u, v, v.flatten()[:60]]), "item_table and item_bias: expected memory of their own"),
        (lambda u, v, b: bd.SGD([u, v, v.flatten()[-60:]]), "item_table and item_bias: expected memory of their own"),
        (lambda u, v, b: bd.SGD([u, None]), "params: expected user_table, item_table and item_bias or None"),
        (lambda u, v, b: bd.SGD([u, v, b], weight_decay=-1.0), "weight_decay: expected 0 or a number in .*, got -1.0"),
        (
            lambda u, v, b: bd.SparseAdam([u, v, b], betas=(0.9, 1.0)),
            "betas: expected a finite number >= 0 and < 1, got 1.0",
        ),
        (lambda u, v, b: bd.SparseAdam([u, v, b], eps=-1.0), "eps: expected a number in .*, got -1.0"),
        (lambda u, v, b: bd.Adagrad([u, v, b], eps=0.0), "eps: expected a number in .*, got 0.0"),
        (
            lambda u, v, b: bd.SGD([u, v, b], weight_decay=1e39),
            "weight_decay: expected 0 or a number in .*, got 1e\\+39",
        ),
        (lambda u, v, b: bd.SGD([u, v, b], float("nan")).rule(), "lr: expected 0 or a number in .*, got nan"),
        (lambda u, v, b: bd.SGD([u, v, b], 1e39).rule(), "lr: expected 0 or a number in .*, got 1e\\+39"),
        (lambda u, v, b: bd.SparseAdam([u, v, b], 1e-50).rule(), "lr: expected 0 or a number in .*, got 1e-50"),
    ],
)
def test_tables_and_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build(*tables_and_batch(1, 1, 1)[0])


def test_float64_is_the_references(monkeypatch):
    if backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    tables, (*batch, guide) = tables_and_batch(4, 1, 2)
    wide = [t.double() for t in tables]
    message = "=cpu: expected float32, got float64, which cpu does not take; the reference does"
    with pytest.raises(bd.BackendError, match="backend" + message):
        bd.fused_step(bd.SGD(wide), *batch, guide.double(), backend="cpu")
    monkeypatch.setenv("BDKERNELS_BACKEND", "cpu")
    with pytest.raises(bd.BackendError, match="BDKERNELS_BACKEND" + message):
        bd.fused_loss(*wide, *batch, guide.double())
    monkeypatch.delenv("BDKERNELS_BACKEND")
    assert bd.fused_step(bd.SGD(wide), *batch, guide.double()).loss.dtype == torch.float64


def test_a_state_that_does_not_fit_is_refused():
    (user, item, bias), (*batch, draws, guide) = tables_and_batch(4, 1, 2)
    arguments = *batch, draws.ids, guide, draws.mask, "bce", "bce", 1.0, 1.0, 1.0
    op = torch.ops.bdkernels.fused_step
    with pytest.raises(ValueError, match="state: expected 2 tensors for each table, got 1"):
        op(user, item, bias, *arguments, [user.clone()], "adam", 0.1, 0.0, 0.9, 0.9, 1e-8)
    with pytest.raises(ValueError, match=r"state\[1\]: expected shape \[60, 19\], got \[40, 19\]"):
        op(user, item, None, *arguments, [user.clone()] * 2, "adagrad", 0.1, 0.0, 0.0, 0.0, 1e-8)
    with pytest.raises(ValueError, match="rule: expected 'sgd' or 'adagrad' or 'adam', got 'adamw'"):
        op(user, item, None, *arguments, [], "adamw", 0.1, 0.0, 0.0, 0.0, 1e-8)


def test_the_learning_rate_may_change(backend):
    tables, batch = tables_and_batch(4, 1, 2)
    optimizer = bd.SGD([t.clone() for t in tables], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    bd.fused_step(optimizer, *batch, backend=backend)
    assert same(results(optimizer), tables)


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_apply_rows_is_the_rule_on_the_sum_of_a_rows_gradients(rule, weight_decay, backend, monkeypatch):
    """Against torch.optim with sparse gradients, over steps that touch other rows, some of them none."""
    monkeypatch.setenv("BDKERNELS_BACKEND", backend)
    tables = [torch.randn(11, 3), torch.randn(7, 3), torch.randn(7)]
    ours = make(rule, tables, weight_decay=weight_decay)
    theirs = [torch.nn.Parameter(t.clone()) for t in tables]
    optimizer = OPTIMIZERS[rule][1](theirs)
    for n in (5, 40, 0, 9):
        ids = [torch.randint(len(t), (n,)) for t in tables]
        grads = [torch.randn(n, *t.shape[1:]) for t in tables]
        bd.sparse_step(ours, **dict(zip(ours.tables(), zip(ids, grads, strict=True), strict=True)))
        for parameter, rows, grad in zip(theirs, ids, grads, strict=True):
            unique, place = rows.unique(return_inverse=True)
            total = torch.zeros(len(unique), *grad.shape[1:]).index_add_(0, place, grad)
            total += weight_decay * parameter.detach()[unique]
            parameter.grad = torch.sparse_coo_tensor(unique[None], total, parameter.shape, is_coalesced=True)
        optimizer.step()
    for table, parameter in zip(ours.tables().values(), theirs, strict=True):
        torch.testing.assert_close(table, parameter.detach(), rtol=1e-5, atol=1e-6)
    assert ours.step_count == 4


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_apply_rows_is_the_update_of_fused_step(rule, two_threads):
    """Bit for bit, by one thread and by two, given the gradients of the scores' slopes one by one."""
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    tables, batch = tables_and_batch(700, 2, 0, n_users=200, n_items=400)
    fused = make(rule, tables, weight_decay=0.02)
    bd.fused_step(fused, *batch, backend="cpu")
    twins = [t.clone().requires_grad_() for t in tables]
    bd.fused_loss(*twins, *batch, backend="cpu").loss.backward()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        apart = make(rule, tables, weight_decay=0.02)
        rows = {name: (t.grad._indices()[0], t.grad._values()) for name, t in zip(apart.tables(), twins, strict=True)}
        before = apart.item_table._version
        bd.sparse_step(apart, **rows)
        assert apart.item_table._version > before
        assert torch.equal(apart.user_table, fused.user_table) and torch.equal(apart.item_bias, fused.item_bias)
        torch.testing.assert_close(apart.item_table, fused.item_table, rtol=1e-6, atol=1e-7)  # slope * user, rounded


def test_apply_rows_changes_the_named_tables_alone_and_nothing_on_an_error():
    ours = make("adam", [torch.randn(4, 3), torch.randn(5, 3), None])
    before = [t.clone() for t in results(ours)]
    good = torch.tensor([1, 1]), torch.randn(2, 3)
    for name, rows, error in (
        ("item_bias", (good[0], torch.randn(2)), "rows: expected 'user_table' or 'item_table', got 'item_bias'"),
        ("item_table", (torch.tensor([5, 0]), good[1]), r"item_table: ids: expected ids in \[0, 5\)"),
        ("item_table", (good[0].int(), good[1]), "item_table: ids: expected int64"),
        ("item_table", (good[0], torch.randn(2, 4)), r"item_table: grads: expected shape \[2, 3\]"),
        ("item_table", (good[0], good[1].double()), "item_table: grads: expected float32"),
    ):
        with pytest.raises(ValueError, match=error):
            bd.sparse_step(ours, user_table=good, **{name: rows})
    assert same(before, results(ours)) and ours.step_count == 0
    bd.sparse_step(ours, user_table=good)
    assert torch.equal(ours.item_table, before[1]) and ours.step_count == 1
    changed = (ours.user_table != before[0]).any(1)
    assert changed.tolist() == [False, True, False, False]


def shared_tables(how: str) -> list[torch.Tensor]:
    buffer, wide = torch.zeros(150, 8), torch.zeros(60, 20)
    return {
        "rows": [buffer[:100], buffer[50:], torch.zeros(100)],
        "columns": [wide[:40, :9], wide[:, 8:17], torch.zeros(60)],
        "bias inside": [torch.zeros(40, 8), buffer, buffer.view(-1)[1000:1150]],
    }[how]


@pytest.mark.parametrize("make_one", [bd.SGD, bd.Adagrad, bd.SparseAdam])
@pytest.mark.parametrize("how", ["rows", "columns", "bias inside"])
def test_tables_that_share_numbers_are_refused(make_one, how):
    names = "item_table and item_bias" if how == "bias inside" else "user_table and item_table"
    with pytest.raises(ValueError, match=f"{names}: expected memory of their own, got memory that both have"):
        make_one(shared_tables(how)[:2] if how == "columns" else shared_tables(how))


def test_a_state_or_a_table_that_comes_to_share_is_refused(backend):
    tables, batch = tables_and_batch(4, 1, 2)
    spoiled = make("adagrad", tables), make("sgd", tables)
    spoiled[0].state[spoiled[0].item_table]["sum"] = spoiled[0].item_table
    both = torch.cat([spoiled[1].user_table, spoiled[1].item_table])
    spoiled[1].param_groups[0]["params"] = [both[:40], both, torch.zeros(len(both))]
    named = "item_table and state.1.|state.1. and item_table", "item_table and user_table|user_table and item_table"
    for optimizer, names in zip(spoiled, named, strict=True):
        with pytest.raises(ValueError, match=f"({names}): expected memory of their own"):
            bd.fused_step(optimizer, *batch, backend=backend)
        with pytest.raises(ValueError, match=f"({names}): expected memory of their own"):
            bd.sparse_step(optimizer, user_table=(torch.tensor([1]), torch.zeros(1, 19)))


def test_columns_beside_each_other_share_nothing():
    wide = torch.zeros(60, 20)
    assert bd.SGD([wide[:, :9], wide[:, 9:18]]).step_count == 0
