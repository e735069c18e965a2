"""Scorers that are no `Factors`, by the Triton kernels: blocks of scores are counted, and draws accepted, as by the reference."""

import oracle
import pytest
import torch
from interpreter import strict
from made import Made

import bdkernels as bd
from bdkernels.backends import blocks
from bdkernels.sampling import sampler


@pytest.mark.parametrize("sort", [bd.Scores, Made])
def test_scorers(monkeypatch, rng, sort):
    monkeypatch.setattr(blocks, "ELEMENTS", 100)  # three blocks, slices of the scores
    monkeypatch.setattr(sampler, "IN_FLIGHT", 100)  # few proposals
    b, n = 3, 70
    teacher, student = torch.randn(b, n), torch.randn(b, n).round()
    seen, ids = oracle.random_seen(rng, b, n, 20), torch.randint(n, (b, 5))
    settings = {"user_ids": torch.arange(b), "step": 1, "to_student": bd.Uniform(), "to_teacher": None}
    with strict(seed=1):
        for scores in (teacher, student):
            assert torch.equal(
                bd.rank(sort(scores), ids, seen, backend="triton"), bd.rank(bd.Scores(scores), ids, seen)
            )
        best = bd.topk(sort(student), 7, seen, backend="triton")
        assert torch.equal(best.ids, bd.topk(bd.Scores(student), 7, seen).ids)
        ours = bd.sample(sort(teacher), sort(student), 3, seen, **settings, backend="triton")
    theirs = bd.sample(bd.Scores(teacher), bd.Scores(student), 3, seen, **settings)
    assert torch.equal(ours.to_student.ids, theirs.to_student.ids)
