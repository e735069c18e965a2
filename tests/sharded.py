"""What the processes of test_sharded_training.py run, told in FOLDER/RANK.json: `python sharded.py WORLD FOLDER` forks them.

Under torchrun, `sharded.py command ARGUMENTS`: a command line of bidistill, of which one process is killed the first time.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from bidistill import LOSSES, MF, Config, Split, Trainer, UserError, cli, evaluate, generate, register_model, split
from bidistill.data.generator import write_generator
from bidistill.distill import distiller
from bidistill.distributed.processes import Processes, restarted, using
from bidistill.models.generator import Generator
from bidistill.runs.checkpoint import load_model
from bidistill.training import trainer
from bidistill.training.callbacks import Callback
from bidistill.training.phases import Progress
from runs import timeless
from shards import forked
from torch.nn.functional import softplus

from bdkernels.distributed import ShardError
from bdkernels.distributed.collectives import Exchange

LOSSES.register(
    "margin", lambda positive, negatives, mask: (softplus(1 + negatives - positive[:, None]) * mask).sum(1).mean()
)
distiller.CHUNK = 7  # users drawn for in a call: several turns, and not as many on each process

BASE = {
    "teacher.dim": 6,
    "student.dim": 3,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "teacher.optimizer": "sparse_adam",
    "student.optimizer": "adagrad",
    "train.batch_size": 64,
    "train.pretrain_epochs": 1,
    "train.epochs": 2,
    "train.negatives": 3,
    "eval.ks": (3, 5),
    "eval.batch_size": 9,
    "train.monitor": "ndcg@5",
    "run.progress": False,
    "distill.pool": 6,
    "distill.samples": 2,
}
VARIANTS = {
    "usual": {},
    "bpr, gradual": {
        "distill.pool_top": 2,
        "distill.pool_uniform": 3,
        "train.loss": "bpr",
        "distill.resample": "gradual",
        "distill.resample_every": 2,
        "teacher.weight_decay": 1e-2,
        "student.weight_decay": 1e-3,
        "teacher.lr_scheduler": "ReduceLROnPlateau",
        "teacher.lr_scheduler_args": {"patience": 0, "factor": 0.5},
        "student.lr_scheduler": "cosine",
    },
    "sgd, drawn at every step": {
        "teacher.optimizer": "sgd",
        "student.optimizer": "sgd",
        "distill.resample_every": 0,
        "train.epochs": 1,
    },
    "estimated ranks": {"distill.subset": 20, "distill.lambda_teacher": 0.0, "eval.users": 11},
    "negatives from samples": {"distill.negatives_from_samples": True},
    "no distillation, a loss from outside": {
        "distill.method": "none",
        "student.optimizer": "sparse_adam",
        "train.loss": "margin",
    },
    "softmax, listwise": {"train.loss": "softmax", "distill.loss": "listwise", "distill.lambda_teacher": 0.5},
    "softmax, listwise, eager": {
        "train.loss": "softmax",
        "distill.loss": "listwise",
        "distill.negatives_from_samples": True,
    },
    "tiny": {"train.batch_size": 4, "train.negatives": 1, "eval.ks": (2, 5), "eval.batch_size": 2},
}
RUNS = [  # which of them are trained on how many processes
    (1, "usual"),
    (2, "sgd, drawn at every step"),
    (3, "bpr, gradual"),
    (4, "estimated ranks"),
    (4, "negatives from samples"),
    (4, "no distillation, a loss from outside"),
    (3, "softmax, listwise"),
    (4, "softmax, listwise, eager"),
    (4, "tiny"),
]


def data(variant: str = "usual") -> Split:
    """Users and items that 2, 3 and 4 do not divide; "tiny": 5 items, of which the fourth process has none."""
    if variant == "tiny":
        users, items = np.arange(13), np.stack([np.random.default_rng(user).permutation(5) for user in range(13)])
        parts = {
            "train": (users.repeat(2), items[:, :2].flatten()),
            "val": (users, items[:, 2]),
            "test": (users, items[:, 3]),
        }
        return Split.of(parts, users, np.arange(5))
    interactions, _, _ = generate(53, 71, 450, dim=3, seed=1)
    return split(interactions, "leave_one", seed=1)


def settings(variant: str, **more) -> Config:
    return Config().with_overrides(BASE | VARIANTS[variant] | {k.replace("__", "."): v for k, v in more.items()})


class Steps(Callback):
    """Calls a function when so many steps are done."""

    def __init__(self, steps, call):
        self.left, self.call = steps, call

    def on_step(self, trainer):
        self.left -= 1
        if self.left == 0:
            self.call()


def same(history, metrics, one) -> None:
    """As on one process, but for rounding: sums are taken in another order, and SparseAdam divides a gradient by its own size, so
    that the sign of a tiny one, which is rounding alone, moves a row by up to lr; after few steps of few rows 1e-3 holds. A rank
    that two nearly equal scores decide moves a mean over 53 users (11, 13) by less than 0.02.
    """
    assert len(history) == len(one["history"])
    for ours, theirs in zip(timeless(history), timeless(one["history"]), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            close = {"rel": 1e-4} if "loss" in name else {"abs": 0.02}
            assert ours[name] == (value if isinstance(value, str) else pytest.approx(value, **close)), name
    for name, parts in one["metrics"].items():
        for part, values in parts.items():
            assert metrics[name][part] == pytest.approx(values, abs=0.02)


def near(ours, theirs, rows) -> None:
    for p, q, own in zip(ours.parameters(), theirs.parameters(), rows, strict=True):
        torch.testing.assert_close(p, q[own.start : own.stop], rtol=0, atol=1e-3)


class Check:
    """A processes of the first `size` processes."""

    def __init__(self, group, size: int, folder: Path) -> None:
        self.group, self.size, self.folder = group, size, folder
        self.rank = dist.get_rank(group)
        self.exchange = Exchange(group)
        self.results = {}

    def one(self, variant: str):
        """What one process gave: numbers and models."""
        folder = self.folder / "one" / variant
        found = json.loads((folder / "result.json").read_text())
        return found | {name: load_model(folder / f"{name}.safetensors") for name in ("teacher", "student")}

    def run(self, variant: str, **more) -> None:
        """Train, and compare with one process."""
        one = self.one(variant)
        many = Trainer(settings(variant, **more), data(variant))
        result = self.results[variant] = many.fit()
        part = many.partition
        if self.size == 1:
            assert result.metrics == one["metrics"]
        same(result.history, result.metrics, one)
        assert result.baselines == one["baselines"]
        for name in ("teacher", "student"):
            near(getattr(result, name), one[name], (part.users, part.items, part.items))
        assert variant != "tiny" or self.rank < 3 or not part.items


CHECKS = []


def check(sizes):
    def add(function):
        CHECKS.append((sizes, function))
        return function

    return add


@contextmanager
def raises(kind: type, *texts: str):
    with pytest.raises(kind) as found:
        yield
    assert all(text in str(found.value) for text in texts), str(found.value)


@check([2, 3, 4])
def first_step(c: Check) -> None:
    """Initial values, pool, negatives, places in the pool and the guides' scores: the bits of one process."""
    for loss in ("bce", "bpr"):
        config = settings("usual", train__loss=loss)
        with using(Processes()):
            one = Trainer(config, data())
        many = Trainer(config, data())
        batches = []
        for each in (one, many):
            objective = each.engine.objective
            objective.resample(0, 9)
            generator = torch.Generator().manual_seed(5)
            pairs = each.engine.users[:64], each.engine.items[:64]
            batches.append(objective.batches(("teacher", "student"), *pairs, 0, generator, joint=True))
        users = many.partition.users
        pools = [each.engine.objective.distiller.pool for each in (one, many)]
        assert torch.equal(pools[1], pools[0][users.start : users.stop]) and (pools[0] >= 0).all()
        rows = many.partition.share(one.engine.users[:64]).rows
        for name in batches[0]:
            whole, (own, item_rows) = (found[name] for found in batches)
            ids = item_rows._fetched.ids
            assert torch.equal(ids[own.positives], whole.positives[rows])
            for ours, theirs in ((own.negatives, whole.negatives), (own.distill, whole.distill)):
                assert torch.equal(ids[ours.ids], theirs.ids[rows])
            assert torch.equal(own.guide_scores, whole.guide_scores[rows])
            for p, q in zip(
                many.engine.learners[name].model.parameters(), one.engine.learners[name].model.parameters(), strict=True
            ):
                part = users if len(q) == one.partition.n_users else many.partition.items
                assert torch.equal(p, q[part.start : part.stop])


@check([4])
def traffic(c: Check) -> None:
    """Of a step of both models: what the formula says at most, and no more for 8 times the items."""
    sent = []
    for n in (2_000, 16_000):
        rng = np.random.default_rng(0)
        pairs = np.repeat(np.arange(40), 30), np.concatenate([rng.choice(n, 30, replace=False) for _ in range(40)])
        held = np.arange(40), rng.integers(0, n, 40)
        parts = Split.of({"train": pairs, "val": held, "test": held}, np.arange(40), np.arange(n))
        trainer = Trainer(settings("usual", train__batch_size=256), parts)
        trainer.progress = Progress("joint")
        trainer.engine.objective.resample(0, 5)
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(1))[:256]
        before = c.exchange.traffic
        trainer.step(trainer.engine.users[order], trainer.engine.items[order], 0)
        sent.append(torch.tensor([c.exchange.traffic - before, 0]))
    totals = [sum(c.exchange.gather(each[None], [1] * c.size)[:, 0].tolist()) for each in sent]
    listed = 256 * (
        1 + 3 + 2 * 2
    )  # positives, negatives, two distilled items for each model: at most so many distinct ones
    d = 6 + 1 + 3 + 1
    most = listed * (8 + 2 * 4 * d) + 16 * c.size**2 * 8
    assert totals[1] < most and totals[1] < 1.15 * totals[0], (totals, most)


@check([3])
def what_differs_is_named(c: Check) -> None:
    """On every process, before anything is written."""
    odd, out = c.rank == 1, str(c.folder / "never")
    interactions, _, _ = generate(53, 71, 450, dim=3, seed=2)
    other = split(interactions, "leave_one", seed=1)
    with raises(UserError, "start: split: expected the same on every process", "on rank 0", "on rank 1"):
        Trainer(settings("usual", run__out=out), other if odd else data())
    with raises(UserError, "teacher.lr: expected the same", "0.02 on rank 0 and 0.5 on rank 1"):
        Trainer(settings("usual", run__out=out, teacher__lr=0.5 if odd else 0.02), data())
    with raises(
        UserError, "student.optimizer works on one process only (the optimizer 'adam'", "choose one of adagrad, sgd"
    ):
        Trainer(settings("usual", run__out=out, student__optimizer="adam"), data())
    with raises(UserError, "teacher.clip_norm works on one process only", "set it to 0"):
        Trainer(settings("usual", run__out=out, teacher__clip_norm=1.0), data())
    with raises(UserError, "the teacher is a module that a program gives", "train without torchrun"):
        Trainer(settings("usual", run__out=out), data(), teacher=MF(53, 71, 6, sparse=True))
    register_model("whole", lambda n_users, n_items, seed: MF(n_users, n_items, 4, sparse=True))
    with raises(UserError, "eval.baselines has ease, which works on one process only", "leave it out"):
        Trainer(settings("usual", run__out=out, eval__baselines=("popularity", "ease")), data())
    with raises(UserError, "eval.metrics has coverage, which is counted over all users on one process only", "ask"):
        Trainer(settings("usual", run__out=out, eval__metrics=("coverage",)), data())
    with raises(UserError, "the teacher Popularity is fitted on one process only"):
        Trainer(settings("usual", run__out=out, teacher__kind="popularity", distill__lambda_teacher=0.0), data())
    with raises(UserError, "the student has the kind 'whole'", "cannot be divided among several processes"):
        Trainer(settings("usual", run__out=out, student__kind="whole"), data())
    with raises(UserError, "cannot" if c.rank == 0 else "rank 0 failed with UserError: "):
        Trainer(settings("usual", run__out="/dev/null/run"), data()).fit()
    with raises(UserError, "diverged"):
        Trainer(settings("usual", teacher__lr=1e30, train__pretrain_epochs=0), data()).fit()
    assert not Path(out).exists()


@check([3])
def the_generating_model_is_evaluated(c: Check) -> None:
    """Each process with its rows of it."""
    path = c.folder / "made.generator.safetensors"
    _, users, items = generate(53, 71, 450, dim=3, seed=1)
    if c.rank == 0:
        write_generator(path, users, items)
    dist.barrier(c.group)
    found = Trainer(settings("usual", eval__generator=str(path), train__epochs=0), data()).fit().baselines["generator"]
    model = Generator(torch.from_numpy(users), torch.from_numpy(items))
    assert found == {part: evaluate(model, data(), part, (3, 5)) for part in ("val", "test")}


@check([3])
def checkpoints_go_to_any_number_of_processes(c: Check) -> None:
    """Stopped in the middle of an epoch by one process: all stop at the same step, and go on."""
    out = c.folder / "stopped"
    config = settings("bpr, gradual", run__out=str(out))
    whole = c.results["bpr, gradual"]
    stop = [Steps(15, lambda: os.kill(os.getpid(), signal.SIGINT))] if c.rank == 1 else []
    stopped = Trainer(config, data(), callbacks=stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert stopped.progress.step and c.exchange.agree("progress", stopped.progress.step) == [stopped.progress.step] * 3
    if c.rank == 0:
        for name in ("stopped three", "stopped for one"):
            shutil.copytree(out, c.folder / name)
    c.exchange.agree("copied")
    with raises(UserError, "holds a run already" if c.rank == 0 else "rank 0 failed with UserError"):
        Trainer(config, data()).fit()
    with raises(UserError, "one process only"):
        Trainer.resume(out, grow=True)
    again = Trainer.resume(out)
    result = again.fit()
    for name in ("teacher", "student"):
        pairs = zip(getattr(result, name).parameters(), getattr(whole, name).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
    assert result.metrics == whole.metrics and timeless(result.history) == timeless(whole.history)
    assert not list((out / "checkpoint").glob("tensors-*")) and len(list((out / "checkpoint").glob("shards-*"))) == 1
    if c.rank == 0:
        assert list(out.glob("*.safetensors"))
        for name in ("teacher", "student"):  # the files hold the whole tables
            saved = load_model(out / f"{name}.safetensors")
            assert saved.item_factors.weight.shape[0] == 71  # type: ignore[attr-defined]
            near(getattr(result, name), saved, (again.partition.users, again.partition.items, again.partition.items))


@check([2])
def checkpoints_of_others(c: Check) -> None:
    """Of one process, which had the state of torch.optim, and of three."""
    for name, variant in (("an epoch of one", "negatives from samples"), ("stopped three", "bpr, gradual")):
        resumed = Trainer.resume(c.folder / name, config=settings(variant))
        result, one = resumed.fit(), c.one(variant)
        same(result.history, result.metrics, one)
        rows = resumed.partition.users, resumed.partition.items, resumed.partition.items
        for model in ("teacher", "student"):
            near(getattr(result, model), one[model], rows)
    out = str(c.folder / "an epoch of two")
    Trainer(settings("negatives from samples", run__out=out, train__epochs=1), data()).fit()


@check([2])
def undisturbed(c: Check) -> None:
    """What test_a_killed_process_under_torchrun has to come to."""
    c.run("usual", run__out=str(c.folder / "calm"), run__checkpoint_steps=3)


@check([3])
def one_process_asks_to_stop(c: Check) -> None:
    """All stop after the same step."""
    trainers: list[Trainer] = []
    ask = [Steps(10, lambda: trainers[0].stop("enough"))] if c.rank == 1 else []
    trainers.append(Trainer(settings("usual", train__epochs=9), data(), callbacks=ask))
    result = trainers[0].fit()
    assert result.stopped == ("enough" if c.rank == 1 else "a callback asked for it elsewhere")
    rows = [(row["phase"], row["epoch"]) for row in result.history]
    assert c.exchange.agree("rows", len(rows)) == [len(rows)] * 3
    assert rows == [("pretrain_teacher", 0), ("pretrain_teacher", 1), ("pretrain_student", 0), ("joint", 0)]


@check([2])
def a_callback_sets_the_rate(c: Check) -> None:
    """As if the settings had said so."""

    class Rate(Callback):
        def on_phase(self, run, phase, epochs, steps):
            for name in ("teacher", "student"):
                run.set_lr(name, 0.001)

    results = [
        Trainer(settings("usual", train__epochs=1, **rates), data(), callbacks=callbacks).fit()
        for rates, callbacks in (({}, [Rate()]), ({"teacher__lr": 0.001, "student__lr": 0.001}, []))
    ]
    for name in ("teacher", "student"):
        pairs = zip(*(getattr(result, name).parameters() for result in results), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


@check([2])
def a_damaged_shard_is_found(c: Check) -> None:
    folder = c.folder / "stopped two"
    stopped = Trainer(settings("usual", run__out=str(folder), train__pretrain_epochs=0, train__epochs=1), data())
    stopped.fit()
    if c.rank == 0:
        path = max((folder / "checkpoint").glob("shards-*/*"))
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    c.exchange.agree("damaged")
    with raises(UserError, "is damaged (its checksum is not the one in state.json)"):
        Trainer.resume(folder)


def run(rank: int, processes: int, folder: Path, errors: dict[str, str]) -> None:
    groups = {size: dist.new_group(range(size)) for size in range(1, processes + 1)}
    worlds = {size: Check(group, size, folder) for size, group in groups.items() if rank < size}
    checks = [(size, f"{size}: {variant}", lambda c, v=variant: c.run(v)) for size, variant in RUNS]
    checks += [(size, f"{size}: {f.__name__}", f) for sizes, f in CHECKS for size in sizes]
    for size, name, function in checks:
        if rank < size:
            c = worlds[size]
            began = time.monotonic()
            try:
                with using(Processes(c.exchange)):
                    function(c)
            except BaseException:
                errors[name] = traceback.format_exc()
            if rank == 0 and "TIMES" in os.environ:
                print(f"{name} {time.monotonic() - began:.1f}", file=sys.stderr)
        dist.barrier()


def lose(rank: int) -> str:
    """One process is killed in the middle of a step: the others say which, and none waits for ever. "" if so."""
    kill = [Steps(3, lambda: os.kill(os.getpid(), signal.SIGKILL))] if rank == 1 else []
    try:
        with raises(ShardError, "failed on rank", "rank 1 did not answer"):
            Trainer(settings("usual"), data(), callbacks=kill).fit()
    except BaseException:
        return traceback.format_exc()
    return ""


def command(arguments: list[str]) -> int:
    """The command line, of which one process is killed in the joint phase unless it was restarted."""

    class Kill(Callback):
        def on_step(self, of):
            if (of.progress.phase, of.progress.epoch, of.progress.step) == ("joint", 1, 5):
                os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1" and not restarted():
        fit = Trainer.fit

        def killed(self):
            self.callbacks.append(Kill())
            return fit(self)

        trainer.Trainer.fit = killed
    return cli.main(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a script ignore it
    if sys.argv[1] == "command":
        torch.set_num_threads(1)
        sys.exit(command(sys.argv[2:]))
    import torch._dynamo  # which the first optimizer would import, in every process

    processes, folder = int(sys.argv[1]), Path(sys.argv[2])
    rank = forked(processes)
    torch.set_num_threads(1)
    store, wait = f"file://{folder / 'store'}", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=wait)
    errors: dict[str, str] = {}
    run(rank, processes, folder, errors)
    (folder / f"{rank}.json").write_text(json.dumps(errors))
    (folder / f"{rank} lost.json").write_text(json.dumps(lose(rank)))
    os._exit(0)  # a group that lost a process cannot be taken down
