"""The row optimizers as torch.optim.Optimizers: steps by gradients, state dicts, schedulers, copies."""

import copy
import pickle
import warnings

import pytest
import torch
from test_loss import tables_and_batch
from test_update import OPTIMIZERS, make, results, same

import bdkernels as bd

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # torch.optim.Adagrad's own
    pytest.mark.parametrize("rule", OPTIMIZERS),
]


def start():
    torch.manual_seed(0)
    return [torch.randn(11, 3), torch.randn(7, 3), torch.randn(7)]


def parameters():
    return [torch.nn.Parameter(t) for t in start()]


def give_gradients(tables, seed, sparse=True, only=(0, 1, 2)):
    """The same gradients for the same seed, sparse or dense; rows repeat."""
    for at in only:
        draw, table = torch.Generator().manual_seed(10 * seed + at), tables[at]
        ids = torch.randint(len(table), (5,), generator=draw)
        rows = torch.randn(5, *table.shape[1:], generator=draw)
        grad = torch.sparse_coo_tensor(ids[None], rows, table.shape, check_invariants=False)
        table.grad = grad if sparse else grad.to_dense()


@pytest.mark.parametrize("sparse", [True, False])
def test_step_is_that_of_torch_with_sparse_gradients(rule, sparse):
    ours, theirs = parameters(), parameters()
    optimizer, peer = OPTIMIZERS[rule][0](ours), OPTIMIZERS[rule][1](theirs)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for seed in range(4):
        give_gradients(ours, seed, sparse)
        give_gradients(theirs, seed)
        assert optimizer.step() is None
        peer.step()
        optimizer.zero_grad()
        assert all(table.grad is None for table in ours)
    assert optimizer.step_count == 4
    for table, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(table, other)


def test_step_takes_a_closure_and_leaves_tables_without_a_gradient(rule):
    tables = parameters()
    optimizer, before = OPTIMIZERS[rule][0](tables), start()

    def loss():
        assert torch.is_grad_enabled()
        give_gradients(tables, 0, only=[1])
        return 7.0

    assert optimizer.step() is None and optimizer.step_count == 0
    assert optimizer.step(loss) == 7.0 and optimizer.step_count == 1
    assert torch.equal(tables[0], before[0]) and torch.equal(tables[2], before[2])
    assert not torch.equal(tables[1], before[1])


@pytest.mark.parametrize("towards_torch", [True, False])
def test_state_dicts_are_those_of_torch(rule, towards_torch):
    """Steps before on one side, steps after on both, which load the same file."""
    makers = OPTIMIZERS[rule] if towards_torch else OPTIMIZERS[rule][::-1]
    first = parameters()
    one = makers[0](first)
    for seed in range(3):
        give_gradients(first, seed)
        one.step()
    saved = copy.deepcopy(one.state_dict())
    tables = [[torch.nn.Parameter(t.detach().clone()) for t in first] for _ in range(2)]
    pair = [build(each) for build, each in zip(makers, tables, strict=True)]
    for optimizer in pair:
        optimizer.load_state_dict(saved)
    for seed in range(3, 6):
        for optimizer, each in zip(pair, tables, strict=True):
            give_gradients(each, seed)
            optimizer.step()
    for table, other in zip(*tables, strict=True):
        torch.testing.assert_close(table, other)
    assert pair[0].param_groups[0]["lr"] == pair[1].param_groups[0]["lr"]


def test_a_loaded_state_is_a_copy_and_brings_its_settings(rule):
    optimizer, other = make(rule, start()), make(rule, start())
    _, batch = tables_and_batch(5, 1, 2, n_users=11, n_items=7, d=3)
    bd.fused_step(optimizer, *batch)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.param_groups[0]["initial_lr"] = 0.5  # a scheduler's
    kept = other.row_state()
    other.load_state_dict(optimizer.state_dict())
    assert all(a is b for a, b in zip(kept, other.row_state(), strict=True))
    assert same(optimizer.row_state(), other.row_state())
    assert (other.param_groups[0]["lr"], other.param_groups[0]["initial_lr"]) == (0.25, 0.5)
    bd.fused_step(optimizer, *batch)
    assert optimizer.step_count == 2 and other.step_count == 1
    assert not optimizer.names or not same(optimizer.row_state(), other.row_state())


def test_states_that_do_not_fit_change_nothing(rule):
    optimizer = make(rule, start())
    _, batch = tables_and_batch(5, 1, 2, n_users=11, n_items=7, d=3)
    bd.fused_step(optimizer, *batch)
    before = [t.clone() for t in results(optimizer)]
    good = optimizer.state_dict()
    group = good["param_groups"][0]
    for wrong, message in (
        ({"param_groups": [group, group]}, r"one group of 3 tables, got groups of \[3, 3\]"),
        ({"param_groups": [group | {"params": [0, 1]}]}, r"one group of 3 tables, got groups of \[2\]"),
        ({"param_groups": [group | {"maximize": True}]}, "maximize: expected False, got True"),
        (
            {"state": {0: {"step": 1, "momentum_buffer": torch.zeros(11, 3)}}},
            "expected of user_table .*momentum_buffer",
        ),
        ({"state": {1: {name: torch.zeros(2, 3) for name in optimizer.names or "x"}}}, "item_table"),
        ({"state": {1: {"step": -1}}}, "step: expected an integer >= 0"),
    ):
        with pytest.raises(ValueError, match=f"state_dict: .*{message}"):
            optimizer.load_state_dict(good | wrong)
        assert same(before, results(optimizer)) and optimizer.step_count == 1
    with pytest.raises(ValueError, match="param_group: expected one group"):
        optimizer.add_param_group({"params": [torch.zeros(3)]})


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=7, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    ],
)
def test_schedulers_change_the_rate_of_the_next_fused_step(rule, schedule):
    """The same tables as where the rate is set by hand; and no scheduler warns of steps that it did not see."""
    tables = start()
    one, other = make(rule, tables), make(rule, tables)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = schedule(one)
        for step in range(6):
            _, batch = tables_and_batch(5 + step, 1, 2, n_users=11, n_items=7, d=3)
            rates.append(one.param_groups[0]["lr"])
            other.param_groups[0].update({k: v for k, v in one.param_groups[0].items() if k in ("lr", "betas")})
            for optimizer in (one, other):
                bd.fused_step(optimizer, *batch)
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
    assert len(set(rates)) > 1
    assert same(results(one), results(other))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(rule, how):
    optimizer = make(rule, start())
    _, batch = tables_and_batch(5, 1, 2, n_users=11, n_items=7, d=3)
    for _ in range(2):
        bd.fused_step(optimizer, *batch)
    twin = how(optimizer)
    assert twin.step_count == 2 and same(results(optimizer), results(twin))
    before = [t.clone() for t in results(optimizer)]
    bd.fused_step(twin, *batch)
    assert same(before, results(optimizer)) and not same(before, results(twin))
    bd.fused_step(optimizer, *batch)
    assert same(results(optimizer), results(twin))


@pytest.mark.parametrize("counts", ["on the device", "here"])
@pytest.mark.parametrize("rate", ["number", "tensor"])
def test_numbers_on_the_device_give_the_same_bits(rule, backend, rate, counts):
    """A count of steps and an lr that are tensors, which a scheduler changes, against numbers; here all devices are the CPU."""
    tables = start()
    plain, other = make(rule, tables), make(rule, tables, capturable=counts == "on the device")
    if rate == "tensor":
        other.param_groups[0]["lr"] = torch.tensor(plain.param_groups[0]["lr"], dtype=torch.float64)
    kept = other._numbers["step_count"], other.param_groups[0]["lr"]
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7) for optimizer in (plain, other)]
    for step in range(7):
        _, batch = tables_and_batch(5 + step, 1, 2, n_users=11, n_items=7, d=3)
        losses = [bd.fused_step(optimizer, *batch, backend=backend).loss for optimizer in (plain, other)]
        assert torch.equal(*losses) and same(results(plain), results(other))
        for scheduler in schedulers:
            scheduler.step()
    give_gradients(list(plain.tables().values()), 0)
    for table, twin in zip(other.tables().values(), plain.tables().values(), strict=True):
        table.grad = twin.grad
    plain.step(), other.step()
    assert same(results(plain), results(other)) and plain.step_count == other.step_count == 8
    for was, now in zip(kept, (other._numbers["step_count"], other.param_groups[0]["lr"]), strict=True):
        assert was is now or not isinstance(was, torch.Tensor)  # a graph reads them where they were


def test_a_captured_count_is_loaded_in_place(rule):
    """Where a graph reads it; and a copy counts for itself."""
    other = make(rule, start())
    _, batch = tables_and_batch(5, 1, 2, n_users=11, n_items=7, d=3)
    bd.fused_step(other, *batch)
    optimizer = make(rule, list(other.tables().values()), capturable=True)
    count = optimizer._numbers["step_count"]
    optimizer.load_state_dict(other.state_dict())
    assert optimizer._numbers["step_count"] is count and optimizer.step_count == 1
    twin = copy.deepcopy(optimizer)
    bd.fused_step(optimizer, *batch)
    bd.fused_step(other, *batch)
    assert (optimizer.step_count, twin.step_count) == (2, 1) and same(results(optimizer), results(other))
    other.load_state_dict(optimizer.state_dict())
    assert other._numbers["step_count"] == 2 and type(other._numbers["step_count"]) is int


@pytest.mark.parametrize("lr", [-1.0, float("nan"), 1e39])
def test_a_wrong_tensor_is_refused_where_it_can_be_read(rule, backend, lr):
    optimizer = make(rule, start())
    optimizer.param_groups[0]["lr"] = torch.tensor(lr, dtype=torch.float64)
    _, batch = tables_and_batch(5, 1, 2, n_users=11, n_items=7, d=3)
    with pytest.raises(ValueError, match="lr: expected a finite float32 >= 0, got "):
        bd.fused_step(optimizer, *batch, backend=backend)
    assert optimizer.step_count == 0 and same(results(optimizer)[:3], start())
