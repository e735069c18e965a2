"""Negatives: never a seen item, uniform over the others, repeatable."""

import pytest
import torch
from bidistill.training.negatives import NegativeSampler
from scipy.stats import chisquare

from bdkernels import Seen


def sampler(rows, n_items):
    """A sampler from one list of seen items for each user."""
    users = torch.tensor([u for u, items in enumerate(rows) for _ in items], dtype=torch.int64)
    items = torch.tensor([i for items in rows for i in items], dtype=torch.int64)
    return NegativeSampler(Seen.from_pairs(users, items, len(rows)), n_items)


ROWS = [[], [0], [9], [0, 1, 2], [7, 8, 9], [0, 2, 4, 6, 8], [3, 4, 5], [0, 1, 2, 3, 4, 6, 7, 8, 9]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniform_over_unseen_and_never_seen(seed):
    n, draws = 10, 4000
    users = torch.arange(len(ROWS))
    ids, mask = sampler(ROWS, n).draw(users, draws, torch.Generator().manual_seed(seed))
    assert ids.shape == mask.shape == (len(ROWS), draws)
    assert ids.dtype == torch.int64
    assert mask.all()
    for user, seen in enumerate(ROWS):
        counts = ids[user].bincount(minlength=n)
        unseen = [i for i in range(n) if i not in seen]
        assert counts[seen].sum() == 0
        if len(unseen) > 1:  # p < 1e-4 happens to one of these 21 tests in 500 runs; the seeds are fixed
            assert chisquare(counts[unseen].numpy()).pvalue > 1e-4
        else:
            assert counts[unseen].tolist() == [draws]


def test_a_user_who_has_seen_everything_gets_none():
    ids, mask = sampler([[0, 1, 2], [1]], 3).draw(torch.tensor([0, 1, 0]), 5)
    assert (ids[[0, 2]] == -1).all()
    assert mask.tolist() == [[False] * 5, [True] * 5, [False] * 5]
    assert set(ids[1].tolist()) <= {0, 2}


@pytest.mark.parametrize("rows", [[[]], [[0]]])
def test_one_item(rows):
    ids, mask = sampler(rows, 1).draw(torch.tensor([0]), 3)
    assert ids.tolist() == ([[-1] * 3] if rows[0] else [[0] * 3])
    assert mask.all() == (not rows[0])


def test_repeated_users_and_large_random_rows():
    generator = torch.Generator().manual_seed(5)
    n_users, n_items = 50, 1009
    rows = [torch.randperm(n_items, generator=generator)[: 20 * u].tolist() for u in range(n_users)]
    users = torch.randint(n_users, (3000,), generator=generator)
    ids, mask = sampler(rows, n_items).draw(users, 4, generator)
    assert mask.all()
    assert ((ids >= 0) & (ids < n_items)).all()
    seen = [set(row) for row in rows]
    assert not any(i in seen[u] for u, row in zip(users.tolist(), ids.tolist(), strict=True) for i in row)


def test_the_generator_decides():
    source, users = sampler(ROWS, 10), torch.tensor([0, 5, 5])
    first, again = (source.draw(users, 8, torch.Generator().manual_seed(3))[0] for _ in range(2))
    other = source.draw(users, 8, torch.Generator().manual_seed(4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[1], first[2])
