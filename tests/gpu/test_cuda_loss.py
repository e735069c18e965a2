"""The CUDA kernels of the stage loss against the reference in float64, by the error of the reference in float32."""

from itertools import product

import pytest
import torch
from torch.utils._pytree import tree_map_only

import bdkernels as bd
from bdkernels import backends, checks
from bdkernels.backends import reference
from bdkernels.ranges import DISTILL_LOSSES, FUSED_LOSSES
from bdkernels.types.rule import Rule
from bdkernels.types.step import StepInputs

RULES = [
    Rule("sgd", 0.1, 0.01),
    Rule("adagrad", 0.1, 0.01, eps=1e-8),
    Rule("adam", 0.1, 0.01, 0.9, 0.99, 1e-8),
]
SHAPES = [
    (1, 1, 0, 1),
    (5, 4, 1, 1),
    (33, 31, 3, 5),
    (7, 65, 0, 33),
    (4, 0, 2, 2),
    (3, 96, 40, 0),
    (9, 1, 1, 2),
    (0, 4, 1, 1),
]


LOSSES = list(product(FUSED_LOSSES, DISTILL_LOSSES))


@pytest.fixture
def cuda(cuda_device):
    return backends.steps(cuda_device, "cuda")


def step_inputs(b, d, m, k, device, bias=True, masked=True, objective=("bpr", "bce", 0.5, 0.7, 2.0)):
    """Few users and items: most rows are touched more than once."""
    n_users, n_items = max(1, b // 3), 11
    tables = torch.randn(n_users, d), torch.randn(n_items, d), torch.randn(n_items) if bias else None
    users, positives = torch.randint(0, n_users, (b,)), torch.randint(0, n_items, (b,))
    mask = torch.rand(b, k) < 0.6 if masked else None
    ids = torch.randint(0, n_items, (b, k))
    if mask is not None:
        ids = ids.masked_fill(~mask, -1)
    batch = users, positives, torch.randint(0, n_items, (b, m)), ids, torch.randn(b, k), mask
    return StepInputs(*(None if t is None else t.to(device) for t in (*tables, *batch)), *objective)


def copied(inputs):
    return tree_map_only(torch.Tensor, torch.clone, inputs)


def in_float64(inputs):
    return tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)


def assert_close(got, want, exact):
    """At most a few times as far from the exact values as the reference in float32 is."""
    for mine, other, true in zip(got, want, exact, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == torch.float32
        error, budget = ((t.double() - true).abs().max() if t.numel() else 0.0 for t in (mine, other))
        scale = true.abs().max() if true.numel() else 1.0
        assert error <= 4 * budget + 1e-6 * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("cf", "kind", "bias", "masked"),
    [
        *((*losses, True, True) for losses in LOSSES),
        ("bce", "bce", False, False),
        ("softmax", "listwise", False, False),
    ],
)
def test_step(cuda, cuda_device, shape, cf, kind, bias, masked):
    inputs = step_inputs(*shape, cuda_device, bias, masked)._replace(cf=cf, distill_kind=kind)
    assert_close(
        cuda.fused_gradient(inputs), reference.fused_gradient(inputs), reference.fused_gradient(in_float64(inputs))
    )


@pytest.mark.parametrize("kind", DISTILL_LOSSES)
def test_nothing_live(cuda, cuda_device, kind):
    """A mask without an entry: no distillation loss, no gradient of it, and no ids looked at."""
    inputs = step_inputs(5, 4, 1, 3, cuda_device)._replace(distill_kind=kind)
    ids, mask = torch.full_like(inputs.distill_ids, -1), torch.zeros_like(inputs.distill_mask)
    _, loss, _, g_items, slopes = cuda.fused_gradient(inputs._replace(distill_ids=ids, distill_mask=mask))
    assert loss.item() == 0.0
    assert not slopes[:, 2:].any()
    assert not g_items[:, 2:].any()


def test_extreme_scores_stay_finite(cuda, cuda_device):
    for losses in LOSSES:
        inputs = step_inputs(5, 4, 2, 3, cuda_device, objective=(*losses, 0.5, 0.1, 0.1))
        inputs.user_table.mul_(1e4)
        assert all(t.isfinite().all() for t in cuda.fused_gradient(inputs))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.kind)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("cf", "kind", "bias"), [("bpr", "bce", True), ("softmax", "listwise", False)])
def test_update(cuda, cuda_device, rule, shape, cf, kind, bias):
    inputs = step_inputs(*shape, cuda_device, bias)._replace(cf=cf, distill_kind=kind)
    tables = [t for t in inputs.tables if t is not None]
    state = [torch.rand_like(t) for t in tables for _ in range(["sgd", "adagrad", "adam"].index(rule.kind))]

    def after_two_steps(steps, prepare):
        mine, kept = copied(prepare(inputs)), copied(prepare(state))
        losses = [steps.fused_step(mine, kept, rule) for _ in range(2)]
        return [*losses[0], *losses[1], *(t for t in mine.tables if t is not None), *kept]

    got, want = (after_two_steps(steps, copied) for steps in (cuda, reference.STEPS))
    assert_close(got, want, after_two_steps(reference.STEPS, in_float64))
    again = after_two_steps(cuda, copied)
    assert all(torch.equal(mine, other) for mine, other in zip(got, again, strict=True))


@pytest.mark.parametrize("d", [5, 70])
def test_one_row_touched_by_all(cuda, cuda_device, d):
    """Runs of touches that end with a warp or a piece of 64, or one later, of few and of many pieces."""
    for b in (32, 33, 64, 65, 100, 700):
        inputs = step_inputs(b, d, 0, 1, cuda_device, masked=False)
        for ids in (inputs.users, inputs.positives, inputs.distill_ids):
            ids.zero_()
        mine, other, exact = copied(inputs), copied(inputs), in_float64(inputs)
        for steps, own in ((cuda, mine), (reference.STEPS, other), (reference.STEPS, exact)):
            steps.fused_step(own, [], RULES[0])
        assert_close(mine.tables, other.tables, exact.tables)


@pytest.mark.parametrize(("losses", "k"), [(("bpr", "bce"), 0), (("softmax", "listwise"), 3)], ids=str)
def test_the_rest_of_a_batch_changes_no_bit_of_a_row(cuda, cuda_device, losses, k):
    """Long runs of touches, alone in a batch and behind others in one of twice the size, where all slopes are halved exactly."""
    alone = step_inputs(256, 7, 1, k, cuda_device, masked=False, objective=(*losses, 0.5, 0.7, 2.0))
    alone.distill_ids.copy_(torch.randint(6, 9, (256, k)))
    alone.positives.copy_(torch.randint(6, 8, (256,)))
    alone.negatives.copy_(torch.randint(6, 9, (256, 1)))
    alone.users.clamp_(min=3, max=5)
    others = alone._replace(users=alone.users * 0, positives=alone.positives * 0 + 1, negatives=alone.negatives - 4)
    others = others._replace(distill_ids=alone.distill_ids - 4)
    both = [torch.cat(pair) for pair in zip(alone.batch[:-1], others.batch[:-1], strict=True)]
    results = []
    for batch, lr in ((alone.batch[:-1], 0.125), (both, 0.25)):
        own = copied(StepInputs(*alone.tables, *batch, None, *alone[9:]))
        cuda.fused_step(own, [], Rule("sgd", lr, 0.0))
        results.append((own.user_table[3:6], own.item_table[6:9], own.item_bias[6:9]))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not torch.equal(results[0][0], alone.user_table[3:6])


def test_keys_of_64_bits(cuda, cuda_device):
    """Of more than 2^31 rows; users whose rows are one in memory, so only one of them is in the batch."""
    inputs = step_inputs(70, 6, 1, 2, cuda_device)
    users, item = inputs.user_table[:1], inputs.item_table
    few = inputs._replace(user_table=users.clone(), users=inputs.users * 0)
    many = inputs._replace(user_table=users.clone().expand(2**31, 6), users=inputs.users * 0 + 2**31 - 3)
    (few, many), taken = map(copied_items, (few, many)), item.clone()
    for own in (few, many):
        cuda.fused_step(own, [], RULES[0])
    assert torch.equal(few.user_table[0], many.user_table[-3])
    assert all(torch.equal(one, other) for one, other in zip(few.tables[1:], many.tables[1:], strict=True))
    assert torch.equal(item, taken) and not torch.equal(few.item_table, item)


def copied_items(inputs):
    return inputs._replace(item_table=inputs.item_table.clone(), item_bias=inputs.item_bias.clone())


def test_a_rate_on_the_device(cuda, cuda_device):
    """It is that of the rule, bit for bit."""
    inputs, rule = step_inputs(33, 31, 3, 5, cuda_device), RULES[2]
    state = [torch.rand_like(t) for t in inputs.tables for _ in range(2)]
    results = []
    for lr in ((), (torch.tensor(rule.lr, device=cuda_device),)):
        mine, kept = copied(inputs), copied(state)
        cuda.fused_step(mine, kept, rule._replace(lr=0.0) if lr else rule, *lr)
        results.append([*mine.tables, *kept])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not torch.equal(results[0][0], inputs.user_table)


def test_ids_are_asserted_in_the_queue(cuda, cuda_device, monkeypatch):
    """Where the device asserts, the operator leaves the ids to the kernel. Simulated: an assertion on a GPU ends the process."""
    if cuda_device.type != "cpu":
        pytest.skip("an assertion on a GPU ends the process")
    inputs = step_inputs(5, 4, 1, 2, cuda_device)
    monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
    monkeypatch.setattr(checks, "own_step", None)
    for name, row, value in (("users", 4, 1), ("positives", 0, -1), ("negatives", 3, 11), ("distill_ids", 2, 11)):
        own = copied(inputs)
        own.distill_mask[2] = True
        getattr(own, name)[row] = value
        users, positives, negatives, ids, guide, mask = own.batch
        with pytest.raises(
            RuntimeError, match=r"distill_ids: expected ids in \[0, 1\) of users and in \[0, 11\) of items"
        ):
            bd.fused_step(bd.SGD(own.tables), users, positives, negatives, bd.Draws(ids, mask), guide, backend="cuda")
        mask[2] = name != "distill_ids"  # ids that are masked out may be any
    bd.fused_step(bd.SGD(own.tables), users, positives, negatives, bd.Draws(ids, mask), guide, backend="cuda")


def test_strided_tables(cuda, cuda_device):
    """Rows that are a part of wider ones: the rest is left alone."""
    inputs = step_inputs(6, 8, 1, 2, cuda_device)

    def narrow(own):
        return own._replace(user_table=own.user_table[:, 2:7], item_table=own.item_table[:, 2:7])

    mine, other = narrow(copied(inputs)), narrow(copied(inputs))
    cuda.fused_step(mine, [], RULES[0])
    reference.fused_step(other, [], RULES[0])
    for got, want, before in zip(mine.tables[:2], other.tables[:2], inputs.tables[:2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert torch.equal(got._base[:, [0, 1, 7]], before[:, [0, 1, 7]])


def test_through_the_operator(cuda_device):
    """The public step with backend="cuda" has a gradient."""
    inputs = step_inputs(5, 4, 1, 2, cuda_device)
    tables = [t.requires_grad_() for t in inputs.tables]
    users, positives, negatives, ids, guide, mask = inputs.batch
    batch = users, positives, negatives, bd.Draws(ids, mask), guide
    mine, other = (
        torch.autograd.grad(bd.fused_loss(*tables, *batch, backend=name).loss, tables) for name in ("cuda", "reference")
    )
    for got, want in zip(mine, other, strict=True):
        torch.testing.assert_close(got.to_dense(), want.to_dense(), rtol=1e-5, atol=1e-6)
