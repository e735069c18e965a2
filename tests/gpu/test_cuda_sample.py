"""The CUDA kernels of the stage sample: proposals and accepted ones are those of the reference."""

import pytest
import torch
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
