"""Times of the operators on the GPU, each after its result was compared with the C++ backend's for a few users."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from graphs import assert_reads, captured
from torch import Tensor

import bdkernels as bd
from bdkernels.tools.measure import Work
from phases.inputs import (
    BEST,
    CHECKED,
    DRAWS,
    FEW_LISTED,
    LR,
    MILLION,
    PAPER,
    Batch,
    Models,
    all_in,
    ids,
    models,
    training,
)
from phases.row import Row, Setting, timed

IN_A_ROW = 20  # steps that are one measurement: the host queues them faster than one alone can be timed


def rank(listed: int) -> Row:
    """Ranks under both models of so many items a user."""

    def run(setting: Setting) -> dict[str, Any]:
        m = models(setting, MILLION)
        some = ids(
            setting, m.teacher.n_items, m.teacher.user_factors.shape[0], FEW_LISTED if setting.rehearse else listed
        )
        few = m.few()
        for f, small in zip(m.both, few.both, strict=True):
            want = bd.rank(small, some[:CHECKED].cpu(), few.seen, backend="cpu")
            all_in(bd.rank(f, some, m.seen)[:CHECKED], want, "rank")
        work = Work(2 * m.pairs, m.flops, m.bytes + 4 * 8 * some.numel())
        return timed(setting, lambda: [bd.rank(f, some, m.seen) for f in m.both], work, model=f"rank {listed}")

    return run


def product(setting: Setting) -> dict[str, Any]:
    """Both products with one threshold a user, so that the search is nothing."""
    m = models(setting, MILLION)
    ties = ids(setting, m.teacher.n_items, m.teacher.user_factors.shape[0], 1)
    limits = [bd.score(f, ties) for f in m.both]
    for f, small, limit in zip(m.both, m.few().both, limits, strict=True):
        want = bd.count_above(small, limit[:CHECKED].cpu(), ties[:CHECKED].cpu(), backend="cpu")
        all_in(bd.count_above(f, limit, ties)[:CHECKED], want, "count_above")

    def call() -> None:
        for f, limit in zip(m.both, limits, strict=True):
            bd.count_above(f, limit, ties)

    return timed(setting, call, Work(2 * m.pairs, m.flops, m.bytes), model="product")


def search(thresholds: int) -> Row:
    """Of scores that are there already, one model's; they are read once."""

    def run(setting: Setting) -> dict[str, Any]:
        m = models(setting, MILLION)
        scores = m.teacher.user_factors @ m.teacher.item_factors.T
        ties = ids(setting, scores.shape[1], scores.shape[0], thresholds)
        limits = scores.gather(1, ties)
        want = bd.count_above_block(*(t[:CHECKED].cpu() for t in (scores, limits, ties)), backend="cpu")
        all_in(bd.count_above_block(scores, limits, ties)[:CHECKED], want, "count_above_block")
        work = Work(scores.numel(), 0, 4 * scores.numel())
        return timed(setting, lambda: bd.count_above_block(scores, limits, ties), work, model=f"search {thresholds}")

    return run


def draws(
    m: Models, k: int = DRAWS, backend: str | None = None, seed: int | Tensor = 0, step: int | Tensor = 0
) -> tuple[Tensor, Tensor]:
    users = torch.arange(m.teacher.user_factors.shape[0], device=m.teacher.user_factors.device)
    out = bd.sample(*m.both, k, m.seen, user_ids=users, seed=seed, step=step, backend=backend)
    return out.to_student.ids, out.to_teacher.ids


def checked_draws(m: Models, k: int = DRAWS) -> Work:
    """What a call must do at least, once its draws are those of the C++ backend."""
    for mine, theirs in zip(draws(m, k), draws(m.few(), k, "cpu"), strict=True):
        all_in(mine[:CHECKED], theirs, "sample")
    return Work(2 * m.pairs, m.flops, m.bytes)


def sample(sizes: tuple[int, int, tuple[int, int]], model: str, k: int = DRAWS) -> Row:
    def run(setting: Setting) -> dict[str, Any]:
        m = models(setting, sizes)
        return timed(setting, lambda: draws(m, k), checked_draws(m, k), model=model)

    return run


def topk(users: int) -> Row:
    def run(setting: Setting) -> dict[str, Any]:
        m = models(setting, (users, *MILLION[1:]))
        few, f = m.few(), m.teacher
        k = min(BEST, f.n_items)
        for mine, theirs in zip(bd.topk(f, k), bd.topk(few.teacher, k, backend="cpu"), strict=True):
            all_in(mine[:CHECKED], theirs, "topk")
        d, listed = f.user_factors.shape[1], f.user_factors.shape[0] * k
        work = Work(m.pairs, 2 * m.pairs * d, 4 * d * (f.n_items + f.user_factors.shape[0]) + 12 * listed)
        return timed(setting, lambda: bd.topk(f, k), work, model=f"topk {users}")

    return run


def steps(setting: Setting) -> tuple[Callable[[], Tensor], Work]:
    """A call that trains on the next batch, checked on the first one against the C++ backend."""
    tables, batches = training(setting)
    optimizer = bd.SparseAdam([t.clone() for t in tables], lr=LR)
    theirs = bd.SparseAdam([t.cpu() for t in tables], lr=LR)
    first = batches[0]
    pair = bd.fused_step(optimizer, *first), bd.fused_step(theirs, *first.to("cpu"), backend="cpu")
    torch.testing.assert_close(pair[0].loss.cpu(), pair[1].loss, rtol=1e-4, atol=1e-5)
    for mine, other in ((optimizer.user_table, theirs.user_table), (optimizer.item_table, theirs.item_table)):
        apart = (mine.cpu() - other).abs() > LR / 100  # a gradient next to 0 may differ in sign
        assert apart.sum() <= 1e-3 * first.draws.ids.numel(), "fused_step: other rows than the C++ backend's"
    following = itertools.cycle(batches)
    return lambda: bd.fused_step(optimizer, *next(following)).loss, step_work(first, tables[0].shape[1])


def step_work(batch: Batch, d: int) -> Work:
    """Rows are read for the scores, and read and written by the update, with two moments."""
    listed = batch.positives.numel() + batch.negatives.numel() + batch.draws.ids.numel()
    return Work(listed, 6 * listed * d, 7 * 4 * d * (listed + batch.users.numel()))


def step(setting: Setting) -> dict[str, Any]:
    call, work = steps(setting)
    return timed(setting, call, work, calls=IN_A_ROW, model="step")


def sample_graph(setting: Setting) -> dict[str, Any]:
    """A replay draws for the seed and the step that its tensors say."""
    m = models(setting, PAPER)
    work = checked_draws(m)
    graph = assert_reads(lambda seed, step: draws(m, seed=seed, step=step), setting.device, [(0, 0), (0, 5), (7, 5)])
    return timed(setting, graph.replay, work)


def step_graph(setting: Setting) -> dict[str, Any]:
    """Replays train as as many calls do: the count of steps is on the device, and the bias correction with it."""
    tables, batches = training(setting)
    replayed = bd.SparseAdam([t.clone() for t in tables], lr=LR, capturable=True)
    called = bd.SparseAdam(tables, lr=LR)
    graph = captured(lambda: (bd.fused_step(replayed, *batches[0]).loss,), setting.device)
    graph.replay()
    for _ in range(2):  # the call before the capture trained too, and the capture did not
        bd.fused_step(called, *batches[0])
    for mine, theirs in ((replayed.user_table, called.user_table), (replayed.item_table, called.item_table)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=LR / 100)
    return timed(setting, graph.replay, step_work(batches[0], tables[0].shape[1]), calls=IN_A_ROW)


def epoch(setting: Setting) -> dict[str, Any]:
    """Of the trainer, both models, with fresh draws; its losses are those of the C++ backend's epoch."""
    from phases.epoch import run

    return run(setting)


ROWS: dict[str, Row] = {
    "rank 64": rank(64),
    "rank 256": rank(256),
    "rank 512": rank(512),
    "product alone": product,
    "search alone 64": search(64),
    "search alone 256": search(256),
    "sample 1,024 x 1M": sample(MILLION, "sample 1M"),
    "sample (a)": sample(PAPER, "sample a"),
    "sample (a), k = 8": sample(PAPER, "sample a, k = 8", 8),
    "sample (a), k = 1": sample(PAPER, "sample a, k = 1", 1),
    "topk 64 users": topk(64),
    "topk 1,024 users": topk(1024),
    "step": step,
    "sample (a), graph": sample_graph,
    "step, graph": step_graph,
    "epoch of the trainer": epoch,
}
