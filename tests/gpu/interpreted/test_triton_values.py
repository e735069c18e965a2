"""The Triton kernel that looks at ids and rows of seen items finds what torch's operators find, and the device asserts it."""

import pytest
import torch
from test_cuda_values import FELL, GOOD, IDS, UNSORTED, F, N, fine, rows_of

import bdkernels as bd
from bdkernels import checks
from bdkernels.backends.triton.values import values


@pytest.mark.parametrize("lengths", GOOD.values(), ids=GOOD)
def test_good_rows(lengths):
    seen = rows_of(lengths)
    assert values(None, seen, N).tolist() == values(torch.arange(N), seen, N).tolist() == [1, 1]


def test_any_number_of_a_boundary():
    for at in range(7):
        for value in (-(2**63), -1, 0, 7, N - 1, N, 2**40, 2**63 - 1):
            seen = rows_of([2, 0, 129, 1, 0, 3])
            seen.indptr[at] = value
            assert values(None, seen, N).tolist() == [1, fine(seen)], (at, value)


def test_any_id_of_a_row():
    found = set()
    for at in (0, 1, 2, 64, 130, 131, 132, 134):
        for value in (-(2**63), -1, 0, 150, N - 1, N, 2**63 - 1):
            seen = rows_of([2, 0, 129, 1, 0, 3])
            seen.indices[at] = value
            assert values(None, seen, N).tolist() == [1, fine(seen)], (at, value)
            found.add(fine(seen))
    assert found == {False, True}


@pytest.mark.parametrize("shape", [(1,), (3, 43), (2, 0), (1, 128)])
def test_ids(shape):
    ids = torch.randint(0, N, shape)
    assert values(ids, None, N).tolist() == [1, 1]
    for at in {0, ids.numel() // 2, ids.numel() - 1} if ids.numel() else ():
        for value in (-(2**63), -1, N, 2**63 - 1):
            wrong = ids.clone()
            wrong.view(-1)[at] = value
            for seen, flag in ((None, 1), (bd.Seen(torch.tensor([0, 2]), torch.tensor([3, 3])), 0)):
                assert values(wrong, seen, N).tolist() == [0, flag]


def test_what_is_wrong_is_asserted_in_the_queue(monkeypatch):
    """And torch's operators are not asked."""
    for name, value in {"ASSERTS": ("cpu",), "seen_values": None, "ids_values": None}.items():
        monkeypatch.setattr(checks, name, value)
    for seen in (UNSORTED, FELL):
        with pytest.raises(RuntimeError, match="seen: expected indptr that rises from 0 to 3"):
            bd.topk(F, 1, seen, backend="triton")
    with pytest.raises(RuntimeError, match=rf"ids: expected ids in \[0, {N}\)"):
        bd.rank(F, IDS + N, UNSORTED._replace(indices=torch.tensor([4, 2, 7])), backend="triton")
