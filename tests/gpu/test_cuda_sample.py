"""The CUDA kernels of the stage sample: proposals and accepted ones are those of the reference."""

import pytest
import torch
from by_steps import assert_same_round, first_round
from draws import numbered

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import reference
from bdkernels.types.seen import Seen

WEIGHTS = [
    ("tanh", 25.0, False),
    ("exp", 2.5, True),
    ("linear", 0.0, False),
    ("uniform", 0.0, False),
    ("rank_only", 9.0, False),
]


@pytest.fixture
def cuda(cuda_device):
    return backends.steps(cuda_device, "cuda")


def seen_rows(n_users: int, n_items: int, device: torch.device) -> Seen:
    """A user of each kind: who has seen nothing, all, all but the last item, and some."""
    rows = [torch.arange(0), torch.arange(n_items), torch.arange(n_items - 1)]
    rows += [torch.randperm(n_items)[: n_items // 3].sort().values for _ in range(n_users)]
    counts = torch.tensor([0, *map(len, rows[:n_users])])
    return Seen(counts.cumsum(0), torch.cat([torch.arange(0), *rows[:n_users]])).to(device)


@pytest.mark.parametrize(
    ("b", "n_items", "c"), [(1, 1, 1), (5, 31, 33), (4, 2**31 - 1, 64), (3, 7, 257), (0, 9, 3), (3, 9, 0)]
)
@pytest.mark.parametrize("with_seen", [False, True])
def test_proposals(cuda, cuda_device, b, n_items, c, with_seen):
    seen = seen_rows(b, n_items, cuda_device) if with_seen and n_items < 1000 else None
    row_keys = torch.randint(-(2**63), 2**63 - 1, (b,), device=cuda_device)  # any user, occurrence and direction
    for seed, step, start in ((0, 0, 0), (-1, 2**32 - 1, 2**32 - 1 - c)):
        arguments = seed, step, row_keys, start, start + c, n_items, seen
        assert torch.equal(cuda.propose(*arguments), reference.propose(*arguments))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: w[0])
@pytest.mark.parametrize("to_teacher", [False, True])
@pytest.mark.parametrize(("b", "c"), [(1, 1), (5, 257), (0, 3), (3, 0)])
def test_acceptance(cuda, cuda_device, weight, to_teacher, b, c):
    n = torch.randint(1, 40, (b,), device=cuda_device)
    n[::4] = 0  # no candidate, no weight, nothing accepted
    guide, learner = ((torch.rand(b, c, device=cuda_device) * n[:, None]).long() + 1 for _ in range(2))
    row_keys = torch.arange(b, device=cuda_device) - 5 << 39
    arguments = 7, 3, row_keys, 11, guide, learner, n, weight, to_teacher
    got = cuda.accept(*arguments)
    assert got.dtype == torch.bool
    assert torch.equal(got, reference.accept(*arguments))


OFF = ("", 0.0, False)


@pytest.mark.parametrize(
    "weights", [(WEIGHTS[0], WEIGHTS[1]), (WEIGHTS[3], WEIGHTS[2]), (WEIGHTS[4], OFF), (OFF, WEIGHTS[1])]
)
@pytest.mark.parametrize(("b", "n", "d", "k"), [(5, 70, (5, 33), 20), (2, 3, (1, 2), 70), (1, 1, (4, 4), 1)])
@pytest.mark.parametrize("with_seen", [False, True])
def test_rounds(cuda, cuda_device, weights, b, n, d, k, with_seen):
    """One after the other, over the limits: each leaves what the reference's stages do."""
    teacher, student = (
        bd.Factors(torch.randn(b, dim).sort(dim=1).values, torch.randn(n, dim), torch.randn(n)) for dim in d
    )
    student = bd.Factors(*(t.bfloat16() for t in student))  # another dtype than the teacher's
    models = [f.to(cuda_device) for f in (teacher, student)]
    seen = seen_rows(b, n, cuda_device) if with_seen else None
    state = first_round(*models, k, seen, weights, limits=(90, 5, 200))
    for start, stop in ((0, 33), (33, 90), (90, 91), (91, 200)):
        state = assert_same_round(cuda.draw_round, state, start, stop).following()
        state = state._replace(rows=state.rows[: int(state.live)])
        if not len(state.rows):
            break
    assert stop > 33 or n < 5


def test_a_large_round(cuda, cuda_device):
    """The most proposals of a round, half precision, rows that are not live, and a slice of a table."""
    items = [torch.randn(120, d + 1, device=cuda_device).half()[:, :d] for d in (4, 3)]
    models = [bd.Factors(torch.randn(3, f.shape[1], device=cuda_device).half(), f) for f in items]
    state = first_round(*models, 40, seen_rows(3, 120, cuda_device), (WEIGHTS[1], WEIGHTS[2]))
    assert int(state.live) == 2
    state = assert_same_round(cuda.draw_round, state, 0, 1024)
    assert (state.ids[:, state.rows[:2]] >= 0).any(2).any(1).all()
    nobody = state._replace(live=state.live * 0)  # as while a graph is captured
    assert_same_round(cuda.draw_round, nobody, 1024, 1056)


def test_a_nan_is_found(cuda, cuda_device):
    models = [bd.Factors(torch.randn(3, 4, device=cuda_device), torch.randn(50, 4, device=cuda_device)) for _ in "ts"]
    models[1].item_factors[17, 2] = torch.nan
    state = first_round(*models, 2, None, (WEIGHTS[0], WEIGHTS[0]))
    cuda.draw_round(state, 0, 64)
    assert state.nan_at[0] == -1 and state.nan_at[1] % 50 == 17
    models[0].user_factors[int(state.rows[1])] = torch.nan
    state = first_round(*models, 2, None, (WEIGHTS[0], WEIGHTS[0]))
    cuda.draw_round(state, 0, 64)
    assert state.nan_at[0] // 50 == 1


def test_whole_sampler(cuda_device):
    """The rounds over these kernels draw what they draw over the reference's."""
    teacher, student = (
        bd.Factors(torch.randn(6, 4, device=cuda_device), torch.randn(40, 4, device=cuda_device)) for _ in "ts"
    )
    seen = seen_rows(6, 40, cuda_device)
    weights = {"to_student": bd.Tanh(alpha=4.0), "to_teacher": bd.Exp(alpha=2.5)}
    got, want = (
        bd.sample(teacher, student, 5, seen, **weights, **numbered(teacher, seed=1, step=2), backend=name)
        for name in ("cuda", "reference")
    )
    for mine, other in zip(got, want, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert torch.equal(mine.mask, other.mask)
