"""What large data ask of the trainer: checkpoints within an epoch, a full disk, evaluation on some users, progress in a log."""
# ruff: noqa: F811 (fixtures)

import json
import re
import resource
import shutil
from types import SimpleNamespace

import pytest
from bidistill import Trainer, UserError, evaluate
from bidistill.logs import shown_in_terminal
from bidistill.runs.checkpoint import load_checkpoint
from bidistill.training.callbacks import Callback, ProgressBar
from test_trainer import config, parts, undisturbed  # noqa: F401 (fixtures)


def test_checkpoints_within_an_epoch(parts, tmp_path):
    """Every second of the epoch's 5 steps, and at its end."""
    found = []

    class Look(Callback):
        def on_step(self, trainer):
            state = tmp_path / "checkpoint" / "state.json"
            found.append(json.loads(state.read_text())["state"]["progress"] if state.exists() else None)

    trainer = Trainer(config(run__out=str(tmp_path), run__checkpoint_steps=2), parts, callbacks=[Look()])
    trainer.fit()
    assert [(place["epoch"], place["step"]) for place in found[:8]] == [
        (0, 0), (0, 0), (0, 2), (0, 2), (0, 4), (1, 0), (1, 0), (1, 2),
    ]  # fmt: skip
    assert load_checkpoint(tmp_path / "checkpoint")[1]["progress"]["phase"] == "joint"


@pytest.mark.parametrize("full", ["no room", "in the middle"])
def test_a_full_disk_costs_no_checkpoint(parts, tmp_path, monkeypatch, full):
    """The new checkpoint is not written, the old one stands, nothing else is left, and the run can go on from there."""
    trainer = Trainer(config(run__out=str(tmp_path), train__epochs=1), parts)
    trainer.fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        if full == "no room":
            patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        else:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(UserError, match=r"tensors-.*\.safetensors"):
                trainer.save()
        finally:
            if full == "in the middle":
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    longer = trainer.config.with_overrides({"train.epochs": 2})
    assert Trainer.resume(tmp_path, config=longer).fit().history[-1]["epoch"] == 2


def test_evaluation_on_some_users(parts, undisturbed):
    """The same losses, and metrics of the same few users in every epoch."""
    some = Trainer(config(eval__users=20, train__patience=0), parts).fit()
    assert some.metrics["teacher"]["test"]["users"] == 20 < undisturbed("default").metrics["teacher"]["test"]["users"]
    for name in ("teacher", "student"):
        for part in ("val", "test"):
            model = getattr(some, name)
            assert some.metrics[name][part] == evaluate(model, parts, part, (5, 10), max_users=20)
    losses = [  # other users may pick another best epoch, from which the joint phase begins
        [row[key] for row in run.history for key in row if "loss" in key and row["phase"] != "joint"]
        for run in (some, undisturbed("default"))
    ]
    assert losses[0] == losses[1]


def test_progress_in_a_log(parts, capsys, monkeypatch):
    """Where stderr is no terminal: lines with interactions, how many a second, and the time left for the run."""
    monkeypatch.setattr(ProgressBar, "LINE_SECONDS", 0.0)
    with shown_in_terminal():
        Trainer(config(run__progress=True), parts).fit()
    written = capsys.readouterr()
    n = len(parts.train_users)
    lines = written.err.splitlines()
    done = rf"joint:\s+\d+%\|.*\| \d.*/{3 * n / 1000:.3g}k \[\d+:\d+, .*/s"
    assert re.match(done + r", epoch \d, run: at most about \d\d:\d\d left\]", lines[-3])
    assert lines[-1].startswith("joint:")
    assert re.search(r"\n +3( +\d\.\d{4}){6}( +\d+\.\d){2,3}\n$", written.out)
