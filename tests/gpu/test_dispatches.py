"""No call drowns in launches: what each dispatches has a bound, whatever its size."""

from functools import partial

import pytest
import torch
from dispatches import dispatched
from stages import problem

import bdkernels as bd
from bdkernels.backends import cuda


@pytest.fixture
def p(cuda_device):
    return problem().to(cuda_device)


def test_the_count_sees_what_it_should(cuda_device):
    """Torch's operators but views, and the launches inside of our own operators."""
    t = torch.ones(3, 4, device=cuda_device)
    assert dispatched(lambda: t.T[1].detach().view(-1)[0], "cuda") == {}
    assert dispatched(lambda: (t + t, t.new_empty(3), t.sum().item()), "cuda") == {
        "aten::add": 1, "aten::new_empty": 1, "aten::sum": 1, "aten::_local_scalar_dense": 1,
    }  # fmt: skip
    ids = torch.zeros(3, 2, dtype=torch.int64, device=cuda_device)
    found = dispatched(lambda: bd.score(bd.Factors(t, t), ids, backend="cuda"), "cuda")
    assert found["launch"] == 1 or not cuda.simulated()
    assert found["aten::new_empty"] > 0 and found["aten::_assert_async"] > 0
    assert found.total() < 20


def sample(p, k, seen=True):
    return bd.sample(
        p.teacher, p.student, k, p.seen if seen else None, user_ids=p.seen.indptr[:-1], step=0, backend="cuda"
    )


# Each call's bound. What is not launched is checks of the arguments, allocations and what torch itself does.
SAMPLE = 33  # with `seen`; a second round is 7 of them
CALLS = {
    "rank": (lambda p: bd.rank(p.teacher, p.ids, p.seen, backend="cuda"), 18),
    "count_above": (lambda p: bd.count_above(p.teacher, p.guide[:5], p.ids[:, :3], p.seen, backend="cuda"), 20),
    "topk": (lambda p: bd.topk(p.teacher, 10, p.seen, backend="cuda"), 11),  # each further part is 2 launches more
    "topk of all items": (lambda p: bd.topk(p.teacher, 10, backend="cuda"), 8),
    "fused_loss": (lambda p: bd.fused_loss(*p.tables, *p.batch, p.draws, p.guide, backend="cuda"), 18),
} | {f"sample {k}": (partial(sample, k=k), SAMPLE) for k in (1, 8, 32)}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_dispatches_no_more_than(p, name):
    call, bound = CALLS[name]
    found = dispatched(partial(call, p), "cuda")
    print(name, found.total(), dict(found))
    assert 0 < found.total() <= bound, found


def step(p, capturable):
    """A step with Adam, whose optimizer is there."""
    optimizer = bd.SparseAdam([t.clone() for t in p.tables], capturable=capturable)
    return partial(bd.fused_step, optimizer, *p.batch, p.draws, p.guide, backend="cuda")


@pytest.mark.parametrize(("capturable", "further"), [(False, 0), (True, 2)])
def test_a_step_is_few_launches(p, capturable, further):
    """Ones, keys, their check, one sort, memory, step, update, finish, and the sum of both losses; for a count of
    steps on the device a launch for lr, and an addition.
    """
    found = dispatched(step(p, capturable), "cuda")
    print(capturable, found.total(), dict(found))
    assert found["aten::sort"] == 1 and found["launch"] == (4 + capturable) * cuda.simulated()
    assert found["aten::new_empty"] == 4, found
    assert found.total() <= 13 + further, found


def test_sample_without_checks_of_seen_rows(p):
    """The draws themselves; a second round is 5 launches, their memory and the question who is left."""
    counts = [dispatched(partial(sample, p, k, seen=False), "cuda") for k in (1, 8, 32)]
    print([found.total() for found in counts], dict(counts[0]))
    assert all(found.total() <= 27 + 11 * (found["aten::_to_copy"] - 1) for found in counts), counts
    assert all(found["launch"] == 5 * found["aten::_to_copy"] for found in counts) or not cuda.simulated()
