"""Shared-memory wavefronts of the search in `rank`, from the addresses of its own code, and what they were in sorted order."""

import pytest
import torch
from wavefronts import NOBODY, of_accesses, recorded, wavefronts

LANES = torch.arange(32)
MOST = {64: 10.6, 256: 14.7, 512: 17.8}


@pytest.mark.parametrize(
    ("words", "counts", "want"),
    [
        (LANES, False, 1),
        (LANES, True, 1),
        (LANES * 0 + 7, False, 1),  # all read one word
        (LANES * 0 + 7, True, 32),  # but they count there in turn
        (LANES * 32, False, 32),  # 32 words of one bank
        (LANES * 33, False, 1),
        (LANES // 2 * 32, False, 16),
        (LANES // 2 * 32, True, 32),
        (LANES * 2, False, 2),
    ],
)
def test_of_an_instruction(words, counts, want):
    assert of_accesses((words * 4 + counts)[None]).tolist() == [want]


def test_lanes_that_take_no_part():
    some = torch.where(LANES < 3, LANES * 32 * 4, NOBODY)
    assert of_accesses(torch.stack([some, torch.full((32,), NOBODY)])).tolist() == [3, 0]


@pytest.mark.parametrize("thresholds", MOST)
def test_of_a_score(thresholds):
    assert wavefronts(thresholds) <= MOST[thresholds]
    reads = recorded(thresholds) & 1 == 0
    of_a_score = float(reads.all(1).sum() / (~reads).all(1).sum())
    items = 4 if thresholds <= 128 else 2  # of a thread, which share the first two reads of each of their users
    assert of_a_score == 2 / items + (thresholds - 1).bit_length() - 1


@pytest.mark.parametrize("thresholds", MOST)
def test_sorted_order_would_take_more(thresholds):
    """The search by halves that came before: the first threshold that is not less, then a look at it, then its bin."""
    generator = torch.Generator().manual_seed(0)
    users = 2 if thresholds <= 128 else 1  # whose scores a warp has
    pitch = (thresholds + 2) | 1
    rows = torch.full((users, pitch), torch.inf)
    rows[:, :thresholds] = torch.randn(users, thresholds, generator=generator).sort().values
    scores, user = torch.randn(2000, 32, generator=generator), LANES * users // 32
    half = (thresholds + 1) // 2
    at, left, asked = (user * pitch + half - 1).expand(2000, 32), thresholds, []
    while left > 0:
        asked.append(at)
        left -= half
        step = (left + 1) // 2 if left > 1 else 1
        at = at + torch.where(rows.view(-1)[at] < scores, step, step - half)
        half = step
    taken = [of_accesses(words * 4) for words in (*asked, at)] + [of_accesses(at * 4 + 1)]
    assert float(sum(taken).float().mean()) > 1.5 * MOST[thresholds]  # type: ignore[union-attr]
