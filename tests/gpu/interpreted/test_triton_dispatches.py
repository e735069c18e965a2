"""No call of the Triton backend drowns in launches: as in test_dispatches.py, with its kernels in the interpreter."""

import pytest
import torch
from dispatches import dispatched
from draws import numbered
from interpreter import strict

import bdkernels as bd

USERS, ITEMS = 2, 60
SAMPLE = 58  # a round is 6 launches and an allocation; the others check the arguments and make what the rounds share


def sample(k):
    def call(teacher, student, seen):
        return bd.sample(teacher, student, k, seen, **numbered(teacher, seed=3), backend="triton")

    return call


# Each call with its bound, and its launches.
CALLS = {
    "rank": (lambda f, _, seen: bd.rank(f, torch.zeros(USERS, 3, dtype=torch.int64), seen, backend="triton"), 40, 3),
    "topk": (lambda f, _, seen: bd.topk(f, 5, seen, backend="triton"), 40, 1),
    "sample 1": (sample(1), SAMPLE, 6),
    "sample 8": (sample(8), SAMPLE, 6),
    "sample 32": (sample(32), SAMPLE, 6),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_dispatches_no_more_than(name):
    call, bound, launches = CALLS[name]
    users, items = torch.randn(USERS, 5), torch.randn(ITEMS, 5)
    student = bd.Factors(users[:, :3], items[:, :3] + 0.3 * torch.randn(ITEMS, 3))
    seen = bd.Seen.from_pairs(torch.arange(USERS), torch.arange(USERS), USERS)
    with strict(config=0):
        found = dispatched(lambda: call(bd.Factors(users, items), student, seen), "triton")
    print(name, found.total(), dict(found))
    assert found["launch"] == launches and found.total() <= bound, found
