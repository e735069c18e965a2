"""What only a GPU can show, for each of its backends: results on its tensors, streams, graphs, no waiting, sizes beyond 2^31.

BDKERNELS_TEST_BACKENDS names the backends (default: both). Where a backend is simulated, on CPU tensors, what makes sense there
runs at small sizes: `make gpu-check` has a rehearsal.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations

import pytest
import torch
from chosen import BACKENDS
from graphs import assert_draws, assert_reads, captured
from no_wait import NoWait
from stages import STAGES, Problem, problem, same, sample
from test_contract import TwoModels, arguments
from test_loss import step_inputs
from torch import Tensor
from torch.utils._pytree import tree_map_only

import bdkernels as bd
from bdkernels import backends, checks

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NAMES = [name for name in ("triton", "cuda") if name in BACKENDS] or ["triton", "cuda"]
needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU: the backend is simulated")


def refusal(name: str) -> str | None:
    """Why a backend cannot run on the device; None if it can."""
    try:
        backends.choose(DEVICE, name)
    except bd.BackendError as error:
        return str(error)
    return None


if all(map(refusal, NAMES)):
    reason = "; ".join(str(refusal(name)) for name in NAMES)
    pytest.skip(f"{reason} (make gpu-check, on a machine with a GPU)", allow_module_level=True)


@pytest.fixture(params=NAMES)
def name(request, monkeypatch) -> str:
    """A backend, chosen for every call."""
    if why := refusal(request.param):
        pytest.skip(why)
    monkeypatch.setenv("BDKERNELS_BACKEND", request.param)
    return request.param


problem = partial(problem, 300, 50_021, 33) if GPU else problem
EVERY_STAGE = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)


# ---- results ----


@EVERY_STAGE
def test_reference_on_the_cpu(monkeypatch, name, stage):
    p = problem()
    got = stage(p.to(DEVICE))
    assert all(t.device.type == DEVICE.type for t in got)
    monkeypatch.setenv("BDKERNELS_BACKEND", "reference")
    same(stage, got, stage(p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", ["score", "rank", "topk", "sample"])
def test_tables_of_half_precision(monkeypatch, name, stage, dtype):
    p = problem()
    p = p._replace(
        **{who: tree_map_only(Tensor, lambda t: t.to(dtype), getattr(p, who)) for who in ("teacher", "student")}
    )
    got = STAGES[stage](p.to(DEVICE))
    monkeypatch.setenv("BDKERNELS_BACKEND", "reference")
    same(STAGES[stage], got, STAGES[stage](p))


@pytest.mark.parametrize("op", list(arguments()))
def test_opcheck(name, op):
    there = tree_map_only(Tensor, lambda t: t.detach().to(DEVICE).requires_grad_(t.requires_grad), arguments()[op])
    torch.library.opcheck(getattr(torch.ops.bdkernels, op).default, there, {"backend": name})


@needs_gpu
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck(with_bias):
    """The losses in float64, which the reference serves, on the device."""
    user, item, bias, *rest = tree_map_only(Tensor, lambda t: t.to(DEVICE), step_inputs())
    leaves = [t.requires_grad_() for t in (user, item, *([bias] if with_bias else []))]

    def loss(*tables: Tensor) -> Tensor:
        return bd.fused_loss(*tables, *([] if with_bias else [None]), *rest, sparse=False).loss

    assert torch.autograd.gradcheck(loss, leaves)
    z, guide = (torch.randn(4, 5, dtype=torch.float64, device=DEVICE) for _ in range(2))
    mask = torch.rand(4, 5, device=DEVICE) < 0.5
    assert torch.autograd.gradcheck(lambda x: bd.distill_loss(x, guide, 0.7, 2.0, mask), (z.requires_grad_(),))


@EVERY_STAGE
def test_autocast_changes_nothing(name, stage):
    p = problem().to(DEVICE)
    want = stage(p)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        same(stage, stage(p), want)


def test_compiled_step(name):
    """Losses, ranks, gradients of a compiled training step are those of the eager one."""
    model = TwoModels().to(DEVICE)
    users, positives = torch.tensor([3, 0, 11, 7], device=DEVICE), torch.tensor([5, 39, 0, 20], device=DEVICE)
    seen = bd.Seen.from_pairs(torch.arange(4, device=DEVICE), positives, 4)
    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        loss, ranks, best = run(users, positives, *seen, 1)
        loss.backward()
        results.append((loss.detach(), ranks, best, *[p.grad.clone() for p in model.parameters()]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- queueing ----


@contextmanager
def nothing_waits(monkeypatch) -> Iterator[None]:
    """An error where the host waits for the device; a simulated one is watched as test_queued.py does it."""
    if not GPU:
        monkeypatch.setattr(checks, "ASSERTS", ("cpu",))
        with NoWait():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "stage", [stage for stage in STAGES if stage != "sample"]
)  # which asks one question at its end
def test_nothing_waits(monkeypatch, name, stage):
    p = problem().to(DEVICE)
    want = STAGES[stage](p)  # compiles, tunes
    with nothing_waits(monkeypatch):
        got = STAGES[stage](p)
    same(STAGES[stage], got, want)


@needs_gpu
def test_waiting_is_noticed():
    with pytest.raises(RuntimeError, match="synchroniz"), nothing_waits(None):
        torch.ones(3, device=DEVICE).sum().item()


def negated(p: Problem, stage: Callable) -> tuple[Tensor, ...]:
    other = p.to(DEVICE)
    for t in other.floats():
        t.neg_()
    return stage(other)


@needs_gpu
@EVERY_STAGE
def test_cuda_graph(name, stage):
    """Captured once, replayed on other values. A captured `sample` cannot rank a full row: it may give fewer draws."""
    p = problem().to(DEVICE)
    want = negated(p, stage)
    graph = captured(lambda: stage(p), DEVICE)
    for t in p.floats():
        t.neg_()
    graph.replay()
    torch.cuda.synchronize()
    if stage is sample:
        assert_draws(graph.results, want)
    else:
        same(stage, graph.results, want)


def test_cuda_graph_reads_seed_and_step(name):
    """A captured `sample` draws for the seed and the step that its tensors hold when it is replayed."""
    p = problem().to(DEVICE)
    numbers = [(3, 0), (3, 5), (4, 5), (-1, 2**32 - 1)]
    assert_reads(partial(sample, p), DEVICE, numbers)
    drawn = [torch.cat(sample(p, *each)) for each in numbers]
    assert not any(torch.equal(*pair) for pair in combinations(drawn, 2))  # one that never reads would be seen


def test_cuda_graph_counts_steps(name):
    """A captured step of Adam counts on for its bias correction and reads its rate anew: it trains as one not captured does."""
    p = problem().to(DEVICE)
    rate = torch.tensor(0.1, dtype=torch.float64, device=DEVICE)
    eager, replayed = (bd.SparseAdam([t.clone() for t in p.tables], lr, capturable=True) for lr in (0.1, rate))

    def step(optimizer):
        return (bd.fused_step(optimizer, *p.batch, p.draws, p.guide).loss,)

    step(eager)
    graph = captured(lambda: step(replayed), DEVICE)
    for lr in (0.1, 0.1, 0.05):
        rate.fill_(lr)
        eager.param_groups[0]["lr"] = lr
        want = step(eager)
        graph.replay()
        assert torch.equal(*want, *graph.results)
    assert eager.step_count == replayed.step_count == 4
    assert all(torch.equal(*pair) for pair in zip(eager.tables().values(), replayed.tables().values(), strict=True))


@needs_gpu
@EVERY_STAGE
def test_stream_of_the_caller(name, stage):
    """The inputs change late, on another stream: whoever does not queue behind that reads the old ones."""
    p = problem().to(DEVICE)
    want, side = negated(p, stage), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        for t in p.floats():
            t.neg_()
        got = stage(p)
    torch.cuda.synchronize()
    same(stage, got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@EVERY_STAGE
def test_another_gpu_than_the_current_one(name, stage):
    p = problem()
    got = stage(p.to(torch.device("cuda:1")))
    assert all(t.device.index == 1 for t in got)
    same(stage, got, stage(p.to(torch.device("cuda:0"))))


# ---- errors ----

NAN = """
import torch, bdkernels as bd
device = torch.device("{device}")
f = bd.Factors(torch.ones(2, 3, device=device), torch.full((40, 3), torch.nan, device=device))
ids = torch.zeros(2, 1, dtype=torch.int64, device=device)
{call}
torch.ones(1, device=device).cpu()
"""


@pytest.mark.parametrize(
    "call", ["bd.topk(f, 2)", "bd.rank(f, ids)", "bd.score(f, ids)", "bd.sample(f, f, 2, user_ids=ids[:, 0], step=0)"]
)
def test_nan_ends_the_process(name, call):
    """With the message of the check: asserted on a GPU, where nothing can run after that, else raised."""
    code = NAN.format(device=DEVICE.type, call=call)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode != 0
    assert "factors: expected finite scores" in out.stderr


# ---- sizes ----


def room_for(gigabytes: float) -> None:
    torch.cuda.empty_cache()  # what other tests had
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"the GPU has no {gigabytes:g} GB free")


@needs_gpu
def test_pairs_beyond_2_31(monkeypatch, name):
    """The last users of many are as if alone."""
    b, n = 2200, 1_000_003
    torch.manual_seed(1)
    t, s = (bd.Factors(torch.randn(b, d), torch.randn(n, d)) for d in (9, 4))
    users, ids, last = torch.arange(b), torch.randint(0, n, (b, 2)), slice(b - 3, b)
    assert b * n > 2**31

    def results(rows: slice, device: torch.device) -> list[Tensor]:
        few = [bd.Factors(f.user_factors[rows].to(device), f.item_factors.to(device)) for f in (t, s)]
        drawn = bd.sample(*few, 5, user_ids=users[rows].to(device), step=0)
        out = *bd.topk(few[0], 5), bd.rank(few[0], ids[rows].to(device)), drawn.to_student.ids, drawn.to_teacher.ids
        return [x[-3:].cpu() for x in out]

    got = results(slice(0, b), DEVICE)
    monkeypatch.setenv("BDKERNELS_BACKEND", "reference")
    for one, other in zip(got, results(last, torch.device("cpu")), strict=True):
        assert torch.equal(one, other)


@needs_gpu
def test_block_beyond_2_31(monkeypatch, name):
    room_for(12)
    b, n = 2200, 1_000_003
    scores = torch.randn(b, n, device=DEVICE)
    ids = torch.randint(0, n, (b, 4), device=DEVICE)
    thresholds = scores.gather(1, ids)
    got = bd.count_above_block(scores, thresholds, ids)[-3:].cpu()
    monkeypatch.setenv("BDKERNELS_BACKEND", "reference")
    assert torch.equal(got, bd.count_above_block(*(x[-3:].cpu() for x in (scores, thresholds, ids))))


@needs_gpu
def test_table_beyond_2_31(name):
    """All items score 0 but the last, whose row lies behind 2^31 numbers."""
    room_for(8)
    n, d = 2**25 + 3, 64
    items = torch.zeros(n, d, dtype=torch.float16, device=DEVICE)
    items[-1] = 1
    f = bd.Factors(torch.ones(2, d, dtype=torch.float16, device=DEVICE), items)
    ids = torch.tensor([[n - 1, 0, n - 2]] * 2, device=DEVICE)
    assert bd.score(f, ids).tolist() == [[64, 0, 0]] * 2
    assert bd.rank(f, ids).tolist() == [[1, 2, n]] * 2
    assert bd.topk(f, 2).ids.tolist() == [[n - 1, 0]] * 2


@needs_gpu
def test_update_beyond_2_31(name):
    """The last row of a table of more than 2^31 numbers is updated as if it were that of a small one."""
    room_for(12)
    results = []
    for rows in (2**25 + 3, 5):
        tables = torch.zeros(rows, 64, device=DEVICE), torch.full((9, 64), 0.5, device=DEVICE)
        tables[0][-1] = 1
        users, items = torch.full((2,), rows - 1, device=DEVICE), torch.tensor([1, 2], device=DEVICE)
        draws = bd.Draws(items[:, None] + 2, torch.ones(2, 1, dtype=torch.bool, device=DEVICE))
        bd.fused_step(bd.SGD(tables, lr=0.1), users, items, items[:, None] + 4, draws, torch.zeros(2, 1, device=DEVICE))
        results.append((tables[0][-1].cpu(), tables[1].cpu()))
        assert not tables[0][:-1].any()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# ---- training ----


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
def test_train(name, tmp_path, optimizer):
    data = tmp_path / "interactions.csv"
    data.write_text("user,item\n" + "".join(f"{u},{(7 * u + 3 * i) % 30}\n" for u in range(12) for i in range(8)))
    models = [w for who in ("teacher", "student") for w in (f"--{who}-dim", "4", f"--{who}-optimizer", optimizer)]
    epochs = ["--train-pretrain-epochs", "1", "--train-epochs", "1", "--eval-ks", "5", "--train-monitor", "ndcg@5"]
    where = ["--data-path", str(data), "--data-split", "leave_one", "--run-out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "bidistill", "train", *where, *models, *epochs, "--run-device", DEVICE.type]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-5000:]
    assert (tmp_path / "run" / "report.html").exists()
