"""What a phase came to: the epochs that a control must match, the epoch that was kept, signs of divergence, the time left."""

import re
import warnings

import pytest
from bidistill import Config, Trainer, UserError, generate, matched, split
from bidistill.cli import main
from bidistill.cli import train as command
from bidistill.report import open_run, results, table
from bidistill.training.callbacks import most_epochs, seconds_left, speeds_of
from bidistill.training.control import check_matchable
from bidistill.training.phases import Epochs, epochs_of, problems

SETTINGS = {
    "teacher.dim": 8, "student.dim": 2, "teacher.lr": 0.05, "student.lr": 0.05, "train.batch_size": 256,
    "train.pretrain_epochs": 3, "train.epochs": 12, "train.patience": 2, "eval.ks": (5,), "train.monitor": "ndcg@5",
    "run.progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows(scores, losses=(), phase="joint"):
    """The history of a phase of the teacher with these validation scores and losses."""
    best = [max(range(n + 1), key=lambda i: scores[i]) for n in range(len(scores))]
    history = [{"phase": phase, "epoch": n, "teacher/best_epoch": best[n]} for n in range(len(scores))]
    for row, loss in zip(history[1:], losses, strict=False):
        row["teacher/loss_cf"] = loss
    return history


def test_epochs_and_the_one_that_was_kept():
    assert epochs_of(rows([0.1, 0.3, 0.2]), "joint", "teacher") == (2, 1)
    assert epochs_of(rows([0.1]), "joint", "teacher") == (0, 0)
    assert epochs_of(rows([0.1]), "pretrain_teacher", "teacher") is None
    with pytest.raises(UserError, match=r"joint phase was kept: train the run again"):
        epochs_of([{"phase": "joint", "epoch": 3}], "joint", "teacher")


@pytest.mark.parametrize(
    ("scores", "losses", "found"),
    [
        ([0.1, 0.2, 0.3], [3.0, 2.0], []),
        ([0.1, 0.2, 0.3], [1.0, 1.9], []),  # a loss that grows a little
        ([0.1], [], []),
        ([0.3, 0.2, 0.1], [3.0, 2.0], ["epoch 0 is kept, the state after the pretraining: no later epoch of 2"]),
        ([0.1, 0.2, 0.3], [1.0, 2.1], ["the loss ended at 2.1, far above 1 at its start: lower teacher.lr"]),
        ([0.3, 0.2, 0.1], [5e17, 5.7e18], ["epoch 0 is kept", "ended at 5.7e+18, far above 3.47"]),
        ([0.1, 0.2], [float("nan")], ["the loss ended at nan"]),
    ],
)
def test_signs_that_a_phase_did_no_good(scores, losses, found):
    said = problems(rows(scores, losses), Config(), "joint", "teacher")
    assert len(said) == len(found)
    assert all(words in sentence for words, sentence in zip(found, said, strict=True))


def test_divergence_that_stays_finite_is_told(parts, tmp_path, capsys):
    """In a warning when the phase ends, and beside the table."""
    wild = SETTINGS | {"teacher.optimizer": "sgd", "teacher.lr": 1e3, "train.pretrain_epochs": 1, "train.epochs": 1}
    trainer = Trainer(Config().with_overrides(wild | {"run.out": str(tmp_path / "run")}), parts)
    with pytest.warns(UserWarning, match=r"teacher, pretraining: the loss ended at .*, far above 3.47 at its start"):
        trainer.fit()
    text = " ".join(table(results(open_run(tmp_path / "run"))).split())
    assert "note: teacher, pretraining: the loss ended at" in text
    parts.save(tmp_path / "split.npz")
    flags = [
        f"--{name.replace('.', '-').replace('_', '-')}={5 if name == 'eval.ks' else wild[name]}".lower()
        for name in wild
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "write_report", lambda folder: folder / "report.html")
            arguments = [
                "train",
                *flags,
                f"--data-train-path={tmp_path / 'split.npz'}",
                f"--run-out={tmp_path / 'again'}",
            ]
            assert main(arguments) == 0
    assert "bidistill: warning: teacher, pretraining: the loss ended at" in capsys.readouterr().err


def test_the_control_has_the_epochs_that_the_run_had(parts, tmp_path, monkeypatch):
    """Whatever ended the run's joint phase, patience neither shortens nor lengthens the control; also after more epochs."""
    monkeypatch.setattr(command, "write_report", lambda folder: folder / "report.html")
    parts.save(tmp_path / "split.npz")
    folder = tmp_path / "run"
    config = Config().with_overrides(SETTINGS | {"run.out": str(folder), "train.patience": 1, "train.epochs": 12})
    trainer = Trainer(config, parts)
    command.train(trainer, control=True)
    had = trainer.progress.epoch
    assert 0 < had < 12  # patience ended it
    found = open_run(folder)
    assert found.control is not None and not found.remark
    for model in ("teacher", "student"):
        ours, control = (epochs_of(run.history, "joint", model) for run in (found, found.control))
        assert ours.trained == control.trained == had
        scores = [row[f"{model}/ndcg@5"] for row in found.control.history if row["phase"] == "joint"]
        assert control.kept == scores.index(max(scores))
        assert found.control.metrics[model]["val"]["ndcg@5"] == max(scores)
    assert len(re.findall(rf"  epochs +\d+ +{had} +{had}\n  epoch kept", table(results(found)))) == 2
    longer = trainer.config.with_overrides({"train.epochs": 20})
    for learner in trainer.engine.learners.values():
        learner.stale = 0  # as where train.epochs had ended it
    trainer.save()
    resumed = Trainer.resume(folder, config=longer)
    command.train(resumed, control=True, resumed=True)
    more = resumed.progress.epoch
    assert more > had
    again = open_run(folder)
    assert again.control is not None
    assert [row["epoch"] for row in again.control.history] == list(range(more + 1))


def test_a_run_that_has_grown_has_no_control(parts):
    trainer = Trainer(Config().with_overrides(SETTINGS | {"train.epochs": 1, "train.pretrain_epochs": 1}), parts)
    check_matchable(trainer)
    trainer.fit()
    assert matched(trainer)["train.epochs"] == 1
    trainer.history[-1]["interactions"] -= 5
    with pytest.raises(UserError, match="has grown in its joint phase, so no control"):
        matched(trainer)


def test_time_left_is_that_of_the_run():
    sizes = {"pretrain_teacher": 1000, "pretrain_student": 1000, "joint": 500}
    assert seconds_left("pretrain_teacher", 400, sizes, {"pretrain_teacher": 0.1}) == pytest.approx(60 + 100 + 100)
    speeds = {"pretrain_teacher": 0.1, "pretrain_student": 0.02}
    assert seconds_left("pretrain_student", 500, sizes, speeds) == pytest.approx(10 + 500 * 0.12)
    assert seconds_left("joint", 100, sizes, speeds | {"joint": 0.5}) == pytest.approx(200)
    assert seconds_left("joint", 100, sizes, {"joint": 0.5}) == pytest.approx(200)  # a warm start
    history = [
        {"phase": "pretrain_teacher", "epoch": epoch, "seconds": seconds, "interactions": 100}
        for epoch, seconds in enumerate((1.0, 5.0, 4.0))
    ]
    assert speeds_of(history) == {"pretrain_teacher": pytest.approx(0.05)}
    assert most_epochs(Config()) == {"pretrain_teacher": 100, "pretrain_student": 100, "joint": 30}
    assert Epochs(2, 1).trained == 2
