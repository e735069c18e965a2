"""The sampler's rounds on a device: whatever their sizes, they draw what the sampler over the reference's stages draws."""

from functools import partial
from itertools import pairwise

import by_steps
import pytest
import torch
from no_wait import NoWait
from torch.utils._python_dispatch import _disable_current_modes

import bdkernels as bd
from bdkernels.backends import reference
from bdkernels.sampling import rounds, sampler

ASKED = []  # rows and proposals of each round


def draw_round(state, start, stop):
    ASKED.append((len(state.rows), start, stop))
    with _disable_current_modes():  # the reference may wait
        by_steps.draw_round(state, start, stop)


STEPS = reference.STEPS._replace(queued=True, draw_round=draw_round)
CODES = {
    "released": (("tanh", 252.0, False), ("exp", 2.5, False)),
    "under": (("tanh", 2.0, True), ("linear", 0.0, True)),
    "peaked": (("exp", 60.0, False), ("rank_only", 3.0, False)),  # ends in the full row
    "one direction": (("", 0.0, False), ("uniform", 0.0, False)),
    "the other": (("exp", 2.5, True), ("", 0.0, False)),
}


@pytest.fixture(autouse=True)
def clear():
    ASKED.clear()


def problem(b, n, d=(6, 3), seen_pairs=400):
    """A teacher and a student that agree in part; the last user has seen all, the one before all but an item."""
    users, items = torch.randn(b, d[0]), torch.randn(n, d[0])
    teacher = bd.Factors(users, items, torch.randn(n) / 3)
    student = bd.Factors(users[:, : d[1]] + 0.3, items[:, : d[1]] + 0.5 * torch.randn(n, d[1]))
    pairs = [(torch.randint(0, b, (seen_pairs,)), torch.randint(0, n, (seen_pairs,)))]
    pairs += [(torch.full((many,), user), torch.arange(many)) for user, many in ((b - 1, n), (max(0, b - 2), n - 1))]
    return teacher, student, bd.Seen.from_pairs(*(torch.cat(p) for p in zip(*pairs, strict=True)), b)


def draws(steps, teacher, student, k, seen, weights, **further):
    """Ids of both directions, by row keys of any sort."""
    row_keys = torch.arange(100, 100 + len(teacher.user_factors)) | 3 << 40
    return sampler.sample(steps, teacher, student, k, seen, weights, 3, 4, row_keys, **further)


def assert_same(got, want):
    for ours, theirs in zip(got, want, strict=True):
        assert ours.is_contiguous() and ours.dtype == torch.int64 and torch.equal(ours, theirs)


@pytest.mark.parametrize("weights", CODES.values(), ids=CODES)
@pytest.mark.parametrize(("b", "n", "k"), [(17, 90, 9), (5, 300, 1), (3, 40, 70), (3, 2, 5), (2, 1, 3), (1, 1, 1)])
@pytest.mark.parametrize("with_seen", [False, True])
def test_the_draws_are_those_of_the_sampler(weights, b, n, k, with_seen):
    teacher, student, seen = problem(b, n)
    asked = teacher, student, k, seen if with_seen else None, weights
    assert_same(draws(STEPS, *asked), draws(reference.STEPS, *asked))
    assert ASKED


def test_no_row_and_no_candidate():
    teacher, student, _ = problem(3, 5)
    everything = bd.Seen.from_pairs(torch.arange(15) // 5, torch.arange(15) % 5, 3)
    weights = CODES["released"]
    assert all((ids == -1).all() for ids in draws(STEPS, teacher, student, 4, everything, weights))
    nobody = [bd.Factors(f.user_factors[:0], f.item_factors) for f in (teacher, student)]
    assert [ids.shape for ids in draws(STEPS, *nobody, 4, None, weights)] == [(0, 4)] * 2


@pytest.mark.parametrize("independent", [False, True])
def test_sizes_change_nothing(monkeypatch, independent):
    """Neither those of the rounds nor how many rows go at once."""
    asked = *problem(17, 90)[:2], 9, problem(17, 90)[2], CODES["under"]
    want = draws(reference.STEPS, *asked, independent_directions=independent)
    for name, size in {"FEWEST": 7, "FIRST": 21, "FURTHER": 130, "IN_FLIGHT": 100}.items():
        monkeypatch.setattr(rounds, name, size)
    assert_same(draws(STEPS, *asked, independent_directions=independent), want)
    assert max(rows for rows, _, _ in ASKED) == 4


def test_limits(monkeypatch):
    """Rows that leave the rounds for the full row do so at the same proposal."""
    asked = *problem(17, 90)[:2], 9, None, CODES["peaked"]
    for limits in ((64, 3, 96), (1024, 2, 1100), (10, 1, 30), (5, 0, 5)):
        for name, limit in zip(("PROBE", "MIN_HITS", "CAP"), limits, strict=True):
            monkeypatch.setattr(sampler, name, limit)
        ASKED.clear()
        assert_same(draws(STEPS, *asked), draws(reference.STEPS, *asked))
        assert ASKED[-1][2] <= limits[2]


def test_rounds_have_the_rows_that_are_left():
    """Each is shaped for the rows that are open, and the first serves nearly all of them."""
    teacher, student, _ = problem(64, 500)
    draws(STEPS, teacher, student, 8, None, CODES["released"])
    assert ASKED[0] == (64, 0, rounds.first(8)) and sum(rows for rows, _, _ in ASKED) <= 64 * 1.1
    assert all(later[0] < earlier[0] and later[1] == earlier[2] for earlier, later in pairwise(ASKED))


@pytest.mark.parametrize("k", [1, 8, 32, 1000])
def test_spans(k):
    for probe, cap in ((1024, 4096), (10, 30), (100, 100)):
        found = list(rounds.spans(k, probe, cap))
        assert found[0][0] == 0 and found[-1][1] == cap
        assert all(start < stop for start, stop in found)
        assert all(one[1] == other[0] for one, other in pairwise(found))
        assert not any(start < probe < stop for start, stop in found)
    assert len(list(rounds.spans(k, 1024, 4096))) <= 6
    assert rounds.first(32) == rounds.FIRST == 512 and rounds.first(1) == rounds.FEWEST


def test_rounds_do_not_wait_while_a_graph_is_captured(monkeypatch):
    teacher, student, seen = problem(37, 300)
    for name, limit in {"PROBE": 150, "MIN_HITS": 3, "CAP": 200}.items():
        monkeypatch.setattr(sampler, name, limit)
    for weights in CODES.values():
        asked = teacher, student, 9, seen, weights
        whole = draws(reference.STEPS, *asked)
        with monkeypatch.context() as patch:
            with pytest.raises(AssertionError, match="waits for the device"), NoWait():
                draws(STEPS, *asked)
            patch.setattr(rounds, "may_ask", lambda device: False)
            patch.setattr("bdkernels.checks.ASSERTS", ("cpu",))
            with NoWait():
                some = draws(STEPS, *asked)
        for ours, theirs in zip(some, whole, strict=True):
            assert torch.equal(ours, theirs.where(ours >= 0, -1))  # those that the full row would give are missing
            assert ours.numel() == 0 or (ours >= 0).any()
            assert (ours[:, 1:] >= 0).le(ours[:, :-1] >= 0).all()


def test_seed_and_step_may_lie_on_the_device():
    teacher, student, seen = problem(9, 60)
    asked = partial(sampler.sample, teacher=teacher, student=student, k=5, seen=seen, weights=CODES["released"])
    for seed, step in ((3, 4), (-1, 2**32 - 1), (-(2**63), 0)):
        numbers = {"seed": torch.tensor(seed), "step": torch.tensor(step)}
        for steps in (STEPS, reference.STEPS):
            got = asked(steps, **numbers, row_keys=torch.arange(9))
            assert_same(got, asked(reference.STEPS, seed=seed, step=step, row_keys=torch.arange(9)))


def test_where_a_nan_is():
    """Named by its row and item, though the rows go in another order."""
    teacher, student, seen = problem(9, 60)
    student.item_factors[41] = torch.nan

    def nan_round(state, start, stop):
        state.nan_at[1] = 2 * 60 + 41

    with pytest.raises(ValueError, match=r"got NaN for user row \d+, item 41") as error:
        draws(STEPS._replace(draw_round=nan_round), teacher, student, 5, seen, CODES["released"])
    assert int(seen.counts()[error.value.row]) == seen.counts().sort().values[2]
