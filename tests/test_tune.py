"""The search for settings: what it finds, that it goes on as if it had not been stopped, and what it refuses."""

import csv
import itertools
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomlkit
from bidistill import Config, Trainer, UserError, generate, split, tune
from bidistill.cli import main, train
from bidistill.data.write import write_interactions
from bidistill.distill.method import list_sizes
from bidistill.runs.folder import RunFolder
from bidistill.training.phases import rows_of
from bidistill.tuning import search, study
from bidistill.tuning.space import Choices, Range, read_space, spread
from bidistill.tuning.training import Watch, without_test

pytestmark = [
    pytest.mark.usefixtures("heard_signals"),
    pytest.mark.filterwarnings("ignore:.*epoch 0 is kept", "ignore:Sparse invariant checks"),
]
ROOT = Path(__file__).resolve().parents[1]
STEPS = 5  # of an epoch
LR = {"student.lr": {"lo": 1e-4, "hi": 0.2, "log": True}}


def config(**values):
    fast = {
        "student.dim": 4, "teacher.dim": 8, "train.pretrain_epochs": 4, "train.epochs": 2, "train.batch_size": 1024,
        "train.patience": 0, "eval.ks": (10,), "train.monitor": "ndcg@10", "run.progress": False,
    }  # fmt: skip
    return Config().with_overrides(fast | {name.replace("__", "."): value for name, value in values.items()})


@pytest.fixture(scope="module")
def parts():
    return split(generate(150, 100, 4500, seed=3, zipf=0.3)[0])


def told(found):
    """What trials came to, without their times."""
    return [replace(trial, seconds=0.0) for trial in found.trials]


def values(found):
    """Those of the trials, none of which failed."""
    assert all(trial.value is not None for trial in found.trials)
    return [trial.value or 0.0 for trial in found.trials]


def test_finds_better_settings_than_a_bad_start_and_says_what_each_is_worth(parts):
    bad = config(student__lr=1e-5)
    found = tune(bad, parts, space=LR, trials=6)
    assert [trial.kind for trial in found.trials] == ["as_is"] + 5 * ["drawn"]
    assert found.trials[0].settings == {} and found.trials[0].value == found.untuned
    assert found.value == max(values(found)) > 1.2 * found.untuned
    assert found.config == bad.with_overrides(found.settings) and list(found.settings) == ["student.lr"]
    assert found.at_edge == (() if 0.000126 < found.config.student.lr < 0.159 else ("student.lr",))
    # The values are those that the whole runs give, in which the teacher is a model of its own size.
    for settings, value in ((bad, found.untuned), (found.config, found.value)):
        rows = rows_of(Trainer(settings, parts).fit().history, "pretrain_student")
        assert max(row["student/ndcg@10"] for row in rows) == value


def test_one_model_alone_is_no_run(parts, tmp_path):
    with pytest.raises(UserError, match=r"run\.out is .*, but the student alone is no whole run: unset run\.out"):
        Trainer(config(run__out=str(tmp_path / "run")), parts).pretrain("student")
    with pytest.raises(UserError, match="found 'both'"):
        Trainer(config(), parts).pretrain("both")
    found = tune(config(run__out=str(tmp_path / "run")), parts, space=LR, trials=1)
    assert found.config == config() and not (tmp_path / "run").exists()


def test_never_returns_something_worse_than_the_settings_as_they_stand(parts):
    good = config(student__lr=0.02)
    found = tune(good, parts, space={"student.lr": {"choices": [1e-6, 2e-6]}}, trials=3)
    assert found.settings == {} and found.config == good and found.value == found.untuned


def test_the_test_is_not_looked_at(parts):
    assert len(parts.test_users) and not len(without_test(parts).test_users)
    other = replace(parts, test_items=np.roll(parts.test_items, 7))
    assert not np.array_equal(other.test_items, parts.test_items)
    assert told(tune(config(), parts, space=LR, trials=2)) == told(tune(config(), other, space=LR, trials=2))


def test_goes_on_as_if_it_had_not_been_stopped(parts, tmp_path, monkeypatch):
    whole = tune(config(), parts, space=LR, trials=10)
    out = tmp_path / "search"
    assert len(tune(config(), parts, space=LR, trials=2, out=out).trials) == 2
    with monkeypatch.context() as patch:  # Ctrl-C in the middle of a trial
        patch.setattr(Watch, "on_step", lambda self, run: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            tune(config(), parts, space=LR, trials=10, out=out)
    assert told(tune(config(), parts, space=LR, trials=3, out=out)) == told(whole)[:3]
    # A process that was killed has left a trial that runs, a line that is not whole, and a lock; one before it has left a
    # trial that was over, but not told to be so.
    with monkeypatch.context() as patch:
        patch.setattr(study.Study, "_end", lambda *_: None)
        assert told(tune(config(), parts, space=LR, trials=4, out=out)) == told(whole)[:4]
    study.Study(out, 0, "median", 5).ask(4, {})
    with (out / "study.log").open("a") as file:
        file.write('{"op_code": 6, "wor')
    (out / "study.log.lock").symlink_to("gone")
    found = tune(config(), parts, space=LR, trials=10, out=out)
    assert told(found) == told(whole) and found.config == whole.config
    # Nothing is left to do, and less was asked for.
    assert told(tune(config(), parts, space=LR, trials=5, out=out)) == told(whole)
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [float(row["value"]) for row in rows] == [trial.value for trial in whole.trials]
    assert [row["student.lr"] for row in rows][1:] == [str(trial.settings["student.lr"]) for trial in whole.trials[1:]]
    assert Config.from_toml(out / "best.toml") == whole.config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": {"student.lr": {"lo": 1e-4, "hi": 0.1, "log": True}}}, "in which student.lr was {'lo': 0.0001, 'hi': 0.2"),
        ({"space": LR | {"train.negatives": {"choices": [1, 4]}}}, "train.negatives was nothing, now it is"),
        ({"config": config(train__batch_size=256)}, "train.batch_size = 1024, now 256"),
        ({"config": config(run__seed=1)}, "run.seed = 0, now 1"),
        ({"prune": "none"}, "prune = 'median', now 'none'"),
        ({"model": "teacher", "space": {"model.lr": LR["student.lr"]}}, "model = 'student', now 'teacher'"),
        ({"split": None}, "other data"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_another_search_is_refused(parts, searched, change, words):
    other = split(generate(150, 100, 4501, seed=3, zipf=0.3)[0])
    asked = {"config": config(), "split": parts, "space": LR, "trials": 2, "out": searched} | change
    asked["split"] = other if asked["split"] is None else asked["split"]
    with pytest.raises(UserError) as error:
        tune(**asked)
    assert words in str(error.value) and "choose another folder" in str(error.value)


@pytest.fixture(scope="module")
def searched(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("tune") / "search"
    tune(config(), parts, space=LR, trials=1, out=out)
    return out


def test_what_changes_no_result_may_change(parts, searched):
    free = config(run__progress=True, run__threads=1, data__path="moved.csv")
    assert len(tune(free, parts, space=LR, trials=1, out=searched).trials) == 1


def test_a_folder_of_others_and_a_damaged_search_are_refused(parts, searched, tmp_path):
    (tmp_path / "best.toml").write_text("mine")
    with pytest.raises(UserError, match=r"best\.toml is there, and no tune\.json beside it"):
        tune(config(), parts, space=LR, trials=1, out=tmp_path)
    assert (tmp_path / "best.toml").read_text() == "mine"
    journal = searched / "study.log"
    before = journal.read_text()
    journal.write_text("no journal\n" + before)
    with pytest.raises(UserError, match=r"study\.log is damaged"):
        tune(config(), parts, space=LR, trials=2, out=searched)
    journal.write_text(before)
    with pytest.raises(UserError, match=r"run\.device 'nowhere' cannot be used here"):
        tune(config(run__device="nowhere"), parts, space=LR, trials=1, out=tmp_path / "new")
    assert not (tmp_path / "new" / "tune.json").exists()
    with RunFolder(searched).held(), pytest.raises(UserError, match="is in use by process"):
        tune(config(), parts, space=LR, trials=2, out=searched)


def test_hopeless_trials_are_given_up_and_counted(parts, tmp_path):
    long = config(train__pretrain_epochs=7, student__lr=0.02)
    space = {"student.lr": {"lo": 1e-6, "hi": 0.05, "log": True}}
    found = tune(long, parts, space=space, trials=10, out=tmp_path / "search")
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert len(pruned) == found.count("pruned") > 0 and found.count("done") + len(pruned) == 10
    assert all(trial.number >= 4 and 5 <= trial.epochs <= 7 and trial.value < found.untuned for trial in pruned)
    assert all(trial.epochs == 7 for trial in found.trials if trial.state == "done")
    rows = list(csv.DictReader((tmp_path / "search" / "trials.csv").open()))
    assert [row["state"] for row in rows] == [trial.state for trial in found.trials]
    whole = tune(long, parts, space=space, trials=pruned[0].number + 1, prune="none").trials
    assert whole[-1].settings == pruned[0].settings and whole[-1].state == "done" and whole[-1].epochs == 7


def test_the_same_settings_are_trained_once(parts, monkeypatch):
    steps = []
    monkeypatch.setattr(Watch, "on_step", lambda self, run: steps.append(run.config.student.lr))
    found = tune(config(student__lr=0.02), parts, space={"student.lr": {"choices": [0.02, 0.03]}}, trials=6)
    assert len(steps) == 2 * 4 * STEPS and {trial.value for trial in found.trials[1:]} <= {found.untuned, found.value}
    again = next(trial for trial in found.trials[1:] if trial.settings["student.lr"] == 0.02)
    assert again.reason == "as trial 0" and again.value == found.untuned


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(parts):
    found = tune(config(), parts, space={"student.lr": {"choices": [1e30, 0.02]}}, trials=6)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert 0 < len(failed) < 5 and found.count("failed") == len(failed)
    for trial in failed:
        assert trial.settings == {"student.lr": 1e30} and trial.value is None
        assert "student diverged after 1 epochs of pretrain_student: lower student.lr" in trial.reason
    with pytest.raises(UserError, match=r"none of 3 trials came to an end; the first one says: student diverged"):
        tune(config(student__lr=1e30), parts, space={"student.lr": {"choices": [1e30, 1e29]}}, trials=3)


def test_an_error_that_is_no_mistake_of_the_settings_fails_its_trial(parts, monkeypatch):
    original = Watch.on_epoch

    def broken(self, run, row):
        if run.config.student.lr == 0.5:
            raise ZeroDivisionError("of a model")
        original(self, run, row)

    monkeypatch.setattr(Watch, "on_epoch", broken)
    found = tune(config(student__lr=0.5), parts, space=LR, trials=2)
    assert found.untuned is None and found.trials[0].reason == "ZeroDivisionError: of a model"
    assert found.trials[1].state == "done" and found.value == found.trials[1].value


def test_the_time_is_up(parts, searched):
    little = {"timeout": 1e-9}
    with pytest.raises(UserError, match="seconds was over after 0 of 2 trials: give the search more time"):
        tune(config(), parts, space=LR, trials=2, **little)
    found = tune(config(), parts, space=LR, trials=2, out=searched, **little)
    assert len(found.trials) == 1 and "over after 1 of 2 trials" in found.stopped


def test_distillation_is_tuned_from_one_pretraining_beside_its_control(parts, tmp_path):
    space = {"distill.lambda_student": {"lo": 0.1, "hi": 5.0}}
    out = tmp_path / "search"
    found = tune(config(), parts, distill=True, space=space, trials=3, out=out)
    assert [trial.kind for trial in found.trials] == ["as_is", "control", "drawn"]
    assert found.control == found.trials[1].value and found.value == max(values(found)[::2])
    for settings, value in ((config(), found.untuned), (config(distill__method="none"), found.control)):
        rows = rows_of(Trainer(settings, parts).fit().history, "joint")
        assert max(row["student/ndcg@10"] for row in rows) == value
    before = (out / "start" / "metrics.json").stat().st_mtime_ns
    assert len(tune(config(), parts, distill=True, space=space, trials=4, out=out).trials) == 4
    assert (out / "start" / "metrics.json").stat().st_mtime_ns == before


def test_a_fitted_model_is_tuned_by_its_own_settings(parts):
    ease = config(teacher__kind="ease", teacher__args={"regularization": 0.01}, distill__lambda_teacher=0.0)
    space = {"model.args.regularization": {"lo": 30.0, "hi": 300.0, "log": True}}
    found = tune(ease, parts, model="teacher", space=space, trials=4)
    assert found.value > found.untuned and 30 <= found.config.teacher.args["regularization"] <= 300
    with pytest.raises(UserError, match=r"fitted in one call, so it has neither rate nor loss"):
        tune(ease, parts, model="teacher", trials=2)
    with pytest.raises(UserError, match=r"teacher\.lr changes nothing"):
        tune(ease, parts, model="teacher", space={"teacher.lr": {"choices": [0.1]}}, trials=2)


def test_the_spaces_of_this_package_have_what_can_be_trained(parts):
    def names(settings, **asked):
        return {each.name: each for each in search._space(settings, parts, **asked, space=None, keep=())}

    alone = names(config(), model="teacher", distill=False)
    assert (
        set(alone) == {"teacher.lr", "teacher.weight_decay", "loss", "train.negatives"} and len(alone["loss"].sets) == 4
    )
    sparse = names(config(student__optimizer="sparse_adam"), model="teacher", distill=False)
    assert [each["train.loss"] for each in sparse["loss"].sets] == ["bce", "softmax", "softmax"]
    little = replace(parts, **{name: getattr(parts, name)[:0] for name in ("test_users", "test_items")})
    assert len(search._space(config(), little, "student", True, None, ())) == 6
    kept = search._space(config(), parts, "student", False, None, ("loss", "train.negatives"))
    assert {each.name for each in kept} == {"student.lr", "student.weight_decay"}
    with pytest.raises(
        UserError, match=r"keep names train\.negative, which the space does not search: it has loss, student\.lr"
    ):
        search._space(config(), parts, "student", False, None, ("train.negative",))


@pytest.mark.parametrize("method", ["bidirectional", "cd", "rd", "rrd", "dcd", "rce_kd", "top_discrepancy"])
def test_whatever_is_drawn_suits_the_method(parts, method):
    settings = config(distill__method=method, distill__lambda_teacher=0.0)
    space = search._space(settings, parts, "student", True, None, ())
    assert "distill.lambda_student" in {each.name for each in space}
    for drawn in itertools.product(*(each.each() for each in space)):
        changed = settings.with_overrides({name: value for one in drawn for name, value in one.items()})
        assert list_sizes(changed.distill)[1] > 0
    with pytest.raises(UserError, match=r"by distill\.method 'rrd' only the student learns"):
        tune(config(distill__method="rrd"), parts, distill=True, trials=2)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_draws_lie_evenly(seed):
    space = (
        Range("a", 1e-6, 1.0, True, False),
        Range("b", 10, 29, False, True),
        Choices("c", ({"c": 1}, {"c": 2}, {"c": 3})),
    )
    drawn = [spread(space, number, seed) for number in range(8)]
    assert drawn != [spread(space, number, seed + 1) for number in range(8)]
    for low, high in ((1e-6, 1e-3), (1e-3, 1.0)):
        assert 3 <= sum(low <= each["a"] < high for each in drawn) <= 5
    assert all(10 <= each["b"] <= 29 and isinstance(each["b"], int) for each in drawn)
    assert 3 <= sum(each["b"] < 20 for each in drawn) <= 5
    assert {each["c"] for each in drawn} == set(space[2].labels)


def test_what_a_loss_over_the_catalog_has_no_use_for_is_not_drawn(parts):
    whole = config(train__loss="full_softmax", train__order="users", train__pretrain_epochs=1, train__epochs=1)
    found = tune(whole, parts, distill=True, trials=10, prune="none")
    assert found.count("done") == 10
    by_loss = {each.settings["distill.loss"]: each.settings for each in found.trials[2:]}
    assert "distill.tau_learner" not in by_loss["full_softmax"] and "distill.tau_learner" in by_loss["listwise"]
    found = tune(whole, parts, trials=9, prune="none", keep=["student.lr"])
    assert found.count("done") == 9
    drawn = [each.settings for each in found.trials[1:]]
    assert all(("train.negatives" in each) == (each["train.loss"] != "full_softmax") for each in drawn)
    assert {each["train.loss"] for each in drawn} == {"bce", "softmax", "full_softmax"}


def test_edges_of_a_range():
    assert [Range("a", 1.0, 100.0, True, False).at_edge(value) for value in (1, 1.1, 2, 10, 80, 95)] == [
        True, True, False, False, False, True,
    ]  # fmt: skip
    assert [Range("b", 1, 9, False, True).at_edge(value) for value in (1, 2, 8, 9)] == [True, False, False, True]


def test_a_space_is_read_by_the_names_of_options(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(
        "[model]\nlr = {lo = 0.001, hi = 1, log = true}\n[model.args]\ndepth = {lo = 1, hi = 3}\n"
        '[train]\nnegatives = {lo = 1, hi = 8}\n[both]\nchoices = [{"model.dim" = 4, "train.loss" = "bpr"}]\n'
    )
    assert read_space(file, "teacher") == (
        Range("teacher.lr", 0.001, 1.0, True, False),
        Range("teacher.args.depth", 1, 3, False, True),
        Range("train.negatives", 1, 8, False, True),
        Choices("both", ({"teacher.dim": 4, "train.loss": "bpr"},)),
    )


def test_the_spaces_of_the_page_are_read():
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/tuning.md").read_text(), re.S)
    names = [[each.name for each in read_space(tomlkit.parse(block).unwrap(), "teacher")] for block in blocks]
    assert names == [
        ["teacher.lr", "teacher.weight_decay", "teacher.dim", "loss"],
        ["teacher.args.regularization"],
    ]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "the space is empty"),
        ({"student.lrr": {"lo": 1, "hi": 2}}, "student.lrr is not an option: did you mean student.lr?"),
        ({"student.lr": 3}, "must be a table with lo and hi, or with choices, found 3"),
        ({"student.lr": {"lo": 0.1}}, "needs a finite number as hi, found None"),
        ({"student.lr": {"lo": 0.1, "hi": 0.01}}, "needs lo below hi"),
        ({"student.lr": {"lo": 0.1, "hi": 0.2, "step": 1}}, "has 'step', but a range has lo, hi and log"),
        ({"student.weight_decay": {"lo": 0, "hi": 1, "log": True}}, "log = true, so lo must be above 0"),
        ({"student.lr": {"lo": -1, "hi": 1}}, "student.lr must be a number at least"),
        ({"train.negatives": {"lo": 1, "hi": 4.5}}, "train.negatives must be a whole number"),
        ({"train.loss": {"lo": 1, "hi": 2}}, "train.loss is no number"),
        ({"train.loss": {"choices": ["bce", "hinge"]}}, "train.loss must be one of"),
        ({"train.loss": {"choices": []}}, "a list of at least one"),
        ({"train.loss": {"choices": ["bce", "bce"]}}, "has a choice twice"),
        ({"pool": {"choices": [3]}}, "pool is not an option"),
        ({"student.lr": {"choices": [1]}, "a": {"choices": [{"model.lr": 2.0}]}}, "sets student.lr in two places"),
        ({"teacher.lr": {"choices": [0.1]}}, "teacher.lr is of the teacher, but the search is for the student alone"),
        ({"distill.pool": {"choices": [3]}}, "distill.pool changes nothing that a model alone is compared by"),
        ({"train.monitor": {"choices": ["ndcg@10"]}}, "train.monitor changes nothing"),
        ({"train.negatives": {"lo": 1, "hi": 500}}, "cannot search train.negatives = 500 with the other settings as they stand"),
        ({"student.optimizer": {"choices": ["adam", "sparse_adam"]}}, "cannot search student.optimizer = 'sparse_adam'"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched_is_refused(parts, space, words):
    settings = config(train__loss="full_softmax") if "student.optimizer" in space else config()
    with pytest.raises(UserError) as error:
        tune(settings, parts, space=space, trials=2)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": "both"}, "model must be teacher or student, found 'both'"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"trials": 1, "distill": True}, "trials must be at least 2"),
        ({"prune": "half"}, "prune must be one of median, none"),
        ({"timeout": 0.0}, "timeout must be a number of seconds above 0"),
        ({"distill": True, "model": "teacher"}, "by the student's metric"),
        ({"distill": True, "config": config(distill__method="none")}, "no distillation to tune"),
        ({"distill": True, "config": config(distill__lambda_student=0.0)}, "lambda_student is 0"),
        ({"distill": True, "space": LR}, "student.lr is no option of the joint phase"),
        ({"distill": True, "space": {"distill.loss": {"choices": ["listwise"]}}}, "cannot search distill.loss = 'listwise'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(parts, asked, words):
    with pytest.raises(UserError) as error:
        tune(**{"config": config(), "split": parts, "trials": 4} | asked)
    assert words in str(error.value)


FAST = ["--student-dim", "4", "--teacher-dim", "8", "--train-pretrain-epochs", "3", "--train-epochs", "2", "--eval-ks", "10",
        "--train-monitor", "ndcg@10", "--train-batch-size", "1024"]  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "write_report", lambda folder: folder / "report.html")
    write_interactions("made.csv", generate(150, 100, 4500, seed=3, zipf=0.3)[0])
    return tmp_path


def test_the_command_writes_settings_that_train(work, capsys):
    (work / "space.toml").write_text("[model]\nlr = { lo = 0.01, hi = 0.1, log = true }\n")
    asked = ["tune", "--data-path", "made.csv", "--space", "space.toml", "--student-lr", "0.00001", *FAST]
    assert main([*asked, "--trials", "3"]) == 0
    out = capsys.readouterr().out
    assert "best ndcg@10 of the student on validation: 0." in out and "3 trials: 3 done, 0 pruned, 0 failed" in out
    assert "train by these settings: bidistill train runs/made-student/best.toml" in out
    found = Config.from_toml("runs/made-student/best.toml")
    assert found.student.lr >= 0.01 and f"student.lr               {found.student.lr:.4g}" in out
    assert main(["train", "runs/made-student/best.toml"]) == 0
    assert Config.from_toml("runs/made/config.toml").student == found.student
    assert main([*asked, "--trials", "4"]) == 0
    assert "3 of them are there" in (out := capsys.readouterr().out) and "4 trials: 4 done" in out
    assert main([*asked, "--trials", "4", "--train-negatives", "2"]) == 2
    assert "holds a search with train.negatives = 4, now 2" in capsys.readouterr().err
    assert json.loads((work / "runs/made-student/tune.json").read_text())["model"] == "student"


def test_ctrl_c_keeps_what_is_done(work, monkeypatch, capsys):
    original, steps = Watch.on_step, []

    def interrupted(self, run):
        steps.append(run)
        if len(steps) == 3 * STEPS + 2:  # in the second trial
            os.kill(os.getpid(), signal.SIGINT)
        original(self, run)

    monkeypatch.setattr(Watch, "on_step", interrupted)
    asked = ["tune", "--data-path", "made.csv", "--keep", "loss", *FAST, "--trials", "3", "--out", "here"]
    assert main(asked) == 130
    assert "stopped; the same command goes on with the search in here" in capsys.readouterr().err
    assert len(list(csv.DictReader((work / "here/trials.csv").open()))) == 1
    assert main(asked) == 0
    assert "3 trials, 1 of them are there" in capsys.readouterr().out


def test_without_optuna_the_command_says_how_to_get_it(work, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", "--data-path", "made.csv"]) == 2
    error = capsys.readouterr().err
    assert "tuning needs optuna" in error and "pip install 'bdkernels[tune]'" in error and error.count("\n") == 1


def test_a_pretraining_that_was_stopped_is_not_taken_for_that_of_other_settings(parts, tmp_path, monkeypatch):
    asked = {"distill": True, "space": {"distill.lambda_student": {"lo": 0.1, "hi": 5.0}}, "trials": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step", lambda self, run: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            tune(config(), parts, out=tmp_path / "search", **asked)
    with pytest.raises(UserError, match=r"teacher\.lr = 0\.007, now 0\.1"):
        tune(config(teacher__lr=0.1), parts, out=tmp_path / "search", **asked)
    assert told(tune(config(), parts, out=tmp_path / "search", **asked)) == told(tune(config(), parts, **asked))
