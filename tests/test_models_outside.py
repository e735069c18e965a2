"""Models from outside the package: given to the Trainer, or registered by name; stopped, resumed, saved and opened again."""

import os
import signal

import pytest
import torch
from bidistill import Config, Trainer, UserError, evaluate, generate, open_run, split
from bidistill.cli import main
from bidistill.models.kinds import config_of
from bidistill.training.callbacks import Callback

pytestmark = pytest.mark.usefixtures("heard_signals")

BASE = {
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.pretrain_epochs": 2,
    "train.epochs": 2,
    "train.patience": 0,
    "eval.ks": (5, 10),
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.pool": 5,
}
OWN = ("two_tower",)


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(folder=None, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(BASE | {"run.out": None if folder is None else str(folder)} | named)


def timeless(history):
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in history]


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def same(first, second):
    assert equal(first.teacher, second.teacher) and equal(first.student, second.student)
    assert first.metrics == second.metrics and first.pretrained == second.pretrained
    assert timeless(first.history) == timeless(second.history)
    return True


class StopAfter(Callback):
    """Sends Ctrl-C to this process after some steps."""

    def __init__(self, steps):
        self.left = steps

    def on_step(self, run):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", OWN)
def test_a_given_module_trains_stops_resumes_and_is_opened_again(outside, parts, tmp_path, name):
    """The run without interruption, bit for bit, dropout and all; and what is opened ranks as what was trained."""
    own = outside(name)
    start = own.modules(parts)["teacher"]
    whole = own.train(config(), parts)
    assert not equal(whole.teacher, start)
    untrained = evaluate(start, parts, "val", (10,))["ndcg@10"]
    assert whole.pretrained["teacher"]["val"]["ndcg@10"] > untrained
    assert any("teacher/loss_distill" in row and "student/loss_distill" in row for row in whole.history)

    with pytest.raises(KeyboardInterrupt):
        Trainer(config(tmp_path), parts, **own.modules(parts), callbacks=[StopAfter(13)]).fit()  # of 3 steps an epoch
    with pytest.raises(
        UserError, match=r"the teacher is a module that a program gave \(.*\).* teacher=module to Trainer"
    ):
        Trainer.resume(tmp_path)
    result = Trainer.resume(tmp_path, **own.modules(parts)).fit()
    assert same(result, whole)

    opened = open_run(tmp_path, **own.modules(parts))
    assert equal(opened.teacher, whole.teacher) and equal(opened.student, whole.student)
    assert opened.metrics == whole.metrics and opened.config.teacher.kind == "given"
    again = open_run(tmp_path, **own.modules(parts)).model("teacher", pretrained=True)
    assert equal(opened.model("teacher", pretrained=True), again) and not equal(again, start)
    assert evaluate(opened.student, opened.split, "test", (5, 10)) == whole.metrics["student"]["test"]
    assert equal(
        opened.model("teacher", pretrained=True),
        open_run(tmp_path, **own.modules(parts)).model("teacher", pretrained=True),
    )
    with pytest.raises(UserError, match=r"the student is a module that a program gave"):
        _ = open_run(tmp_path).student


@pytest.mark.parametrize("name", OWN)
def test_a_registered_kind(outside, parts, tmp_path, capsys, name):
    """Chosen by settings alone, so that the command line can evaluate, recommend and report, and resume needs no module."""
    outside(name)
    kinds = {"teacher__kind": name, "student__kind": name, "student__dim": 3}
    if name == "two_tower":
        kinds |= {"teacher__args": {"width": 6}, "student__args": {"width": 2, "dropout": 0.0}}
    settings = config(tmp_path, **kinds)
    whole = Trainer(settings.with_overrides({"run.out": None}), parts).fit()
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings, parts, callbacks=[StopAfter(13)]).fit()
    assert same(Trainer.resume(tmp_path).fit(), whole)
    opened = open_run(tmp_path)
    assert equal(opened.student, whole.student) and config_of(opened.student) == config_of(whole.student)
    assert Config.from_toml(tmp_path / "config.toml") == settings
    for command in (["evaluate", str(tmp_path)], ["report", str(tmp_path)]):
        assert main(command) == 0, capsys.readouterr().err
    user = str(parts.user_ids[0])
    capsys.readouterr()
    assert main(["recommend", str(tmp_path), "--users", user, "-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
