"""Integers, floats and flags of every public function: a bool is no number, a number no flag; NumPy's are as good as Python's."""

import numpy as np
import pytest
import torch
from draws import numbered

import bdkernels as bd

F = bd.Factors(torch.randn(3, 4), torch.randn(10, 4))
IDS = torch.zeros(3, 2, dtype=torch.int64)
SCORES = torch.randn(3, 2)
BATCH = IDS[:, 0], IDS[:, 0], IDS[:, :1], bd.Draws(IDS, IDS >= 0), SCORES


def sample(**changed):
    return bd.sample(F, F, **{"k": 2} | numbered(F) | changed)


INTEGERS = {
    "item_offset": lambda x: bd.count_above(F, SCORES, IDS, item_offset=x),
    "item_offset of a block": lambda x: bd.count_above_block(F.user_factors, SCORES, IDS, item_offset=x),
    "k of topk": lambda x: bd.topk(F, x).ids,
    "k": lambda x: sample(k=x).to_student.ids,
    "seed": lambda x: sample(seed=x).to_student.ids,
    "step": lambda x: sample(step=x).to_student.ids,
    "subset": lambda x: sample(subset=x).to_student.ids,
    "subset of rank_errors": lambda x: bd.rank_errors(F, IDS, x),
    "seed of rank_errors": lambda x: bd.rank_errors(F, IDS, 3, seed=x),
    "step of rank_errors": lambda x: bd.rank_errors(F, IDS, 3, step=x),
    "m": lambda x: bd.rank_error(x),
    "m of PopularityStrata": lambda x: bd.PopularityStrata(torch.arange(9)).draw(x),
    "seed of PopularityStrata": lambda x: bd.PopularityStrata(torch.arange(9)).draw(3, seed=x),
    "step of PopularityStrata": lambda x: bd.PopularityStrata(torch.arange(9)).draw(3, step=x),
    "n_users": lambda x: bd.Seen.from_pairs(IDS[:, 0], IDS[:, 0], x).indptr,
}
FLOATS = {
    "tau_learner": lambda x: bd.distill_loss(SCORES, SCORES, tau_learner=x),
    "tau_guide": lambda x: bd.distill_loss(SCORES, SCORES, tau_guide=x),
    "distill_weight": lambda x: bd.fused_loss(*F[:2], None, *BATCH, distill_weight=x).loss,
    "tau_learner of a step": lambda x: bd.fused_loss(*F[:2], None, *BATCH, tau_learner=x).loss,
    "alpha": lambda x: sample(to_student=bd.Tanh(x)).to_student.ids,
    "eps": lambda x: sample(to_student=bd.Exp(eps=x)).to_student.ids,
    "mu": lambda x: sample(to_student=bd.RankOnly(x)).to_student.ids,
    "delta": lambda x: bd.rank_error(3, x / 2),
}
FLAGS = {
    "sparse": lambda x: bd.score(F, IDS, sparse=x),
    "sparse of a step": lambda x: bd.fused_loss(*F[:2], None, *BATCH, sparse=x).loss,
    "independent_directions": lambda x: sample(independent_directions=x).to_student.ids,
}


def same(one, other):
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    call, short = INTEGERS[name], name.split(" of ")[0]
    for wrong in (True, np.True_, 2.0, np.float64(2), "2", None, torch.tensor(2)):
        if wrong is None and short == "subset" and name == short:
            continue
        if isinstance(wrong, torch.Tensor) and short == "subset":
            continue  # ids of items; a tensor without dimensions is a wrong shape
        if isinstance(wrong, torch.Tensor) and name in ("seed", "step"):
            assert same(call(wrong), call(2))  # of sample: such a tensor may lie on a GPU
            continue
        with pytest.raises(TypeError, match=f"{short}: expected int, got"):
            call(wrong)
    assert same(call(np.int32(3)), call(3))


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name):
    call, short = FLOATS[name], name.split(" of ")[0]
    for wrong in (True, "2"):
        if name != "delta":
            with pytest.raises(TypeError, match=f"{short}: expected float, got"):
                call(wrong)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=f"{short}: expected"):
            call(wrong)
    assert same(call(np.float32(0.5)), call(0.5)) and same(call(np.int64(1)), call(1))


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name):
    for wrong in (1, 0, None, "yes", torch.tensor(True)):
        with pytest.raises(TypeError, match=f"{name.split(' of ')[0]}: expected bool, got"):
            FLAGS[name](wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_ids_of_seen_are_integers(dtype):
    ids = IDS[:, 0]
    for users, items, name in ((ids.to(dtype), ids, "users"), (ids, ids.to(dtype), "items")):
        with pytest.raises(ValueError, match=f"{name}: expected integers, got {dtype}"):
            bd.Seen.from_pairs(users, items, 3)
