"""rank, count_above, count_above_block: exact against a sort, on odd shapes, ties, shards and tiles."""

import numpy as np
import oracle
import pytest
import torch

import bdkernels as bd
from bdkernels.backends import cpu, reference

# users, items, d, queries: ones, primes, one past a tile, few and many thresholds, K = N
SHAPES = [
    (1, 1, 1, 1),
    (1, 2, 1, 2),
    (2, 17, 1, 5),
    (7, 101, 3, 4),
    (3, 257, 5, 257),
    (13, 1025, 2, 6),
    (65, 67, 4, 67),
    (26, 131, 7, 64),
]


@pytest.mark.parametrize(("b", "n", "d", "c"), SHAPES)
@pytest.mark.parametrize("with_seen", [False, True])
def test_against_sort(rng, backend, b, n, d, c, with_seen):
    f = oracle.factors(rng, b, n, d)
    seen = oracle.random_seen(rng, b, n, 40) if with_seen else None
    ids = np.stack([rng.permutation(n) for _ in range(b)])[:, :c] if c == n else rng.integers(0, n, (b, c))
    got = bd.rank(f, torch.from_numpy(ids), seen, backend=backend)
    np.testing.assert_array_equal(got.numpy(), np.take_along_axis(oracle.ranks(f, seen), ids, 1))


def test_all_tied(backend):
    """Equal scores: the rank is the number of unseen items with a lower id, and one."""
    f = bd.Factors(torch.ones(2, 3), torch.ones(50, 3))
    ids = torch.arange(50).expand(2, 50)
    assert torch.equal(bd.rank(f, ids, backend=backend), ids + 1)
    seen = oracle.seen_of([[0, 1, 2], list(range(49))])
    ranks = bd.rank(f, ids, seen, backend=backend)
    assert torch.equal(ranks[0], torch.where(ids[0] < 3, 1, ids[0] - 2))
    assert torch.equal(ranks[1], torch.ones(50, dtype=torch.int64))


def test_repeated_ids_and_all_seen(rng, backend):
    f = oracle.factors(rng, 2, 23, 3)
    ids = torch.tensor([[5] * 9, [7, 7, 1, 1, 22, 22, 7, 1, 0]])
    want = np.take_along_axis(oracle.ranks(f, None), ids.numpy(), 1)
    np.testing.assert_array_equal(bd.rank(f, ids, backend=backend).numpy(), want)
    everything = oracle.seen_of([range(23), range(23)])
    assert (bd.rank(f, ids, everything, backend=backend) == 1).all()


def test_signed_zeros_tie(backend):
    """-0.0 and 0.0 are one score."""
    f = bd.Factors(
        torch.ones(1, 1), torch.tensor([[-0.0], [0.0], [-0.0], [0.0]]), torch.tensor([-0.0, -0.0, -0.0, 0.0])
    )
    assert bd.rank(f, torch.arange(4)[None], backend=backend).tolist() == [[1, 2, 3, 4]]


def test_infinite_scores(backend):
    f = bd.Factors(
        torch.ones(1, 1), torch.tensor([[1.0], [float("inf")], [float("-inf")], [2.0], [float("inf")], [0.0]])
    )
    assert bd.rank(f, torch.arange(6)[None], backend=backend).tolist() == [[4, 1, 6, 3, 2, 5]]


def test_sums_that_overflow_on_the_way(backend):
    """The exact sum of item 0 is 0, but its chain ends at infinity; that of item 3 is NaN."""
    big = 3e38
    items = torch.tensor([[big, big, -big, -big], [1.0, 1, 1, 1], [2.0, 2, 2, 2], [big, big, -float("inf"), 0.0]])
    f, t, tie = bd.Factors(torch.ones(1, 4), items[:3]), torch.tensor([[1e35, 2e35]]), torch.tensor([[0, 0]])
    assert bd.count_above(f, t, tie, backend=backend).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="NaN for user row 0, item 3"):
        bd.count_above(f._replace(item_factors=items), t, tie, backend=backend)


@pytest.mark.parametrize("c", [3, 40])
def test_same_counts_whatever_the_tile_and_threads(monkeypatch, two_threads, backend, c):
    f = bd.Factors(torch.randn(67, 9), torch.randn(3001, 9), torch.randn(3001))
    ids = torch.randint(0, 3001, (67, c))
    want = bd.rank(f, ids, backend=backend)
    for tile, threads in ((1, 2), (7, 1), (100, 2), (5000, 1)):
        monkeypatch.setattr(cpu, "TILE", tile)
        monkeypatch.setattr(reference, "TILE_ELEMENTS", tile * 67)
        if backend == "reference" and tile == 1:
            continue  # 3,001 tiles of one item in Python
        torch.set_num_threads(threads)
        assert torch.equal(bd.rank(f, ids, backend=backend), want)


@pytest.mark.parametrize("c", [2, 37])
def test_backends_agree_on_random_values(c):
    """Values whose scores are rounded: the same bits, so the same ranks, near ties and all."""
    if bd.backends.missing("cpu"):
        pytest.skip(f"backend cpu: {bd.backends.missing('cpu')}")
    f = bd.Factors(torch.randn(19, 13), torch.randn(4000, 13).repeat(2, 1), torch.randn(4000).repeat(2))
    seen = bd.Seen.from_pairs(torch.randint(0, 19, (900,)), torch.randint(0, 8000, (900,)), 19)
    ids = torch.randint(0, 8000, (19, c))
    assert torch.equal(bd.rank(f, ids, seen, backend="cpu"), bd.rank(f, ids, seen, backend="reference"))


@pytest.mark.parametrize("c", [1, 9])
def test_counts_add_up_over_shards(rng, backend, c):
    """An uneven partition with an empty shard; seen ids are those of the whole catalog."""
    b, n = 11, 211
    f = oracle.factors(rng, b, n, 3)
    seen = oracle.random_seen(rng, b, n, 60)
    ids = torch.from_numpy(rng.integers(0, n, (b, c)))
    thresholds = bd.score(f, ids, backend=backend)
    total = torch.zeros_like(ids)
    for start, stop in ((0, 100), (100, 100), (100, 101), (101, 211)):
        shard = bd.Factors(f.user_factors, f.item_factors[start:stop], f.item_bias[start:stop])
        total += bd.count_above(shard, thresholds, ids, seen, start, backend=backend)
    assert torch.equal(total + 1, bd.rank(f, ids, seen, backend=backend))


@pytest.mark.parametrize("c", [1, 4, 5, 33])
def test_block_of_scores(rng, backend, c):
    """The same counts from scores that the caller brings, for models that are no dot product."""
    f = oracle.factors(rng, 6, 97, 3)
    seen = oracle.random_seen(rng, 6, 97, 20)
    dense = torch.from_numpy(oracle.scores(f)).float()
    ids = torch.from_numpy(rng.integers(0, 97, (6, c)))
    thresholds = dense.gather(1, ids)
    total = sum(
        bd.count_above_block(dense[:, a:z], thresholds, ids, seen, a, backend=backend) for a, z in ((0, 31), (31, 97))
    )
    np.testing.assert_array_equal((total + 1).numpy(), np.take_along_axis(oracle.ranks(f, seen), ids.numpy(), 1))


def test_thresholds_from_outside(backend):
    """Thresholds need not be scores of items, may be infinite, and may be more than 65,535 (the search table's limit)."""
    f = bd.Factors(torch.ones(1, 1), torch.arange(10.0)[:, None])
    t = torch.tensor([[float("-inf"), -1.0, 4.5, 4.0, 4.0, 9.0, float("inf")]])
    tie = torch.tensor([[0, 0, 0, 4, 5, 100, 0]])
    assert bd.count_above(f, t, tie, backend=backend).tolist() == [[10, 10, 5, 5, 6, 1, 0]]
    ties = torch.tensor(
        [[-(2**63), -1, 3, 2**31, 2**32, 2**32 + 1, 2**63 - 1]]
    )  # of an item 5 that shares the score 5.0
    for shift in (0, 1, 2**31 - 10):
        got = bd.count_above(f, torch.full((1, 7), 5.0), ties, item_offset=shift, backend=backend)
        assert got.tolist() == [[4 + (5 + shift < tie) for tie in ties[0].tolist()]]
        dense = torch.arange(10.0)[None]
        assert torch.equal(
            bd.count_above_block(dense, torch.full((1, 7), 5.0), ties, None, shift, backend=backend), got
        )
    many = torch.randperm(70_000).float()[None] / 7000
    got = bd.count_above(f, many, torch.zeros_like(many, dtype=torch.int64), backend=backend)
    assert torch.equal(got, (torch.arange(10.0)[:, None] > many[0]).sum(0)[None])


@pytest.mark.parametrize("c", [4, 5, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 1025])
def test_every_size_of_search(rng, backend, c):
    """Around each power of two, with ties inside of every tile and thresholds that repeat; an odd end behind the vectors."""
    n = 1537
    scores = torch.from_numpy(rng.integers(-40, 40, (2, n)).astype(np.float32))
    thresholds = torch.from_numpy(rng.integers(-41, 41, (2, c)).astype(np.float32))
    ties = torch.from_numpy(rng.integers(-3, n + 3, (2, c)))
    got = bd.count_above_block(scores, thresholds, ties, backend=backend)
    s, t = scores[:, None], thresholds[..., None]
    want = (s > t) | ((s == t) & (torch.arange(n) < ties[..., None]))
    assert torch.equal(got, want.sum(2))


def test_nothing_to_do(backend):
    f = bd.Factors(torch.randn(3, 2), torch.randn(5, 2))
    assert bd.rank(f, torch.zeros(3, 0, dtype=torch.int64), backend=backend).shape == (3, 0)
    none = bd.Factors(torch.randn(3, 2), torch.randn(0, 2))
    zero = bd.count_above(none, torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), backend=backend)
    assert torch.equal(zero, torch.zeros(3, 2, dtype=torch.int64))
