"""Callbacks that act: they stop a run or a phase, change learning rates, and log into the history. A resumed run has all that."""

# ruff: noqa: F811 (fixtures)

import csv
import math
import re

import pytest
from bidistill import Callback, Trainer, UserError
from bidistill.logs import shown_in_terminal
from bidistill.report import open_run, results, write_report
from bidistill.training.phases import PHASES, rows_of
from bidistill.training.updates import EagerUpdate, FusedUpdate
from runs import StopAfter, same, timeless
from test_trainer import config, parts  # noqa: F401 (fixtures)

pytestmark = [
    pytest.mark.usefixtures("heard_signals"),
    pytest.mark.filterwarnings("ignore:.*epoch 0 is kept", "ignore:Sparse invariant checks"),
]
STEPS = 5  # of an epoch


class At(Callback):
    """Calls a function with the run after so many steps."""

    def __init__(self, steps, call):
        self.left, self.call = steps, call

    def on_step(self, run):
        self.left -= 1
        if self.left == 0:
            self.call(run)


def trained(history):
    """Epochs of each phase."""
    return [rows_of(history, phase)[-1]["epoch"] for phase in PHASES]


class Trial:
    """As Optuna's: prunes at the second report."""

    def __init__(self):
        self.reports = []

    def report(self, value, step):
        self.reports.append((value, step))

    def should_prune(self):
        return len(self.reports) == 2


def test_a_search_prunes_a_run(outside, parts, tmp_path, capsys):
    trial, settings = Trial(), config(run__out=str(tmp_path / "run"), run__progress=True)
    with shown_in_terminal():
        result = Trainer(settings, parts, callbacks=[outside("pruning").Pruning(trial)]).fit()
    assert (
        result.stopped == "pruned after epoch 1"
        and "the run is stopped: pruned after epoch 1" in capsys.readouterr().out
    )
    assert trained(result.history) == [2, 2, 1]
    rows = rows_of(result.history, "joint")
    assert trial.reports == [(row["student/ndcg@10"], row["epoch"]) for row in rows]
    whole = Trainer(config(), parts).fit()
    assert whole.stopped == "" and timeless(result.history) == timeless(whole.history)[: len(result.history)]
    found = open_run(tmp_path / "run")
    assert found.metrics == result.metrics and found.stopped == result.stopped
    assert "stopped the run before its last epoch: pruned after epoch 1." in write_report(found).read_text()
    # Resumed, it is still stopped, whoever watches; and goes on to the whole run where that is asked for.
    assert same(Trainer.resume(tmp_path / "run").fit(), result)
    again = Trainer.resume(tmp_path / "run")
    assert again.stopped == result.stopped
    again.stopped = ""
    assert same(again.fit(), whole) and open_run(tmp_path / "run").stopped == ""


@pytest.mark.parametrize("steps", [3, STEPS, 2 * 2 * STEPS + 7])
def test_a_stop_within_an_epoch(parts, tmp_path, steps):
    """In the teacher's pretraining, at the end of an epoch, in the joint phase."""
    halt = At(steps, lambda run: run.stop("out of time"))
    trainer = Trainer(config(run__out=str(tmp_path)), parts, callbacks=[halt])
    result = trainer.fit()
    assert halt.left == 0 and result.stopped == "out of time"
    epochs = [min(limit, max(0, steps // STEPS - before)) for limit, before in zip((2, 2, 3), (0, 2, 4), strict=True)]
    assert trained(result.history) == epochs
    assert {row["epoch"] for row in rows_of(result.history, "joint")} == set(range(epochs[2] + 1))
    for name in ("teacher", "student"):
        best = max(row[f"{name}/ndcg@10"] for row in rows_of(result.history, "joint"))
        assert result.metrics[name]["val"]["ndcg@10"] == best
    assert len(results(open_run(tmp_path)).models["student"]) == 9 and write_report(tmp_path).exists()
    assert same(Trainer.resume(tmp_path).fit(), result)
    if epochs[2]:  # all other phases are whole
        again = Trainer.resume(tmp_path)
        again.stopped = ""
        assert same(again.fit(), Trainer(config(), parts).fit())


class EndEarly(Callback):
    """Ends the first phase after its first epoch and the joint phase in its second one."""

    def on_epoch(self, run, row):
        if row["phase"] == "pretrain_teacher" and row["epoch"] == 1:
            run.end_phase("enough")

    def on_step(self, run):
        if (run.progress.phase, run.progress.epoch, run.progress.step) == ("joint", 1, 2):
            run.end_phase("enough")


@pytest.mark.parametrize("steps", [4, STEPS + 2, STEPS + 2 * STEPS + 3])
def test_an_ended_phase_is_followed_by_the_next(parts, tmp_path, steps):
    result = Trainer(config(), parts, callbacks=[EndEarly()]).fit()
    assert trained(result.history) == [1, 2, 1] and result.stopped == ""
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(run__out=str(tmp_path)), parts, callbacks=[EndEarly(), StopAfter(steps)]).fit()
    assert same(Trainer.resume(tmp_path, callbacks=[EndEarly()]).fit(), result)


def test_an_end_is_in_the_checkpoint(parts, tmp_path):
    """The program dies between the end that was asked for and the next phase."""

    class Die(Callback):
        def on_phase(self, run, phase, epochs, steps):
            if phase == "pretrain_student":
                raise RuntimeError("killed")

    settings = config(run__out=str(tmp_path))
    with pytest.raises(RuntimeError, match="killed"):
        Trainer(settings, parts, callbacks=[At(STEPS + 2, lambda run: run.end_phase("enough")), Die()]).fit()
    trainer = Trainer.resume(tmp_path)
    assert (trainer.progress.phase, trainer.progress.ended) == ("pretrain_teacher", "enough")
    assert trained(trainer.fit().history) == [1, 2, 3]


class Rate(Callback):
    """Both models learn at this rate in every phase."""

    def __init__(self, lr):
        self.lr = lr

    def on_phase(self, run, phase, epochs, steps):
        for name in ("teacher", "student"):
            run.set_lr(name, self.lr)


@pytest.mark.parametrize(
    ("optimizer", "update"), [("adam", EagerUpdate), ("sparse_adam", FusedUpdate), ("adagrad", FusedUpdate)]
)
def test_a_rate_is_that_of_the_settings(parts, optimizer, update):
    both = {"teacher__optimizer": optimizer, "student__optimizer": optimizer}
    wanted = Trainer(config(**both, teacher__lr=0.005, student__lr=0.005), parts)
    trainer = Trainer(config(**both), parts, callbacks=[Rate(0.005)])
    result = trainer.fit()
    assert same(result, wanted.fit())
    learner = trainer.engine.learners["teacher"]
    assert type(learner.update) is update and trainer.lr("teacher") == 0.005
    assert not same_metrics(result, Trainer(config(**both), parts).fit())


def same_metrics(first, second):
    return first.metrics == second.metrics


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
def test_a_changed_rate_is_in_the_checkpoint(parts, tmp_path, optimizer):
    both = {"teacher__optimizer": optimizer, "student__optimizer": optimizer}
    change = 2 * 2 * STEPS + 4  # steps, of the joint phase

    def slower(run):
        run.set_lr("student", run.lr("student") / 10)

    result = Trainer(config(**both), parts, callbacks=[At(change, slower)]).fit()
    assert not same_metrics(result, Trainer(config(**both), parts).fit())
    with pytest.raises(KeyboardInterrupt):
        Trainer(
            config(**both, run__out=str(tmp_path)), parts, callbacks=[At(change, slower), StopAfter(change + 2)]
        ).fit()
    trainer = Trainer.resume(tmp_path)
    assert (trainer.lr("teacher"), trainer.lr("student")) == (0.02, pytest.approx(0.002))
    assert same(trainer.fit(), result)


def test_a_phase_begins_with_the_rate_of_the_settings(parts):
    seen = []

    class Watch(Callback):
        def on_step(self, run):
            seen.append((run.progress.phase, run.lr("teacher")))
            run.set_lr("teacher", 0.001)

    Trainer(config(), parts, callbacks=[Watch()]).fit()
    for phase in ("pretrain_teacher", "joint"):
        assert [lr for where, lr in seen if where == phase][:2] == [0.02, 0.001]


class Noting(Callback):
    """Logs a number of each step and one of each epoch."""

    def on_step(self, run):
        run.log("steps", run.progress.epoch * STEPS + run.progress.step)

    def on_epoch(self, run, row):
        run.log("score", 2 * row["epoch"])
        if row["epoch"]:
            assert row["steps"] == row["epoch"] * STEPS and row["score"] == 2 * row["epoch"]


def test_numbers_in_the_history(parts, tmp_path):
    result = Trainer(config(run__out=str(tmp_path / "whole")), parts, callbacks=[Noting()]).fit()
    for row in result.history:
        assert row["score"] == 2 * row["epoch"] and row.get("steps", 0) == row["epoch"] * STEPS
    assert {"score", "steps"} <= result.history[1].keys()
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        assert [float(row["score"]) for row in csv.DictReader(file)] == [row["score"] for row in result.history]
    assert timeless(open_run(tmp_path / "whole").history) == timeless(result.history)

    class Early(Noting):
        """Logs in the first steps of an epoch alone, which a resumed run does not have again."""

        def on_step(self, run):
            if run.progress.step == 1:
                run.log("steps", run.progress.epoch * STEPS + STEPS)

    result = Trainer(config(), parts, callbacks=[Early()]).fit()
    stop = [Early(), StopAfter(2 * STEPS + 2)]
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(run__out=str(tmp_path / "stopped")), parts, callbacks=stop).fit()
    assert same(Trainer.resume(tmp_path / "stopped", callbacks=[Early()]).fit(), result)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: run.log("teacher/loss_cf", 1.0), "the history has a column 'teacher/loss_cf' of its own"),
        (lambda run: run.log("phase", 1.0), "the history has a column 'phase' of its own"),
        (lambda run: run.log("mine", math.nan), "'mine' must be a finite number, found nan"),
        (lambda run: run.log("mine", "much"), "'mine' must be a number, found 'much'"),
        (lambda run: run.log("", 1.0), "the name of a column must be text, found ''"),
        (lambda run: run.set_lr("teacher", -1.0), r"teacher\.lr must be a number at least .*, found -1.0"),
        (lambda run: run.set_lr("master", 0.1), "a run trains the teacher and the student, found 'master'"),
        (lambda run: run.lr("master"), "a run trains the teacher and the student, found 'master'"),
        (lambda run: run.stop(""), "stop needs a reason"),
        (lambda run: run.end_phase(None), "end_phase needs a reason"),
    ],
)
def test_what_cannot_be_asked(parts, call, words):
    with pytest.raises(UserError, match=words):
        Trainer(config(train__pretrain_epochs=1, train__epochs=0), parts, callbacks=[At(1, call)]).fit()


class Logger:
    def __init__(self):
        self.logged = []

    def log(self, numbers, step):
        self.logged.append((step, numbers))


def test_a_tracker_gets_every_number(outside, parts, tmp_path):
    tracking, whole, halves = outside("tracking").Tracking, Logger(), Logger()
    result = Trainer(config(), parts, callbacks=[tracking(whole)]).fit()
    assert [step for step, _ in whole.logged] == list(range(len(result.history)))
    for (_, numbers), row in zip(whole.logged, result.history, strict=True):
        assert numbers == {f"{row['phase']}/{name}": row[name] for name in row.keys() - {"phase", "epoch"}}
        assert all(isinstance(value, (int, float)) for value in numbers.values())
    settings = config(run__out=str(tmp_path), run__checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings, parts, callbacks=[tracking(halves), StopAfter(3 * STEPS + 1)]).fit()
    Trainer.resume(tmp_path, callbacks=[tracking(halves)]).fit()
    assert {step: numbers.keys() for step, numbers in halves.logged} == {step: n.keys() for step, n in whole.logged}


class Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value


def test_rates_are_halved_and_shown(outside, parts, tmp_path):
    writer = Writer()
    halving = outside("halving").Halving("student", writer)
    settings = config(student__lr=0.5, train__epochs=40, train__patience=0, run__out=str(tmp_path))
    result = Trainer(settings, parts, callbacks=[halving]).fit()
    rows = rows_of(result.history, "joint")
    rates = [row["student/lr"] for row in rows]
    for before, row, rate in zip([0.5, *rates], rows, rates, strict=False):
        assert rate == (before / 2 if row["student/best_epoch"] < row["epoch"] else before)
        assert writer.scalars["joint/student/lr", row["epoch"]] == rate
    assert rates[-1] < 0.5 / 1000 and len(rows) < 40, "the phase was ended by the callback"
    assert not any("student/lr" in row for row in rows_of(result.history, "pretrain_teacher"))
    assert re.search(r"\bstudent/lr\b", (tmp_path / "metrics.csv").read_text().splitlines()[0])
