"""What the processes of test_distributed.py run, told in FOLDER/RANK.json: `python shards.py WORLD FOLDER` forks them."""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
import torch.distributed as dist
from draws import numbered

import bdkernels as bd
from bdkernels.backends import choice, cpu
from bdkernels.distributed import ShardedCatalog, ShardError
from bdkernels.distributed import sampler as lockstep
from bdkernels.distributed.collectives import Exchange
from bdkernels.sampling import sampler, subset

N, USERS = 211, (5, 0, 3, 8)  # users of each process
WORLDS = {  # items of each process
    "one": [211],
    "two": [200, 11],
    "two, one of them empty": [0, 211],
    "three, one of them empty": [100, 0, 111],
    "four": [70, 1, 100, 40],
}


class World:
    """The processes of a group, how the items lie on them, and the users of each."""

    def __init__(self, group, items: list[int]) -> None:
        self.group, self.items, self.size, self.place = group, items, len(items), dist.get_rank(group)
        self.rng = np.random.default_rng(7)
        self.shards = ShardedCatalog(self.items[self.place], group=group)
        self.users = slice(sum(USERS[: self.place]), sum(USERS[: self.place + 1]))
        self.n_users = sum(USERS[: self.size])

    def own(self, f: bd.Factors) -> bd.Factors:
        """This process's users and items."""
        bias = None if f.item_bias is None else f.item_bias[self.shards.slice]
        return bd.Factors(f.user_factors[self.users], f.item_factors[self.shards.slice], bias)

    def rows(self, seen: bd.Seen | None) -> bd.Seen | None:
        return None if seen is None else seen.rows(torch.arange(self.n_users)[self.users])

    def factors(self, kind: str, n: int = N, d: int = 5) -> bd.Factors:
        f = oracle.factors(self.rng, self.n_users, n, d)
        if kind == "no bias":
            return f._replace(item_bias=None)
        if kind == "ties":
            return f._replace(item_factors=f.item_factors[:1].expand(n, -1), item_bias=f.item_bias.sign())
        if kind == "zeros":  # half of the scores are -0.0, and some infinite
            bias = torch.where(torch.arange(n) % 2 > 0, -0.0, 0.0)
            bias[::19], bias[7::19] = torch.inf, -torch.inf
            return bd.Factors(f.user_factors * 0 - 0.0, f.item_factors[:, :5].abs(), bias)
        if kind in ("float16", "bfloat16"):
            return bd.Factors(*(t.to(getattr(torch, kind)) for t in f))
        return bd.Factors(*(t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(3)) for t in f))

    def seen(self) -> bd.Seen:
        rows = [self.rng.choice(N, int(n), replace=False) for n in self.rng.integers(0, 60, self.n_users)]
        rows[0], rows[-1] = rows[0][:0], np.arange(N)  # nothing, and all there is
        return oracle.seen_of(rows)


KINDS = ("normal", "no bias", "ties", "zeros", "float16", "bfloat16")
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (ours.dtype, ours.shape, theirs.shape)
    if ours.dtype == torch.float32:  # bits: -0.0 is another
        ours, theirs = ours.contiguous().view(torch.int32), theirs.contiguous().view(torch.int32)
    assert torch.equal(ours, theirs), (ours, theirs)


@contextmanager
def raises(kind: type, *texts: str):
    with pytest.raises(kind) as found:
        yield
    assert all(text in str(found.value) for text in texts), str(found.value)


@check
def offsets(w: World) -> None:
    assert w.shards.offsets == [sum(w.items[:i]) for i in range(w.size + 1)] and w.shards.n_items == N
    assert (w.shards.group_rank, w.shards.world) == (w.place, w.size)


@check
def score_rank_topk(w: World) -> None:
    for kind in KINDS:
        f, seen = w.factors(kind), w.seen()
        ids = torch.from_numpy(w.rng.integers(0, N, (w.n_users, 13)))
        for backend in ("cpu", "reference") if kind in ("normal", "zeros") else ("cpu",):
            same(w.shards.score(w.own(f), ids[w.users], backend=backend), bd.score(f, ids)[w.users])
            for rows in (None, seen):
                ranks = w.shards.rank(w.own(f), ids[w.users], w.rows(rows), backend=backend)
                same(ranks, bd.rank(f, ids, rows)[w.users])
                for k in (1, 12, N):
                    best = w.shards.topk(w.own(f), k, w.rows(rows), backend=backend)
                    for ours, theirs in zip(best, bd.topk(f, k, rows), strict=True):
                        same(ours, theirs[w.users])


@check
def count_above(w: World) -> None:
    for kind in KINDS:
        f, seen = w.factors(kind), w.seen()
        ties = torch.from_numpy(w.rng.integers(-3, N + 3, (w.n_users, 9)))
        ties[:, :2] = torch.tensor([-(2**60), 2**60])
        limits = bd.score(f, ties.clamp(0, N - 1))
        limits[:, -2:] = torch.tensor([torch.inf, -torch.inf])
        ours = w.shards.count_above(w.own(f), limits[w.users], ties[w.users], w.rows(seen))
        same(ours, bd.count_above(f, limits, ties, seen)[w.users])


WEIGHTS = {  # to the student, to the teacher
    "released": (bd.Tanh(), bd.Exp()),
    "flipped": (bd.Tanh(30.0, side="under"), bd.Exp(2.5, side="under")),
    "by eps": (bd.Linear(), bd.Tanh(eps=0.01)),
    "ablations": (bd.RankOnly(mu=40.0), bd.Uniform()),
    "one": (None, bd.Linear(side="under")),
    "peaked": (bd.Exp(500.0), bd.RankOnly(mu=0.5)),  # draws from full rows
    "none": (None, None),
}


def draw(
    w, t: bd.Factors, s: bd.Factors, k: int, seen: bd.Seen | None, weights, ids=None, backend=None, **more
) -> None:
    """Ours are those of one process."""
    ids = torch.arange(w.n_users) * 3 + 2**31 if ids is None else ids
    to = dict(zip(("to_student", "to_teacher"), weights, strict=True)) | {"seed": -5, "step": 9}
    to |= more
    theirs = bd.sample(t, s, k, seen, user_ids=ids, **to)
    own = {name: to[name][w.users] for name in ("occurrence",) if name in to}
    ours = w.shards.sample(w.own(t), w.own(s), k, w.rows(seen), user_ids=ids[w.users], **to | own, backend=backend)
    for mine, whole in zip(ours, theirs, strict=True):
        assert (mine is None) == (whole is None)
        if mine is not None:
            same(mine.ids, whole.ids[w.users])
            same(mine.mask, whole.mask[w.users])


@check
def sample(w: World) -> None:
    for name, weights in WEIGHTS.items():
        draw(w, w.factors("normal"), w.factors("no bias", d=3), 32, w.seen(), weights)
        if name in ("released", "peaked"):
            for kind in ("ties", "zeros", "bfloat16"):
                draw(w, w.factors(kind), w.factors("normal", d=2), 32, None, weights, backend="cpu")


@check
def sample_on_the_reference(w: World) -> None:
    for name in ("released", "peaked"):
        draw(w, w.factors("normal"), w.factors("ties", d=3), 32, w.seen(), WEIGHTS[name], backend="reference")


@check
def sample_with_ranks_from_a_subset(w: World) -> None:
    ids = subset.draw(N, 60, 8, 1)
    for name, catalog in (
        ("released", 1),
        ("released", 40),
        ("peaked", 40),
        ("released", 150),
        ("released", N),
        ("released", ids),
    ):
        draw(w, w.factors("normal"), w.factors("no bias", d=3), 32, w.seen(), WEIGHTS[name], subset=catalog)


@check
def rank_errors(w: World) -> None:
    for kind, rows in (("normal", None), ("ties", w.seen()), ("no bias", w.seen())):
        f, ids = w.factors(kind), torch.from_numpy(w.rng.integers(0, N, (w.n_users, 9)))
        for m in (1, 40, N):
            theirs = bd.rank_errors(f, ids, m, rows, seed=4, step=7)
            same(w.shards.rank_errors(w.own(f), ids[w.users], m, w.rows(rows), seed=4, step=7), theirs[w.users])


@check
def numbers_for_each(w: World) -> None:
    """What is told to one process is heard by that one."""
    exchange = Exchange(w.group)
    told = exchange.tell("numbers", [[10 * w.place + other, -other] for other in range(w.size)])
    assert told == [[10 * other + w.place, -w.place] for other in range(w.size)]
    words = [chr(0x3B1 + place) * place for place in range(w.size)]
    assert exchange.texts("words", words[w.place]) == words


@check
def sample_in_turns(w: World) -> None:
    """More users than fly at once, so that some process has no more while others do; and full rows in turns."""
    before = lockstep.ROWS, sampler.ROW_ELEMENTS
    lockstep.ROWS, sampler.ROW_ELEMENTS = 3, 2 * N
    try:
        seen = w.seen()
        draw(w, w.factors("normal"), w.factors("no bias", d=3), 32, seen, WEIGHTS["released"])
        draw(w, w.factors("normal"), w.factors("no bias", d=3), 32, seen, WEIGHTS["peaked"])
    finally:
        lockstep.ROWS, sampler.ROW_ELEMENTS = before


@check
def sample_repeated_users(w: World) -> None:
    """Numbered over the whole batch; and directions of their own."""
    repeated = torch.arange(w.n_users) % 5
    for weights in (WEIGHTS["released"], WEIGHTS["peaked"]):
        for catalog in (None, 60):
            more = {"occurrence": bd.occurrence(repeated), "independent_directions": True, "subset": catalog}
            draw(w, w.factors("normal"), w.factors("no bias", d=3), 12, w.seen(), weights, ids=repeated, **more)


@check
def nothing_asked(w: World) -> None:
    f = w.own(w.factors("normal"))
    none = f.user_factors.new_empty(len(f.user_factors), 0)
    assert w.shards.rank(f, none.long()).shape == w.shards.score(f, none.long()).shape == none.shape
    nobody = f._replace(user_factors=f.user_factors[:0])
    assert w.shards.rank(nobody, torch.empty(0, 4, dtype=torch.int64)).shape == (0, 4)
    assert w.shards.topk(nobody, 3).ids.shape == (0, 3)


@check
def seen_on_one_process_alone(w: World) -> None:
    f, seen, last = w.factors("normal"), w.seen(), w.size - 1
    ids = torch.arange(w.n_users)[:, None]
    mine = w.shards.rank(w.own(f), ids[w.users], w.rows(seen) if w.place == last else None)
    same(mine, bd.rank(f, ids, seen if w.place == last else None)[w.users])


@check
def same_users_everywhere(w: World) -> None:
    f, ids = w.factors("normal"), torch.arange(w.n_users)[:, None]
    same(w.shards.rank(w.own(f)._replace(user_factors=f.user_factors), ids), bd.rank(f, ids))


@check
def a_backend_for_gpus_alone(w: World) -> None:
    """As with NCCL: agreements, and what lies on the CPU, go through a gloo group of their own."""
    there = dist.get_backend_config
    dist.get_backend_config = lambda group: "cuda:nccl"
    try:
        if w.group is not None:
            with raises(ValueError, "group: expected a backend for CPUs too"):
                ShardedCatalog(w.items[w.place], group=w.group)
            return
        shards = ShardedCatalog(w.items[w.place])
    finally:
        dist.get_backend_config = there
    assert shards._exchange._control is not shards._exchange.group
    f = w.factors("normal")
    same(shards.topk(w.own(f), 9).ids, bd.topk(f, 9).ids[w.users])


@check
def traffic(w: World) -> None:
    """The same for 8 times the items, and as low as the formula says."""
    sent, c, d, k = [], 11, 5, 10
    uniform = {"to_student": bd.Uniform(), "to_teacher": None, "seed": 1}  # takes all proposals: one round, whatever N
    for n in (240, 8 * 240):
        shards = ShardedCatalog(n // w.size, group=w.group)
        f = bd.Factors(torch.randn(w.n_users, d)[w.users], torch.randn(n // w.size, d))
        b, ids = len(f.user_factors), torch.zeros(len(f.user_factors), c, dtype=torch.int64)
        seen = bd.Seen(torch.arange(b + 1) * 2, torch.tensor([3, n - 1] * b, dtype=torch.int64))
        before = shards.traffic
        shards.rank(f, ids, seen)
        ranked = shards.traffic
        shards.topk(f, k, seen)
        best = shards.traffic
        shards.sample(f, f, 4, seen, **uniform, **numbered(f))
        sent.append((ranked - before, best - ranked, shards.traffic - best))
    assert sent[0] == sent[1], sent
    agreed, seen_ids, most = 48 * w.size, 4 * 2 * b + 4 * b * w.size, max(USERS[: w.size])
    # users and ids to everyone, from each as many as from the one with the most; a sum of scores, and counts of everyone's users
    rank = 2 * agreed + seen_ids + w.size * most * (4 * d + 4 * c) + w.n_users * (2 * 4 * c + 4 * c)
    assert sent[0][:2] == (rank, 2 * agreed + seen_ids + w.size * most * 4 * d + w.n_users * 8 * k), (sent[0], rank)
    draws = 5 * agreed + seen_ids + w.size * most * (2 * 4 * d + 4 * 33) + w.n_users * 2 * (2 * 4 + 4) * 32
    assert sent[0][2] == draws, (sent[0][2], draws)


@check
def a_wrong_argument_on_one_process(w: World) -> None:
    f, last = w.own(w.factors("normal")), w.size - 1
    wrong = w.place == last
    who = [] if wrong else [f"rank {last} failed with ValueError"]
    ids = torch.zeros(len(f.user_factors), 2, dtype=torch.int64)
    bad = f._replace(item_factors=f.item_factors[1:] if len(f.item_factors) else torch.zeros(1, 5))
    with raises(ValueError, "item_factors: expected shape", *who):
        w.shards.rank(bad if wrong else f, ids)
    with raises(ValueError, "seen.indptr: expected shape", *who):
        w.shards.topk(f, 3, bd.Seen(torch.zeros(50, dtype=torch.int64), ids[:0, 0]) if wrong else None)
    with raises(ValueError, "k: expected an integer >= 1 and <= 211, got 0", *who):
        w.shards.topk(f, 0 if wrong else 3)
    with raises(TypeError if wrong else ValueError, "ids: expected Tensor, got list"):
        w.shards.score(f, [[1]] if wrong else ids)
    with raises(bd.BackendError if wrong else ShardError, "backend: expected one of"):
        w.shards.score(f, ids, backend="abacus" if wrong else None)
    with raises(TypeError if wrong else ValueError, "user_ids: expected Tensor, got list"):
        w.shards.sample(f, f, 3, **numbered(f) | ({"user_ids": [1]} if wrong else {}))
    with raises(TypeError if wrong else ValueError, "teacher: expected Factors, got NoneType"):
        w.shards.sample(None if wrong else f, f, 3, **numbered(f))
    with raises(ValueError, "n_local: expected an integer >= 0", *who):
        ShardedCatalog(-1 if wrong else 5, group=w.group)
    w.shards.rank(f, ids)  # and all go on


@check
def bad_ids_and_nan_on_one_process(w: World) -> None:
    f = w.factors("normal")
    f.user_factors[0], f.item_factors[77] = 0.0, torch.nan
    own, ids = w.own(f), torch.zeros(len(w.own(f).user_factors), 2, dtype=torch.int64)
    for call in (lambda: w.shards.rank(own, ids), lambda: w.shards.topk(own, 2), lambda: w.shards.score(own, ids + 77)):
        with raises(ValueError, "expected finite scores, got NaN for user row 0 of rank 0, item 77"):
            call()
    for odd, even, catalog in ((own, w.own(w.factors("normal")), None), (own, own, 200)):
        with raises(ValueError, "teacher: expected finite scores, got NaN for user row 0 of rank 0, item 77"):
            w.shards.sample(odd, even, 3, subset=catalog, **numbered(odd, step=1))
        with raises(ValueError, "expected finite scores, got NaN for user row 0 of rank 0, item 77"):
            w.shards.sample(even, odd, 3, to_student=bd.Exp(500.0), subset=catalog, **numbered(odd, step=1))
    same(w.shards.score(own, ids + 76), bd.score(f, torch.full((w.n_users, 2), 76))[w.users])
    if w.place == 0:
        ids[0, 0] = N
    with raises(ValueError, f"ids: expected ids in [0, {N})"):
        w.shards.score(own, ids)
    limits = torch.full(ids.shape, torch.nan if w.place == 0 else 0.0)
    with raises(ValueError, "thresholds: expected no NaN"):
        w.shards.count_above(w.own(w.factors("normal")), limits, ids)


@check
def processes_that_differ(w: World) -> None:
    if w.size == 1:
        return
    f, odd = w.own(w.factors("normal")), w.place == 1
    ids = torch.zeros(len(f.user_factors), 2 + odd, dtype=torch.int64)
    narrow, half = (
        bd.Factors(f.user_factors[:, 1:], f.item_factors[:, 1:], f.item_bias),
        bd.Factors(*(t.half() for t in f)),
    )
    with raises(ValueError, "rank: C: expected the same on every process, got 2 on rank 0 and 3 on rank 1"):
        w.shards.rank(f, ids)
    with raises(ValueError, "k: expected the same on every process, got 4 on rank 0 and 5 on rank 1"):
        w.shards.topk(f, 4 + odd)
    with raises(ValueError, "d: expected the same on every process, got 5 on rank 0 and 4 on rank 1"):
        w.shards.topk(narrow if odd else f, 4)
    with raises(ValueError, "dtype: expected the same", "torch.float32 on rank 0 and torch.float16 on rank 1"):
        w.shards.topk(half if odd else f, 4)
    with raises(ValueError, "item_bias: expected the same", "given on rank 0 and none on rank 1"):
        w.shards.topk(f._replace(item_bias=None) if odd else f, 4)
    with raises(ValueError, "operation: expected the same", "topk on rank 0 and rank on rank 1"):
        w.shards.rank(f, ids) if odd else w.shards.topk(f, 4)
    for name, value, other in (
        ("seed", 3, 4),
        ("step", 3, 4),
        ("subset", 20, None),
        ("to_student", bd.Exp(1.0), bd.Exp(1.5)),
        ("to_teacher", bd.Linear(), bd.Linear(side="under")),
    ):
        with raises(ValueError, f"sample: {name}: expected the same on every process"):
            w.shards.sample(f, f, 3, **numbered(f) | {name: other if odd else value})
    w.shards.topk(f, 4)


def run(rank: int, world: int, found: dict[str, str]) -> None:
    """Every check in every world: the first processes, as groups of their own, and all. Ends with the first that fails: whoever
    is still in it can only wait."""
    groups = [dist.new_group(range(size)) for size in range(1, world)] + [None]
    for name, items in WORLDS.items():
        w = World(groups[len(items) - 1], items) if rank < len(items) else None
        for function in CHECKS if w else ():
            torch.manual_seed(0)
            attempt(f"{function.__name__}: {name}", found, lambda f=function, w=w: f(w))
        dist.barrier()


def attempt(name: str, found: dict[str, str], check) -> None:
    """Whether it failed, and how, is written down; "" if not."""
    try:
        check()
        found[name] = ""
    except BaseException:
        found[name] = traceback.format_exc()
        finish(found)


def finish(found: dict[str, str]) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # a group that lost a process cannot be taken down


def lose(rank: int, found: dict[str, str]) -> None:
    """Process 3 takes no part in a call, and process 1 is killed in the middle of one; 0 and 2 must say so."""
    losses = {"absent": (3, 2), "killed": (1, 20)}  # who, and the time-out
    groups = {way: dist.new_group([0, lost, 2], timedelta(seconds=s)) for way, (lost, s) in losses.items()}
    for way, (lost, _) in losses.items():
        if rank not in (0, lost, 2):
            continue
        shards = ShardedCatalog(30, group=groups[way])
        f = bd.Factors(torch.randn(4, 3), torch.randn(30, 3))
        shards.topk(f, 5)
        if rank != lost:
            attempt(way, found, lambda shards=shards, f=f, lost=lost: said(shards, f, lost))
        elif way == "absent":
            time.sleep(8)  # there, for longer than the time-out and the roll call
        else:
            stages = cpu.STEPS._replace(topk=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            choice.BACKENDS["cpu"] = replace(cpu.BACKEND, stages=stages)
            shards.topk(f, 5)


def forked(world: int) -> int:
    """The rank of this process: a new one, which has not had to import torch. The old one ends here, after all of them."""
    for rank in range(world):
        if os.fork() == 0:
            return rank
    for _ in range(world):
        os.wait()
    sys.exit()


def said(shards: ShardedCatalog, f: bd.Factors, lost: int) -> None:
    with raises(ShardError, "topk: failed on rank", f"rank {lost} did not answer"):
        shards.topk(f, 5)
    with raises(ShardError, "topk: failed on rank"):
        shards.rank(f, torch.zeros(4, 1, dtype=torch.int64))


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), Path(sys.argv[2])
    rank = forked(world)
    torch.set_num_threads(1)
    store, wait = f"file://{folder / 'store'}", timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=wait)
    found: dict[str, str] = {}
    run(rank, world, found)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    lose(rank, found)
    finish(found)
