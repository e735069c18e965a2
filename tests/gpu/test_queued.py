"""What runs on a GPU around the kernels: nothing waits for the device, and nothing changes by that. Here on CPU tensors."""

import re
from functools import partial

import pytest
import torch
from no_wait import NoWait
from simulation import ROOT
from stages import problem as problem_of_all
from torch.utils._python_dispatch import _disable_current_modes

import bdkernels as bd
from bdkernels import checks
from bdkernels.backends import Steps, reference
from bdkernels.sampling import rounds, sampler


def unwatched(step):
    """A step of the reference, which may wait."""

    def run(*args, **kwargs):
        with _disable_current_modes():
            return step(*args, **kwargs)

    return run


def count_live(f, thresholds, tie_ids, seen, item_offset, live=None):
    """Counts of the live rows and, as a kernel may leave them, anything in the others."""
    counts = reference.count_above(f, thresholds, tie_ids, seen, item_offset)
    if live is not None:
        counts[int(live) :] = -12345
    return counts


def queued(**changed) -> Steps:
    steps = reference.STEPS._replace(queued=True, count_above=count_live, **changed)
    return steps._replace(**{name: unwatched(step) for name, step in steps._asdict().items() if callable(step)})


def problem(b=37, n=300):
    f = [bd.Factors(torch.randn(b, d), torch.randn(n, d)) for d in (6, 3)]
    pairs = torch.randint(0, b, (400,)), torch.randint(0, n, (400,))
    everything = torch.full((n,), b - 1), torch.arange(n)  # the last user has seen all
    return *f, bd.Seen.from_pairs(*(torch.cat(p) for p in zip(pairs, everything, strict=True)), b)


CODES = {
    "released": (("tanh", 252.0, False), ("exp", 2.5, False)),
    "peaked": (("tanh", 252.0, True), ("exp", 80.0, False)),
    "one direction": (("", 0.0, False), ("rank_only", 3.0, False)),
}


@pytest.mark.parametrize("weights", CODES.values(), ids=CODES)
def test_queued_rounds_draw_the_same(weights):
    teacher, student, seen = problem()
    draw = partial(sampler.sample, teacher=teacher, student=student, k=9, weights=weights, seed=3, step=4)
    for rows in (None, seen):
        asked = {"seen": rows, "row_keys": torch.arange(100, 137)}
        for ours, theirs in zip(draw(queued(), **asked), draw(reference.STEPS, **asked), strict=True):
            assert ours.is_contiguous() and torch.equal(ours, theirs)


@pytest.mark.parametrize("weights", CODES.values(), ids=CODES)
def test_queued_rounds_do_not_wait(monkeypatch, weights):
    teacher, student, seen = problem()
    arguments = (teacher, student, 9, seen, weights, 3, 4, torch.arange(37))
    whole = sampler.sample(reference.STEPS, *arguments)
    with pytest.raises(AssertionError, match="waits for the device"), NoWait():
        sampler.sample(queued(), *arguments)  # who is left after each round
    monkeypatch.setattr(rounds, "may_ask", lambda device: False)  # as while a CUDA graph is captured
    with NoWait():
        some = sampler.sample(queued(), *arguments)
    for ours, theirs in zip(some, whole, strict=True):
        assert torch.equal(ours, theirs.where(ours >= 0, -1))
        assert ours.numel() == 0 or (ours >= 0).any()
        assert (ours[:, 1:] >= 0).le(ours[:, :-1] >= 0).all()  # the first draws


@pytest.mark.parametrize("sparse", [False, True])
def test_losses_and_their_gradients_do_not_wait(monkeypatch, sparse):
    """Also those of the reference, whose distill_loss is that of the CUDA backend, and the sparse rows that autograd makes."""
    monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
    monkeypatch.setenv("BDKERNELS_BACKEND", "reference")
    p = problem_of_all()
    tables, scores = [t.requires_grad_() for t in p.tables], p.guide.clone().requires_grad_()
    with NoWait():
        out = bd.fused_loss(*tables, *p.batch, p.draws, p.guide, sparse=sparse)
        (out.loss + bd.distill_loss(scores, p.guide, mask=p.draws.mask)).backward()
    assert all(t.grad.is_sparse == sparse for t in tables)
    assert scores.grad is not None


def test_kernels_leave_memory_and_waiting_to_torch():
    """Scratch memory is that torch's, so a CUDA graph has it in its pool; nothing is copied or awaited by hand."""
    calls = re.compile(
        r"\bcuda(Malloc|Free|Memcpy|Memset|Host|Managed|Device(?!GetAttribute)|Stream[A-Z]|Event|Launch)\w*|\bcub::|\bthrust::"
    )
    files = [*(ROOT / "csrc" / "cuda").iterdir(), *(ROOT / "csrc" / "binding").glob("cuda*")]
    assert len(files) > 10
    for path in files:
        assert not (found := calls.search(path.read_text())), f"{path.name}: {found[0]}"
    assert calls.search("cudaStreamSynchronize(stream)") and calls.search("cudaMallocAsync(&p, n, stream)")


BAD = {
    "users not in order": (lambda: checks.seen_values(bd.Seen(torch.tensor([0, 2, 1]), torch.tensor([4])), 9), "indptr"),
    "ends": (lambda: checks.seen_values(bd.Seen(torch.tensor([0, 2, 2]), torch.tensor([4])), 9), "first 0 and last 1"),
    "unsorted": (lambda: checks.seen_values(bd.Seen(torch.tensor([0, 1, 3]), torch.tensor([5, 7, 2])), 9), "increasing"),
    "repeated": (lambda: checks.seen_values(bd.Seen(torch.tensor([0, 0, 2]), torch.tensor([5, 5])), 9), "increasing"),
    "beyond": (lambda: checks.seen_values(bd.Seen(torch.tensor([0, 1, 1]), torch.tensor([9])), 9), r"ids in \[0, 9\)"),
    "ids": (lambda: checks.ids_values("ids", torch.tensor([[3, -1]]), 9), r"ids: expected ids in \[0, 9\)"),
    "nan": (lambda: checks.no_nan("thresholds", torch.tensor([0.0, torch.nan])), "thresholds: expected no NaN"),
    "nan listed": (lambda: checks.no_nan_listed(torch.tensor([[torch.nan]]), torch.tensor([[3]])), "factors: expected finite"),
    "nan score": (lambda: checks.no_nan_at(torch.tensor(25), 10, 7), "factors: expected finite scores"),
}  # fmt: skip


@pytest.mark.parametrize(("check", "message"), BAD.values(), ids=BAD)
def test_values_are_asserted_without_waiting(monkeypatch, check, message):
    with pytest.raises(ValueError, match=message):
        check()
    monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
    with pytest.raises(RuntimeError, match=message), NoWait():
        check()


def test_good_values_pass(monkeypatch):
    for kinds in ((), ("cpu",)):
        monkeypatch.setattr(checks, "ASSERTS", kinds)
        checks.seen_values(bd.Seen(torch.tensor([0, 0, 2, 2, 3]), torch.tensor([0, 8, 3])), 9)
        checks.seen_values(bd.Seen(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)), 9)
        checks.ids_values("ids", torch.empty(0, 3, dtype=torch.int64), 0)
        checks.no_nan_at(torch.tensor(-1), 10)


def test_where_a_nan_is():
    with pytest.raises(ValueError, match="got NaN for user row 2, item 12"):
        checks.no_nan_at(torch.tensor(25), 10, 7)
    with pytest.raises(ValueError, match="got NaN for user row 1, item 8"):
        checks.no_nan_listed(torch.tensor([[0.0, 1.0], [2.0, torch.nan]]), torch.tensor([[5, 6], [7, 8]]))


def test_the_watch_sees_what_it_should():
    t = torch.tensor([1.0, 0.0])
    for wait in (
        lambda: t[0].item(), lambda: bool(t.any()), lambda: t.nonzero(), lambda: t[t > 0], lambda: torch.equal(t, t),
        lambda: t.to("cpu", copy=True), lambda: t.unique(),
        lambda: torch.repeat_interleave(t, torch.tensor([1, 2])), lambda: t.masked_select(t > 0),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="waits for the device"), NoWait():
            wait()
