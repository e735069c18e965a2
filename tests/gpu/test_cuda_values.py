"""The kernel that looks at ids and rows of seen items finds what torch's operators find, and the device asserts it."""

from functools import partial

import pytest
import torch

import bdkernels as bd
from bdkernels import checks
from bdkernels.backends import cuda

N = 300  # ids are below


def rows_of(lengths: list[int]) -> bd.Seen:
    ids = [torch.randperm(N)[:n].sort().values for n in lengths]
    return bd.Seen(torch.tensor([0, *lengths]).cumsum(0), torch.cat([torch.empty(0, dtype=torch.int64), *ids]))


def fine(seen: bd.Seen) -> bool:
    """By torch's operators."""
    try:
        checks.seen_values(seen, N)
    except ValueError:
        return False
    return True


GOOD = {
    "nobody": [], "nothing": [0, 0, 0], "one": [1], "gaps": [0, 3, 0, 128, 129, 0], "all": [N, 0, N], "a block": [127, 128],
}  # fmt: skip


@pytest.mark.parametrize("lengths", GOOD.values(), ids=GOOD)
def test_good_rows(cuda_device, lengths):
    seen = rows_of(lengths).to(cuda_device)
    assert cuda.values(None, seen, N).tolist() == [1, 1]
    assert cuda.values(torch.arange(N, device=cuda_device), seen, N).tolist() == [1, 1]


@pytest.mark.parametrize("value", [-(2**63), -1, 0, 7, N - 1, N, 2**40, 2**63 - 1])
@pytest.mark.parametrize("at", range(7))
def test_any_number_of_a_boundary(cuda_device, at, value):
    seen = rows_of([2, 0, 129, 1, 0, 3])
    seen.indptr[at] = value
    assert cuda.values(None, seen.to(cuda_device), N).tolist() == [1, fine(seen)]


def test_any_id_of_a_row(cuda_device):
    found = set()
    for at in (0, 1, 2, 64, 130, 131, 132, 134):
        for value in (-(2**63), -1, 0, 150, N - 1, N, 2**63 - 1):
            seen = rows_of([2, 0, 129, 1, 0, 3])
            seen.indices[at] = value
            assert cuda.values(None, seen.to(cuda_device), N).tolist() == [1, fine(seen)], (at, value)
            found.add(fine(seen))
    assert found == {False, True}


def test_repeated_ids(cuda_device):
    for at in (1, 3, 130, 133):
        seen = rows_of([2, 0, 129, 1, 0, 3])
        seen.indices[at] = seen.indices[at - 1]
        assert cuda.values(None, seen.to(cuda_device), N).tolist() == [1, 0] and not fine(seen)


@pytest.mark.parametrize("shape", [(1,), (3, 43), (2, 0), (0, 5), (1, 128)])
def test_ids(cuda_device, shape):
    ids = torch.randint(0, N, shape)
    assert cuda.values(ids.to(cuda_device), None, N).tolist() == [1, 1]
    for at in {0, ids.numel() // 2, ids.numel() - 1} if ids.numel() else ():
        for value in (-(2**63), -1, N, 2**63 - 1):
            wrong = ids.clone()
            wrong.view(-1)[at] = value
            for seen, flag in ((None, 1), (bd.Seen(torch.tensor([0, 2]), torch.tensor([3, 3])).to(cuda_device), 0)):
                assert cuda.values(wrong.to(cuda_device), seen, N).tolist() == [0, flag]


UNSORTED = bd.Seen(torch.tensor([0, 1, 3, 3]), torch.tensor([4, 7, 2]))
FELL = bd.Seen(torch.tensor([0, 3, 1, 3]), torch.tensor([4, 7, 9]))
IN_ROWS = r"seen: expected indptr that rises from 0 to 3, strictly increasing ids in \[0, {}\) in each row"
F, IDS = bd.Factors(torch.ones(3, 2), torch.ones(N, 2)), torch.zeros(3, 1, dtype=torch.int64)
CALLS = {
    "rank": lambda seen: bd.rank(F, IDS, seen, backend="cuda"),
    "rank of scores": lambda seen: bd.rank(bd.Scores(torch.ones(3, N)), IDS, seen, backend="cuda"),
    "count_above": lambda seen: bd.count_above(F, IDS.float(), IDS, seen, backend="cuda"),
    "count_above_block": lambda seen: bd.count_above_block(torch.ones(3, N), IDS.float(), IDS, seen, backend="cuda"),
    "count_above of scores": lambda seen: bd.count_above(bd.Scores(torch.ones(3, N)), IDS.float(), IDS, seen, backend="cuda"),
    "topk": lambda seen: bd.topk(F, 1, seen, backend="cuda"),
    "topk of scores": lambda seen: bd.topk(bd.Scores(torch.ones(3, N)), 1, seen, backend="cuda"),
    "sample": lambda seen: bd.sample(F, F, 1, seen, user_ids=IDS[:, 0], step=0, backend="cuda"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_rows_are_asserted_in_the_queue(cuda_device, monkeypatch, name):
    """Of every call that takes some. Simulated: an assertion on a GPU ends the process."""
    if cuda_device.type != "cpu":
        pytest.skip("an assertion on a GPU ends the process")
    monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
    monkeypatch.setattr(checks, "seen_values", None)
    limit = 2**31 if name.startswith("count") else N
    for seen in (UNSORTED, FELL):
        with pytest.raises(RuntimeError, match=IN_ROWS.format(limit)):
            CALLS[name](seen)
    CALLS[name](bd.Seen(UNSORTED.indptr, torch.tensor([4, 2, 7])))


def test_wrong_ids_are_asserted_in_the_queue(cuda_device, monkeypatch):
    if cuda_device.type != "cpu":
        pytest.skip("an assertion on a GPU ends the process")
    monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
    monkeypatch.setattr(checks, "ids_values", None)
    for scorer in (F, bd.Scores(torch.ones(3, N))):
        for seen in (None, bd.Seen(UNSORTED.indptr, torch.tensor([4, 2, 7]))):
            rank = partial(bd.rank, scorer, seen=seen, backend="cuda")
            with pytest.raises(RuntimeError, match=rf"ids: expected ids in \[0, {N}\)"):
                rank(IDS + N)
            rank(IDS)
