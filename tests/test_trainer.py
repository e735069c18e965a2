"""The training loop: it learns, repeats itself, resumes bit for bit after a kill, and says what it will not do."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bidistill import MF, Config, Split, Trainer, UserError, evaluate, generate, split
from bidistill.distill import distiller
from bidistill.logs import shown_in_terminal
from bidistill.registry import MODELS
from bidistill.runs.checkpoint import load_model, save_model
from bidistill.training.callbacks import Callback
from bidistill.training.updates import FusedUpdate
from runs import StopAfter, same, timeless

import bdkernels

pytestmark = pytest.mark.usefixtures("heard_signals")

BASE = {
    "teacher.dim": 8,
    "student.dim": 2,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.pretrain_epochs": 2,
    "train.epochs": 3,
    "eval.ks": (5, 10),
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.resample_every": 0,
}
VARIANTS = {
    "default": {},
    "pool": {"distill.resample_every": 2, "distill.pool": 7, "distill.samples": 2},
    "gradual": {"distill.resample_every": 2, "distill.pool": 7, "distill.resample": "gradual"},
    "paper-like": {"distill.resample_every": 2, "distill.pool": 5, "distill.negatives_from_samples": True},
    "none": {"distill.method": "none"},
    "one direction": {"distill.lambda_teacher": 0.0, "train.loss": "bpr"},
    "sparse": {"teacher.optimizer": "sparse_adam", "student.optimizer": "adagrad"},
    "full softmax": {"train.loss": "full_softmax", "train.order": "users"},
    "sgd": {"teacher.optimizer": "sgd", "student.weight_decay": 1e-4, "train.eval_every": 2},
}


@pytest.fixture(scope="module")
def parts():
    interactions, _, _ = generate(60, 80, 1200, dim=4, seed=1)
    return split(interactions, "leave_one", seed=1)


@pytest.fixture(scope="module", autouse=True)
def _few_users_a_turn():
    """So that "gradual" is in the middle of a resampling wherever a run is stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distiller, "CHUNK", 13)
        yield


def config(**overrides):
    return Config().with_overrides(BASE | {name.replace("__", "."): value for name, value in overrides.items()})


def variant(name, **overrides):
    return config(**overrides).with_overrides(VARIANTS[name])


def test_it_learns_and_reports(parts, tmp_path):
    result = Trainer(config(run__out=str(tmp_path / "run"), train__pretrain_epochs=8), parts).fit()
    untrained = evaluate(MF(parts.n_users, parts.n_items, 8, seed=3), parts, "val", (10,))
    assert result.metrics["teacher"]["val"]["ndcg@10"] > 1.3 * untrained["ndcg@10"]
    assert result.metrics["student"]["val"]["ndcg@10"] > 1.3 * untrained["ndcg@10"]
    for name, model in (("teacher", result.teacher), ("student", result.student)):
        for part in ("val", "test"):
            assert result.metrics[name][part] == evaluate(model, parts, part, (5, 10))
        best = max(row[f"{name}/ndcg@10"] for row in result.history if row["phase"] == "joint")
        assert result.metrics[name]["val"]["ndcg@10"] == best
        best = max(row[f"{name}/ndcg@10"] for row in result.history if row["phase"] == f"pretrain_{name}")
        assert result.pretrained[name]["val"]["ndcg@10"] == best
        assert all(f"{name}/loss_distill" in row for row in result.history if row["phase"] == "joint" and row["epoch"])


def test_the_run_folder(parts, tmp_path):
    folder = tmp_path / "a" / "run"
    settings = config(run__out=str(folder))
    result = Trainer(settings, parts).fit()
    assert Config.from_toml(folder / "config.toml") == settings
    assert Split.load(folder / "split.npz").fingerprint() == parts.fingerprint()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], int(row["epoch"])) for row in rows] == [(r["phase"], r["epoch"]) for r in result.history]
    assert float(rows[-1]["teacher/ndcg@10"]) == result.history[-1]["teacher/ndcg@10"]
    assert rows[0]["student/ndcg@10"] == ""
    found = json.loads((folder / "metrics.json").read_text())
    assert found["metrics"] == result.metrics
    assert found["pretrained"] == result.pretrained
    for name, model in (("teacher", result.teacher), ("student", result.student)):
        saved = load_model(folder / f"{name}.safetensors")
        assert all(torch.equal(p, q) for p, q in zip(saved.parameters(), model.parameters(), strict=True))
    leftovers = {"config.toml", "files.json", "split.npz", "metrics.csv", "metrics.json", "checkpoint", "pretrained"}
    assert set(os.listdir(folder)) == leftovers | {"teacher.safetensors", "student.safetensors"}


def test_the_same_settings_give_the_same_run(parts, undisturbed):
    assert same(Trainer(config(), parts).fit(), undisturbed("default"))
    other = Trainer(config(run__seed=1, train__epochs=0), parts).fit()
    assert timeless(other.history)[1] != timeless(undisturbed("default").history)[1]


@pytest.fixture(scope="module")
def undisturbed(parts):
    """The result of each variant's run without interruption."""
    results = {}

    def result(name):
        if name not in results:
            results[name] = Trainer(variant(name), parts).fit()
        return results[name]

    return result


@pytest.mark.parametrize(
    ("name", "fused"),
    [("default", []), ("sparse", ["teacher", "student"]), ("sgd", ["teacher"])],  # the student of "sgd" has Adam
)
def test_steps_are_fused_where_they_can_be(parts, name, fused):
    learners = Trainer(variant(name), parts).engine.learners
    assert [who for who, learner in learners.items() if isinstance(learner.update, FusedUpdate)] == fused
    unlike = variant(name, distill__negatives_from_samples=True)
    assert not any(isinstance(each.update, FusedUpdate) for each in Trainer(unlike, parts).engine.learners.values())


# The phases have 2, 2 and 3 epochs of 5 steps: within an epoch, at its end, in each of the phases.
@pytest.mark.parametrize(
    ("name", "steps"),
    [("default", 1), ("default", 5), ("default", 13), ("default", 20), ("pool", 22), ("sparse", 7)]
    + [(name, 28) for name in VARIANTS],
)
def test_ctrl_c_and_resume_change_nothing(parts, undisturbed, tmp_path, name, steps):
    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(variant(name, run__out=str(tmp_path)), parts, callbacks=[StopAfter(steps)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before
    again = Trainer.resume(tmp_path, callbacks=[StopAfter(5)])
    with pytest.raises(KeyboardInterrupt):
        again.fit()
    assert same(Trainer.resume(tmp_path, split=parts).fit(), undisturbed(name))
    assert same(Trainer.resume(tmp_path).fit(), undisturbed(name))  # a finished run


def test_a_second_ctrl_c_does_not_wait(parts, tmp_path):
    class Twice(Callback):
        def on_step(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one was swallowed")

    with pytest.raises(KeyboardInterrupt):
        Trainer(config(run__out=str(tmp_path)), parts, callbacks=[Twice()]).fit()


def test_an_ignored_ctrl_c_stays_ignored(parts, undisturbed):
    """As in the background of a script, which ends the job in the foreground by it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert same(Trainer(config(), parts, callbacks=[StopAfter(7)]).fit(), undisturbed("default"))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# The parent pays for the imports, and a child for each time trains on until it is killed.
KILLED = """
import os, signal, sys, threading
from pathlib import Path
import torch._dynamo  # which the first optimizer would import, in every child
from bidistill import Config, Split, Trainer
from bidistill.training.callbacks import Callback
class Kill(Callback):  # by another thread, while this one goes on, wherever it is then
    def __init__(self, steps):
        self.left, self.now = steps, threading.Event()
        threading.Thread(target=self.kill, daemon=True).start()
    def on_step(self, trainer):
        self.left -= 1
        if self.left == 0:
            self.now.set()
    def kill(self):
        self.now.wait()
        os.kill(os.getpid(), signal.SIGKILL)
run, settings, split, *steps = sys.argv[1:]
state = Path(run, "checkpoint", "state.json")
for each in map(int, steps):
    before = state.read_bytes() if state.exists() else b""
    if (child := os.fork()) == 0:
        calls = [Kill(each)]
        trainer = Trainer.resume(run, callbacks=calls) if before else Trainer(
            Config.from_toml(settings), Split.load(split), callbacks=calls)
        trainer.fit()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert state.read_bytes() != before
"""


def test_resume_after_kill(parts, tmp_path):
    """SIGKILL at arbitrary moments, several times; then the result of the undisturbed run, bit for bit."""
    settings = config(run__out=str(tmp_path / "run"), train__pretrain_epochs=4, train__epochs=6, train__patience=0)
    settings.to_toml(tmp_path / "settings.toml")
    parts.save(tmp_path / "split.npz")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'python'}", "OMP_NUM_THREADS": "1"}
    steps = 13, 17, 21  # of 5 an epoch: in each phase, and after a new checkpoint each time
    arguments = [tmp_path / "run", tmp_path / "settings.toml", tmp_path / "split.npz", *steps]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(
        Trainer.resume(tmp_path / "run").fit(), Trainer(settings.with_overrides({"run.out": None}), parts).fit()
    )


def test_more_epochs_go_on_where_the_run_ended(parts, tmp_path):
    short = config(run__out=str(tmp_path), train__patience=0, run__checkpoint_every=2)
    long = short.with_overrides({"train.epochs": 5})
    Trainer(short, parts).fit()
    resumed = Trainer.resume(tmp_path, config=long).fit()
    assert same(resumed, Trainer(long.with_overrides({"run.out": None}), parts).fit())
    assert Config.from_toml(tmp_path / "config.toml").train.epochs == 5


@pytest.mark.parametrize(
    ("name", "value"), [("teacher.lr", 0.5), ("train.epochs", 1), ("run.seed", 3), ("distill.side", "under")]
)
def test_resume_refuses_other_settings(parts, tmp_path, name, value):
    settings = config(run__out=str(tmp_path))
    Trainer(settings, parts).fit()
    other = settings.with_overrides({name: value, "run.threads": 0, "data.path": "elsewhere.csv"})
    with pytest.raises(UserError, match=rf"trained with {name} = .*, not {value!r}"):
        Trainer.resume(tmp_path, config=other)


def test_resume_refuses_another_split_and_damage(parts, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        Trainer.resume(tmp_path / "nothing")
    Trainer(config(run__out=str(tmp_path)), parts).fit()
    other = split(generate(60, 80, 1200, dim=4, seed=2)[0], "leave_one", seed=1)
    with pytest.raises(UserError, match=r"trained on another split \(.*now .*\): give the same data"):
        Trainer.resume(tmp_path, split=other)
    tensors = next((tmp_path / "checkpoint").glob("tensors-*"))
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{tensors.name} (is damaged|has no checksum)"):
        Trainer.resume(tmp_path)


def test_warm_start_shares_the_start_bit_for_bit(parts, tmp_path):
    distilled = Trainer(config(run__out=str(tmp_path / "distilled")), parts).fit()
    control = config(distill__method="none", run__out=str(tmp_path / "control"))
    result = Trainer(control, parts, warm_start=tmp_path / "distilled").fit()
    assert result.pretrained == distilled.pretrained
    assert {row["phase"] for row in result.history} == {"joint"}
    whole = Trainer(config(distill__method="none"), parts).fit()  # with its own pretraining
    assert same_models(whole, result)
    assert timeless(result.history)[0] == next(row for row in timeless(distilled.history) if row["phase"] == "joint")
    # The control run keeps the pretraining too, and resumes.
    again = Trainer.resume(tmp_path / "control").fit()
    assert same(again, result)
    assert same_models(Trainer(control, parts, warm_start=tmp_path / "control", overwrite=True).fit(), result)


def same_models(first, second):
    pairs = ((first.teacher, second.teacher), (first.student, second.student))
    return all(torch.equal(p, q) for a, b in pairs for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_warm_start_refuses_what_does_not_fit(parts, tmp_path):
    Trainer(config(run__out=str(tmp_path / "run")), parts).fit()
    with pytest.raises(UserError, match=r"teacher\.safetensors is another model"):
        Trainer(config(teacher__dim=9), parts, warm_start=tmp_path / "run")
    other = split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=2)
    with pytest.raises(UserError, match="trained on another split"):
        Trainer(config(), other, warm_start=tmp_path / "run")
    with pytest.raises(UserError, match="cannot read the model"):
        Trainer(config(), parts, warm_start=tmp_path / "nothing")


def test_a_folder_with_a_run_is_not_overwritten_unasked(parts, tmp_path):
    quick = config(run__out=str(tmp_path), train__epochs=1, train__pretrain_epochs=1)
    Trainer(quick, parts).fit()
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(UserError, match=r"run\.out: .* holds a run already: resume it, overwrite it .*, or choose"):
        Trainer(quick, parts).fit()
    assert (tmp_path / "metrics.json").read_bytes() == before
    other = quick.with_overrides({"run.seed": 5})
    Trainer(other, parts, overwrite=True).fit()
    assert (tmp_path / "metrics.json").read_bytes() != before
    assert Config.from_toml(tmp_path / "config.toml") == other


def test_a_folder_that_cannot_be_written_stops_before_training(parts, tmp_path):
    (tmp_path / "file").write_text("")

    class Never(Callback):
        def on_step(self, trainer):
            raise AssertionError("trained")

    with pytest.raises(UserError, match=r"file"):
        Trainer(config(run__out=str(tmp_path / "file" / "run")), parts, callbacks=[Never()]).fit()
    with pytest.raises(UserError, match=r"file"):
        Trainer(config(run__out=str(tmp_path / "file")), parts, callbacks=[Never()]).fit()


def test_every_backend_trains_the_same_models(parts, monkeypatch):
    """Without a compiler a run is slower, and the same to the last bit."""
    if bdkernels.backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {bdkernels.backends.missing('cpu')}")
    results = []
    for backend in ("cpu", "reference"):
        monkeypatch.setenv("BDKERNELS_BACKEND", backend)
        results.append(Trainer(variant("pool"), parts).fit())
    assert same(*results)


def test_early_stopping_keeps_the_best_epoch(parts):
    result = Trainer(config(train__pretrain_epochs=60, train__patience=2, train__epochs=60), parts).fit()
    for name in ("teacher", "student"):
        scores = [row[f"{name}/ndcg@10"] for row in result.history if row["phase"] == f"pretrain_{name}"]
        assert len(scores) < 61
        assert int(np.argmax(scores)) == len(scores) - 3
        assert result.pretrained[name]["val"]["ndcg@10"] == max(scores)
    joint = [row for row in result.history if row["phase"] == "joint"]
    for name in ("teacher", "student"):  # the joint phase ends when both have stalled
        scores = [row[f"{name}/ndcg@10"] for row in joint]
        assert int(np.argmax(scores)) <= len(scores) - 3
        assert result.metrics[name]["val"]["ndcg@10"] == max(scores)


def test_no_epochs_at_all(parts):
    result = Trainer(config(train__pretrain_epochs=0, train__epochs=0), parts).fit()
    assert [(row["phase"], row["epoch"]) for row in result.history] == [
        ("pretrain_teacher", 0),
        ("pretrain_student", 0),
        ("joint", 0),
    ]
    assert result.metrics == result.pretrained


def test_divergence_is_named(parts):
    with pytest.raises(UserError, match=r"teacher diverged after 1 epochs of pretrain_teacher: lower teacher\.lr"):
        Trainer(config(teacher__optimizer="sgd", teacher__lr=1e30), parts).fit()
    late = config(student__optimizer="sgd", student__lr=1e30, train__pretrain_epochs=0)
    with pytest.raises(UserError, match=r"student diverged after 0 epochs of joint: lower .*student\.lr"):
        Trainer(late, parts).fit()


def test_settings_that_do_not_fit_the_data(parts):
    with pytest.raises(UserError, match=r"eval\.ks asks for 500 items, but the catalog has 80"):
        Trainer(config(eval__ks=(10, 500)), parts)
    with pytest.raises(UserError, match=r"run\.device 'warp' cannot be used here"):
        Trainer(config(run__device="warp"), parts)
    empty = {name: np.zeros(0, dtype=np.int64) for name in ("val_users", "val_items")}
    no_val = Split(**{**vars(parts), **empty})
    with pytest.raises(UserError, match="holds out no val interactions"):
        Trainer(config(), no_val)
    no_test = Split(**{**vars(parts), "test_users": empty["val_users"], "test_items": empty["val_items"]})
    result = Trainer(config(train__epochs=1, train__pretrain_epochs=1), no_test).fit()
    assert set(result.metrics["teacher"]) == {"val"}


def odd_split(n_items, train, val):
    train, val = np.array(train), np.array(val).reshape(-1, 2)
    n_users = int(train[:, 0].max()) + 1
    none = np.zeros(0, dtype=np.int64)
    ids = {"user_ids": np.arange(n_users), "item_ids": np.arange(n_items)}
    return Split(n_users, n_items, train[:, 0], train[:, 1], val[:, 0], val[:, 1], none, none, **ids)


@pytest.mark.parametrize("name", ["default", "pool", "paper-like"])
def test_one_user_and_a_user_who_has_seen_everything(name):
    tiny = {"eval.ks": (1,), "train.monitor": "mrr", "distill.pool": 2, "distill.samples": 1, "train.negatives": 2}
    settings = variant(name).with_overrides(tiny)
    one_user = odd_split(3, [(0, 0)], [(0, 2)])
    full = odd_split(3, [(0, 0), (0, 1), (0, 2), (1, 0)], [(1, 2)])
    for data in (one_user, full):
        result = Trainer(settings, data).fit()
        assert all(torch.isfinite(p).all() for p in result.student.parameters())


def test_own_models_need_only_the_protocol(parts, tmp_path, monkeypatch):
    """A model of another shape, with dropout, trains and resumes bit for bit through the same trainer."""

    class Scaled(torch.nn.Module):
        def __init__(self, n_users, n_items, dim, sparse, seed):
            super().__init__()
            self.n_users, self.n_items, self.dim = n_users, n_items, dim
            generator = torch.Generator().manual_seed(seed)
            self.table = torch.nn.Parameter(torch.randn(n_users + n_items, dim, generator=generator) * 0.1)
            self.register_buffer("scale", torch.tensor(2.0))

        def score(self, users, items):
            users = torch.nn.functional.dropout(self.table[users], 0.2, self.training)
            return self.scale * (users[:, None] * self.table[self.n_users + items]).sum(2)

        def factors(self, users):
            return bdkernels.Factors(self.scale * self.table.detach()[users], self.table.detach()[self.n_users :])

        def config(self):
            return {
                "kind": "scaled",
                "n_users": self.n_users,
                "n_items": self.n_items,
                "dim": self.dim,
                "sparse": False,
            }

    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    MODELS.register("scaled", Scaled)
    settings = config(teacher__kind="scaled", student__kind="scaled")
    undisturbed = Trainer(settings, parts).fit()
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings.with_overrides({"run.out": str(tmp_path)}), parts, callbacks=[StopAfter(28)]).fit()
    assert same(Trainer.resume(tmp_path).fit(), undisturbed)


def test_logs(parts, capsys, tmp_path):
    with shown_in_terminal():
        Trainer(config(run__progress=True, run__out=str(tmp_path), run__tensorboard=False), parts).fit()
    unfused, *lines = capsys.readouterr().out.splitlines()
    assert "train without the fused step" in unfused
    assert len(lines) == 10 + 3 * 2
    assert "joint phase, at most 3 epochs: ndcg@10 on validation, losses, seconds" in lines
    assert lines[-5].split() == [
        "epoch",
        *["teacher", "cf", "distill"],
        *["student", "cf", "distill"],
        *["steps", "resample", "eval"],
    ]
    assert lines[-1].split()[0] == "3" and all(line.isascii() and len(line) <= 80 for line in lines)


def test_models_saved_elsewhere_do_not_count_as_a_run(parts, tmp_path):
    save_model(tmp_path / "mine.safetensors", MF(2, 3, 1))
    Trainer(config(run__out=str(tmp_path), train__epochs=0, train__pretrain_epochs=0), parts).fit()
    assert (tmp_path / "mine.safetensors").exists()
