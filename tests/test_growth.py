"""A run whose catalog has grown since its checkpoint: refused, or with --grow everybody keeps their rows."""

import json
import os

import numpy as np
import pytest
import torch
from bidistill import Config, Split, Trainer, UserError, generate, split
from bidistill.cli import main
from bidistill.data import Interactions
from bidistill.data.write import write_interactions
from bidistill.runs.checkpoint import load_checkpoint
from bidistill.runs.growth import Growth
from runs import StopAt

SETTINGS = {
    "teacher.dim": 6,
    "student.dim": 2,
    "train.batch_size": 256,
    "train.pretrain_epochs": 1,
    "train.epochs": 4,
    "train.patience": 0,
    "eval.ks": (5,),
    "train.monitor": "ndcg@5",
    "run.progress": False,
    "distill.pool": 5,
}


def rows(texts=False):
    """Interactions of 50 users and 60 items, and the same with others between and after them."""
    made, _, _ = generate(70, 80, 1400, dim=4, seed=1)
    old = (made.users % 7 != 3) & (made.items % 4 != 1)
    name = np.vectorize(lambda number: f"x{number:03}", otypes=[object])
    ids = [name(np.arange(n)) if texts else np.arange(n) for n in (70, 80)]

    def of(chosen):
        users, items = made.users[chosen], made.items[chosen]
        (user_ids, users), (item_ids, items) = (np.unique(each, return_inverse=True) for each in (users, items))
        times = np.arange(chosen.sum())
        return Interactions(users, items, times, ids[0][user_ids], ids[1][item_ids])

    return of(old), of(np.ones(len(made), bool))


def start(folder, optimizer, parts):
    settings = Config().with_overrides(
        SETTINGS | {"teacher.optimizer": optimizer, "student.optimizer": optimizer, "run.out": str(folder)}
    )
    trainer = Trainer(settings, parts, callbacks=[StopAt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    return trainer


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam", "adagrad", "sgd"])
@pytest.mark.parametrize("texts", [False, True])
def test_rows_go_with_their_ids(tmp_path, optimizer, texts):
    before, after = (split(each) for each in rows(texts))
    trainer = start(tmp_path, optimizer, before)
    with pytest.raises(UserError, match=r"trained on another split .*let the run grow if rows were added \(--grow\)"):
        Trainer.resume(tmp_path, split=after)
    grown = Trainer.resume(tmp_path, split=after, grow=True)
    users, items = (
        [int(np.flatnonzero(new == each)[0]) for each in old]
        for old, new in ((before.user_ids, after.user_ids), (before.item_ids, after.item_ids))
    )
    added = sorted({*range(after.n_users)} - {*users})
    for name, learner in grown.engine.learners.items():
        fresh = grown.engine.new_model(name).state_dict()
        old, new = trainer.engine.learners[name].state()[0], learner.state()[0]
        assert not any(key.startswith("best.") for key in new)
        for key, value in new.items():
            if value.dim() == 0:
                assert torch.equal(value, old[key])
                continue
            places = users if "user" in key or key.startswith("optimizer.0.") else items
            assert torch.equal(value[places], old[key]), key
            if key == "model.user_factors.weight":
                assert torch.equal(value[added], fresh["user_factors.weight"][added])
            elif key.startswith("optimizer.0."):
                assert not value[added].any()
    pool, was = grown.engine.objective.distiller.pool, trainer.engine.objective.distiller.pool
    assert torch.equal(pool[users], torch.tensor([*items, -1])[was.long()].int())
    assert (pool[added] == -1).all()
    assert (grown.progress.phase, grown.progress.epoch, grown.progress.step) == ("joint", 1, 0)
    assert Split.load(tmp_path / "split.npz").fingerprint() == after.fingerprint()
    grown.fit()
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["teacher"]["val"]["users"] == after.n_users
    assert load_checkpoint(tmp_path / "checkpoint")[1]["split"] == after.fingerprint()


def test_after_a_crash_it_grows_again(tmp_path, monkeypatch):
    """Between the pretraining's models, the checkpoint and the split: the same command does what is left."""
    before, after = (split(each) for each in rows())
    start(tmp_path / "whole", "sparse_adam", before)
    start(tmp_path / "crashed", "sparse_adam", before)
    whole = Trainer.resume(tmp_path / "whole", split=after, grow=True)
    for broken in (Trainer, Split):
        with monkeypatch.context() as patch:
            patch.setattr(broken, "save", lambda *_: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                Trainer.resume(tmp_path / "crashed", split=after, grow=True)
    again = Trainer.resume(tmp_path / "crashed", split=after, grow=True)
    assert again.pretrained == whole.pretrained
    first, second = whole.fit(), again.fit()
    assert first.metrics == second.metrics
    assert torch.equal(first.teacher.item_factors.weight, second.teacher.item_factors.weight)  # type: ignore[attr-defined]


def test_growing_takes_nothing_away(tmp_path):
    before, after = (split(each) for each in rows())
    start(tmp_path, "sgd", after)
    stands = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"the data lack 10 users of the run, such as 3: growing only adds"):
        Trainer.resume(tmp_path, split=before, grow=True)
    assert stands == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_ids_that_became_texts():
    old = Split.of(
        dict.fromkeys(("train", "val", "test"), (np.array([0, 1]), np.array([1, 0]))), *[np.array([7, 30])] * 2
    )
    new = Split.of(
        dict.fromkeys(("train", "val", "test"), (np.array([0, 1, 2]), np.array([1, 0, 2]))),
        *[np.array(["30", "7", "x"], dtype=object)] * 2,
    )
    assert Growth.between(old, new).users.tolist() == [1, 0]


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, after = rows()
    write_interactions("rows.csv", before)
    write_interactions("more.csv", after)
    flags = [
        f"--{name.replace('.', '-').replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "eval.ks"
    ]
    assert main(["train", "--data-path", "rows.csv", *flags, "--eval-ks", "5", "--run-out", "run"]) == 0
    assert main(["train", "--resume", "run", "--data-path", "more.csv", "--train-epochs", "5"]) == 2
    assert "trained on another split" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--grow", "--data-path", "more.csv", "--train-epochs", "5"]) == 0
    assert f"{after.n_users:,} users" in capsys.readouterr().out
    assert Config.from_toml("run/config.toml").data.path == "more.csv"
    assert os.path.exists("run/report.html")
    assert main(["train", "--grow", "--data-path", "more.csv"]) == 2
    assert "--grow goes with --resume" in capsys.readouterr().err
