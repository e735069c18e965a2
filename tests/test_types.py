"""Factors and Seen: what they are made of, where they go, and how they are kept."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import bdkernels as bd

ROWS = [[3, 7], [], [0], [1, 2, 9]]
MATRIX = scipy.sparse.csr_matrix(np.array([[i in row for i in range(10)] for row in ROWS], dtype=np.float32))
SEEN = bd.Seen(torch.tensor([0, 2, 2, 3, 6]), torch.tensor([3, 7, 0, 1, 2, 9]))


class Pair:
    """What some other library has for a CSR matrix."""

    def __init__(self, indptr, indices):
        self.indptr, self.indices = indptr, indices


def same(one: bd.Seen, other: bd.Seen) -> bool:
    return one.indices.dtype == torch.int64 and all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    "matrix",
    [
        MATRIX,
        scipy.sparse.csr_array(MATRIX),
        torch.from_numpy(MATRIX.toarray()).to_sparse_csr(),
        Pair(*SEEN),
        Pair(*(t.int() for t in SEEN)),
        Pair(SEEN.indptr, torch.tensor([7, 3, 0, 9, 1, 2])),  # unsorted rows
        Pair(torch.tensor([0, 3, 3, 4, 8]), torch.tensor([7, 3, 7, 0, 9, 1, 2, 1])),  # repeats
    ],
    ids=["scipy", "scipy array", "torch", "int64", "int32", "unsorted", "repeats"],
)
def test_from_csr(matrix):
    assert same(bd.Seen.from_csr(matrix), SEEN)


def test_from_csr_has_arrays_of_its_own():
    indices = SEEN.indices.clone()
    seen = bd.Seen.from_csr(Pair(SEEN.indptr, indices))
    indices.zero_()
    assert same(seen, SEEN)


def test_from_csr_without_users_or_entries():
    assert same(
        bd.Seen.from_csr(scipy.sparse.csr_matrix((0, 5))), bd.Seen(torch.zeros(1).long(), torch.zeros(0).long())
    )
    assert same(
        bd.Seen.from_csr(scipy.sparse.csr_matrix((2, 5))), bd.Seen(torch.zeros(3).long(), torch.zeros(0).long())
    )


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (MATRIX.tocsc(), "matrix: expected the format csr, got csc"),
        (MATRIX.tocoo(), "matrix: expected the format csr, got coo"),
        ([[1, 2]], "matrix: expected the format csr, got list"),
        (torch.ones(2, 2), "matrix: expected a sparse CSR tensor, got layout torch.strided"),
        (Pair(SEEN.indptr, SEEN.indices.float()), "indices: expected one dimension of int32 or int64"),
        (Pair(SEEN.indptr[None], SEEN.indices), "indptr: expected one dimension of int32 or int64"),
        (Pair(SEEN.indptr[:0], SEEN.indices), "indptr: expected numbers that rise from 0 to 6"),
        (Pair(SEEN.indptr[:-1], SEEN.indices), "indptr: expected numbers that rise from 0 to 6"),
        (Pair(torch.tensor([0, 4, 2, 6]), SEEN.indices), "indptr: expected numbers that rise from 0 to 6"),
        (Pair(SEEN.indptr, SEEN.indices - 1), r"indices: expected ids in \[0, 2\^31\), got -1 to 8"),
    ],
)
def test_what_from_csr_refuses(matrix, message):
    with pytest.raises(ValueError, match=message):
        bd.Seen.from_csr(matrix)


def test_a_bias_of_one_column(backend):
    """As torch.nn.Embedding(N, 1) holds it: the same bits, and its gradient has its shape."""
    users, items, bias, ids = torch.randn(4, 6), torch.randn(31, 6), nn.Embedding(31, 1), torch.randint(31, (4, 5))
    column, flat = bd.Factors(users, items, bias.weight), bd.Factors(users, items, bias.weight.detach()[:, 0])
    for call in (bd.score, bd.rank):
        assert torch.equal(call(column, ids, backend=backend), call(flat, ids, backend=backend))
    for one, other in zip(bd.topk(column, 7, backend=backend), bd.topk(flat, 7, backend=backend), strict=True):
        assert torch.equal(one, other)
    keys = {"user_ids": torch.arange(4), "step": 0, "backend": backend}
    drawn, wanted = bd.sample(column, column, 5, **keys), bd.sample(flat, flat, 5, **keys)
    assert torch.equal(drawn.to_teacher.ids, wanted.to_teacher.ids)
    assert torch.equal(bd.rank_errors(column, ids, 9), bd.rank_errors(flat, ids, 9))
    for sparse in (False, True):
        bias.weight.grad = None
        bd.score(column, ids, sparse=sparse, backend=backend).sum().backward()
        assert bias.weight.grad.is_sparse == sparse  # type: ignore[attr-defined]
        assert torch.equal(bias.weight.grad.to_dense()[:, 0], ids.flatten().bincount(minlength=31).float())  # type: ignore[attr-defined]


def test_factors_go_to_another_device():
    f = bd.Factors(torch.randn(2, 3), torch.randn(5, 3), torch.randn(5))
    moved = f.to("meta")
    assert [t.device.type for t in moved] == ["meta"] * 3
    assert f._replace(item_bias=None).to(torch.device("cpu")).item_bias is None


def test_they_are_loaded_as_weights_only(tmp_path):
    f = bd.Factors(torch.randn(2, 3), torch.randn(5, 3))
    draws = bd.Draws(torch.zeros(2, 3).long(), torch.ones(2, 3).bool())
    saved = {"factors": f, "seen": SEEN, "samples": bd.Samples(draws, None), "best": bd.topk(f, 2)}
    torch.save(saved, tmp_path / "saved.pt")
    found = torch.load(tmp_path / "saved.pt", weights_only=True)
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in saved.items()}
    assert torch.equal(found["factors"].item_factors, f.item_factors) and same(found["seen"], SEEN)
    assert torch.equal(found["samples"].to_student.mask, draws.mask) and found["samples"].teacher is None
