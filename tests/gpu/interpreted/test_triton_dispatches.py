"""No call of the Triton backend drowns in launches: as in test_dispatches.py, with its kernels in the interpreter."""

from functools import partial

import pytest
import torch
from dispatches import dispatched
from interpreter import strict
from stages import problem

import bdkernels as bd
from bdkernels.sampling import rounds

P = problem(b=2, n=60)
USER_IDS = torch.arange(2)


def count(call):
    """What the call dispatches; printed for whoever reads a failure."""
    with strict(config=0):
        found = dispatched(call, "triton")
    print(found.total(), dict(found))
    return found


def sample(k, seen=P.seen):
    return bd.sample(P.teacher, P.student, k, seen, user_ids=USER_IDS, step=0, backend="triton")


# Each call's bound, and its launches. What is not launched is checks of the arguments, allocations, and what torch itself does.
CALLS = {
    "rank": (lambda: bd.rank(P.teacher, P.ids, P.seen, backend="triton"), 14, 4),
    "rank among all": (lambda: bd.rank(P.teacher, P.ids, backend="triton"), 12, 3),
    "topk": (lambda: bd.topk(P.teacher, 5, P.seen, backend="triton"), 12, 3),
    "topk of all items": (lambda: bd.topk(P.teacher, 5, backend="triton"), 9, 2),
    **{f"sample {k}": (partial(sample, k), 26, 6) for k in (1, 8, 32)},
    "sample among all": (partial(sample, 8, None), 21, 4),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_dispatches_no_more_than(name):
    call, bound, launches = CALLS[name]
    found = count(call)
    assert found["launch"] == launches and found.total() <= bound, found


def test_a_further_round(monkeypatch):
    """Its launches, their memory, and the question who is left. Four proposals cannot give eight draws."""
    once = count(partial(sample, 8))
    monkeypatch.setattr(rounds, "first", lambda k: 4)
    found = count(partial(sample, 8))
    assert found["launch"] == once["launch"] + 5 and found.total() == once.total() + 7, found


@pytest.mark.parametrize(("capturable", "further"), [(False, 0), (True, 10)])
def test_a_step(capturable, further):
    """Ones, keys, their check, one sort, step, update, finish, and the sum of both losses; for lr on the device its formula."""
    optimizer = bd.SparseAdam([t.clone() for t in P.tables], capturable=capturable)
    found = count(partial(bd.fused_step, optimizer, *P.batch, P.draws, P.guide, backend="triton"))
    assert found["launch"] == 4 and found["aten::sort"] == 1
    assert found.total() - found["aten::new_empty"] <= 9 + further, found
    assert found.total() <= 17 + further, found
