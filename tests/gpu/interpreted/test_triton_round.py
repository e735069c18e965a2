"""The Triton kernels of a round of the sampler: what the reference's stages do to the same state."""

import by_steps
import pytest
import torch
from interpreter import strict

import bdkernels as bd
from bdkernels.backends import precision, reference
from bdkernels.backends.triton import round
from bdkernels.types.round import Round

NOWHERE = 10**12  # a row that nobody may read
CODES = {
    "released": (("tanh", 252.0, False), ("exp", 2.5, False)),
    "under": (("tanh", 2.0, True), ("linear", 0.0, True)),
    "peaked": (("exp", 80.0, False), ("rank_only", 3.0, False)),
    "one direction": (("", 0.0, False), ("uniform", 0.0, False)),
    "the other": (("exp", 2.5, True), ("", 0.0, False)),
}


def state(weights, with_seen, k=4, limits=(40, 3, 70), dtype=torch.float32, n=90):
    """Six rows of tables, of which three in no order take proposals; two more stand behind them, one of them of no table."""
    users, items = torch.randn(6, 7), torch.randn(n, 7)
    teacher = bd.Factors(users.to(dtype), items.to(dtype), torch.randn(n).to(dtype))
    student = bd.Factors((users[:, :3] + 0.3).to(dtype), (items + 0.5 * torch.randn(n, 7)).to(dtype)[:, 2:5])
    seen = bd.Seen.from_pairs(torch.randint(0, 6, (60,)), torch.randint(0, n, (60,)), 6) if with_seen else None
    row_keys = torch.arange(50, 62)[::2] | 3 << 40
    candidates = reference.candidate_counts(n, 6, seen, row_keys.device)
    ids, hits = torch.full((2, 6, k), -1), torch.zeros(2, 6, dtype=torch.int64)
    ids[0, 3, :2], hits[0, 3] = 7, 2  # some draws are there, and a direction is done
    ids[1, 0], hits[1, 0] = 5, k + 2
    live, rows = torch.tensor(3), torch.tensor([5, 0, 3, 2, NOWHERE])
    numbers = torch.tensor(-3), torch.tensor(2**32 - 1), rows, live
    changed = ids, hits, torch.full_like(rows, NOWHERE), torch.tensor(99), torch.tensor(10), torch.full((2,), -1)
    return Round(teacher, student, seen, row_keys, candidates, weights, limits, *numbers, *changed)


@pytest.mark.parametrize("name", CODES)
def test_a_round_and_the_one_after_it(name):
    """Up to `probe`, where directions close, and up to `cap`, where all do."""
    s = state(CODES[name], with_seen=name != "under")
    with strict(config=0, seed=5):
        for start, stop in ((0, 40), (40, 70)):
            s = by_steps.assert_same_round(round.draw_round, s, start, stop).following()
    assert s.live == 0 and s.short >= 10


def test_a_round_of_several_blocks():
    s = state((("rank_only", 30.0, False), ("uniform", 0.0, False)), True, k=145, limits=(200, 1, 500))
    with strict(config=0):
        by_steps.assert_same_round(round.draw_round, s, 1, 150)


@pytest.mark.parametrize("live", [0, 5])
def test_no_row_and_every_row(live):
    s = state(CODES["released"], True)._replace(live=torch.tensor(live), rows=torch.tensor([5, 0, 3, 2, 1]))
    with strict(config=1):
        by_steps.assert_same_round(round.draw_round, s, 0, 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_of_half_the_size(dtype):
    with strict(config=2):
        by_steps.assert_same_round(round.draw_round, state(CODES["released"], True, dtype=dtype), 0, 20)


def test_where_a_nan_is():
    s = state(CODES["released"], False)
    s.student.user_factors[0, 1] = torch.nan
    with strict(config=0):
        round.draw_round(s, 0, 20)
    assert s.nan_at[0] == -1 and s.nan_at[1] // 90 == 1  # the second of the list


def test_a_count_below_none_is_none(monkeypatch):
    """Where rounded scores count fewer seen items than are taken off."""
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    s = state((("rank_only", 1.0, False), ("", 0.0, False)), True)

    def too_few(out, *args, **_):
        out.fill_(-3)

    monkeypatch.setattr(round, "count", too_few)
    round.draw_round(s, 0, 20)  # ranks are 1, whose weight is the largest: all are accepted
    assert (s.hits[0, [5, 0, 3]] >= 4).all()
