"""The command line as a user runs it, on small data, from generating to recommending.

What needs a process of its own (exit codes, signals, pipes, two runs that must agree) has one; the rest calls `main`, which
saves the seconds that importing torch takes.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from bidistill import Split, Trainer
from bidistill.cli import data as data_command
from bidistill.cli import demo, main, train
from bidistill.config import Config, options
from bidistill.files.records import read_record, write_record
from bidistill.models import Recommender
from bidistill.report import open_run
from bidistill.runs import checkpoint
from bidistill.runs.checkpoint import load_model
from bidistill.runs.records import Finished
from bidistill.training.callbacks import Callback

from bdkernels import open_memmap

pytestmark = pytest.mark.usefixtures("heard_signals")

FAST = ["--train-pretrain-epochs", "2", "--train-epochs", "2", "--train-batch-size", "256", "--eval-ks", "5,10",
        "--train-monitor", "ndcg@10", "--teacher-dim", "8", "--student-dim", "2", "--run-progress", "false"]  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "python"), os.environ.get("PYTHONPATH", "")]),
}


def bidistill(*args: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bidistill", *map(str, args)],
        cwd=cwd, capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def run(work, monkeypatch, capsys):
    """Run the command in this process, inside the folder `work`, and return its stdout.

    `train` writes no report here: drawing takes longer than training, and the run of `work` has one.
    """
    monkeypatch.chdir(work)
    monkeypatch.setattr(train, "write_report", lambda folder: folder / "report.html")

    def call(*args: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(a) for a in args]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with generated data and one finished run with its control."""
    folder = tmp_path_factory.mktemp("cli")
    make = ["data", "generate", "--users", 60, "--items", 120, "--interactions", 1500, "--out", folder / "made.csv"]
    assert main([str(a) for a in make]) == 0
    done = bidistill("train", "--data-path", "made.csv", *FAST, "--control", "--run-out", "run", cwd=folder)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["metrics"]


def same_models(first: Path, second: Path) -> bool:
    """Whether two run folders hold the same models, bit for bit."""

    def model(folder: Path, name: str) -> Recommender:
        return load_model(folder / f"{name}.safetensors")

    pairs = [(model(first, name).state_dict(), model(second, name).state_dict()) for name in ("teacher", "student")]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def test_run_folder_is_complete(work):
    for name in (
        "config.toml",
        "split.npz",
        "metrics.csv",
        "metrics.json",
        "teacher.safetensors",
        "student.safetensors",
    ):
        assert (work / "run" / name).exists(), name
        assert (work / "run" / "control" / name).exists(), name
    assert "bidistill" in (work / "run" / "report.html").read_text()


def test_table_names_all_six_rows(work):
    printed = (work / "stdout.txt").read_text()
    for label in ("trained separately", "more epochs, no distillation", "bidirectional distillation"):
        assert label in printed
    assert len(re.findall(r"(teacher|student) +separate +control +distilled +change by distillation", printed)) == 2
    assert len(re.findall(r"  epochs +2 +2 +2\n  epoch kept", printed)) == 2
    for column in ("HR@5", "NDCG@10", "Recall@10", "MRR"):
        assert column in printed
    assert "run/report.html" in printed


def test_control_starts_from_the_same_warm_up_and_differs_in_distillation_alone(work):
    found = open_run(work / "run")
    assert found.control is not None
    assert found.control.pretrained == found.pretrained
    assert found.config.differences(found.control.config) == ["train.patience", "distill.method", "run.out"]
    assert found.control.metrics != found.metrics


def test_saved_settings_repeat_the_run_exactly(run, work):
    """In another process than that of the run."""
    run("train", "run/config.toml", "--run-out", "again")
    assert metrics(work / "again") == metrics(work / "run")
    assert same_models(work / "again", work / "run")


def test_control_can_be_added_later(run, work):
    """Also to a run that is finished; and a control of other settings is not taken for one."""
    again = work / "late"
    run("train", "run/config.toml", "--run-out", "late")
    printed = run("train", "--resume", "late", "--control")
    assert printed.count("change by distillation") == 2
    assert metrics(again / "control") == metrics(work / "run" / "control")
    printed = run("train", "run/config.toml", "--run-seed", 5, "--run-out", "late", "--overwrite")
    assert "more epochs, no distillation" not in printed
    assert "no control" in printed


def test_resumed_for_more_epochs(run, work):
    run("train", "run/config.toml", "--run-out", "short")
    run("train", "--resume", "short", "--train-epochs", 4, "--train-patience", Config().train.patience)
    epochs = [row["epoch"] for row in open_run(work / "short").history if row["phase"] == "joint"]
    assert epochs == [0, 1, 2, 3, 4]


def test_flags_win_over_toml_and_toml_over_preset(run, work):
    (work / "own.toml").write_text("[distill]\nlambda_student = 3.0\nlambda_teacher = 0.25\n")
    arguments = ["own.toml", "--preset", "paper", "--distill-lambda-teacher", 1.5, "--data-path", "made.csv", *FAST]
    run("train", *arguments, "--distill-pool", 10, "--run-out", "layers")
    saved = Config.from_toml(work / "layers" / "config.toml")
    assert saved["distill.lambda_teacher"] == 1.5
    assert saved["distill.lambda_student"] == 3.0
    assert saved["distill.tau_guide"] == Config.preset("paper")["distill.tau_guide"]


def test_evaluate_agrees_with_training(run, work):
    values = json.loads(run("evaluate", "run", "--ks", 5, 10, "--json"))
    assert values["part"] == "test"
    for name in ("teacher", "student"):
        assert values[name] == pytest.approx(metrics(work / "run")[name]["test"])
    assert 0 < values["student_better"] + values["teacher_better"] <= 1
    printed = run("evaluate", "run", "--part", "val", "--ks", "3,7")
    assert "The student ranks" in printed
    assert "NDCG@7" in printed


def test_recommend_gives_unseen_items_in_order(run, work):
    rows = list(csv.DictReader(io.StringIO(run("recommend", "run", "--users", 3, 7, 3, "-k", 6))))
    assert [(r["user_id"], r["rank"]) for r in rows] == [(u, str(k)) for u in "37" for k in range(1, 7)]
    with (work / "made.csv").open() as file:
        seen = {(r["user_id"], r["item_id"]) for r in csv.DictReader(file)}
    assert not {(r["user_id"], r["item_id"]) for r in rows} & seen
    scores = [float(r["score"]) for r in rows]
    assert scores[:6] == sorted(scores[:6], reverse=True)
    (work / "who.txt").write_text("3\n\n7\n")
    run("recommend", "run", "--users-file", "who.txt", "-k", 6, "--out", "best.parquet")
    table = pq.read_table(work / "best.parquet").to_pylist()
    assert [str(r["item_id"]) for r in table] == [r["item_id"] for r in rows]
    run("recommend", "run", "--all-users", "--model", "teacher", "-k", 1, "--out", "all.csv")
    assert len((work / "all.csv").read_text().splitlines()) == 61


@pytest.mark.parametrize(
    "command",
    [("evaluate", "run", "--json"), ("recommend", "run", "--all-users", "-k", 120), ("recommend", "run", "--users", 7)],
)
def test_mapped_tables_give_the_same(run, monkeypatch, command):
    loaded = []
    monkeypatch.setattr(checkpoint, "open_memmap", lambda *of: loaded.append(of) or open_memmap(*of))
    wanted = run(*command)
    assert not loaded
    assert run(*command, "--mapped") == wanted
    assert loaded


def test_recommend_in_batches_skips_what_is_missing(run, work):
    """Every unseen item of every user: users have differently many, and more users than a batch holds."""
    shutil.copytree(work / "run", work / "batched")
    (work / "batched" / "config.toml").unlink()  # which is for people
    record = read_record("batched/metrics.json", Finished)
    record.config["eval.batch_size"] = 7
    write_record("batched/metrics.json", record)
    rows = list(csv.DictReader(io.StringIO(run("recommend", "batched", "--all-users", "-k", 120))))
    split = Split.load(work / "batched" / "split.npz")
    assert len(rows) == 60 * 120 - 1500
    assert {r["item_id"] for r in rows} <= set(map(str, split.item_ids))
    assert rows == list(csv.DictReader(io.StringIO(run("recommend", "run", "--all-users", "-k", 120))))


def test_string_ids_come_back(run, work):
    lines = [f"user {u},film é{i},{u + i}" for u in range(8) for i in range(u, u + 8)]
    (work / "words.csv").write_text("\n".join(["who,what,when", *lines]) + "\n", encoding="utf-8")
    columns = ["--data-user", "who", "--data-item", "what", "--data-time", "when"]
    run("train", "--data-path", "words.csv", *columns, *FAST, "--distill-pool", 9, "--run-out", "words")
    rows = list(csv.DictReader(io.StringIO(run("recommend", "words", "--users", "user 3", "-k", 2))))
    assert [r["user_id"] for r in rows] == ["user 3"] * 2
    assert all(r["item_id"].startswith("film é") for r in rows)


def test_split_once_train_on_it(run, work):
    sizes = json.loads(run("data", "split", "made.csv", "--data-split", "leave_one", "--out", "parts.npz"))
    assert sizes["test"] == 60
    run("train", "--data-train-path", "parts.npz", *FAST, "--distill-resample-every", 1, "--distill-pool", 20)
    assert (work / "runs" / "parts" / "metrics.json").exists()
    assert json.loads(run("data", "describe", "made.csv"))["interactions"] == 1500


def test_times_are_advised_to_be_used(work, capsys, monkeypatch):
    monkeypatch.chdir(work)
    assert main(["data", "describe", "made.csv"]) == 0
    assert "the rows have times: split them by time, as --data-split leave_last does" in capsys.readouterr().err
    assert main(["data", "split", "made.csv", "--data-split", "ratio", "--out", "advised.npz"]) == 0
    assert "the rows have times, but --data-split ratio holds out at random" in capsys.readouterr().err
    assert main(["data", "split", "made.csv", "--out", "by_time.npz", "--data-test", "2"]) == 0
    assert "at random" not in capsys.readouterr().err


def test_split_into_a_folder(run, work):
    run("data", "split", "made.csv", "--data-split", "ratio", "--data-test", "0.2", "--out", "parts")
    assert sorted(p.name for p in (work / "parts").iterdir()) == ["test.csv", "train.csv", "val.csv"]
    names = [f"--data-{name}-path=parts/{name}.csv" for name in ("train", "val", "test")]
    run("train", *names, *FAST, "--run-out", "of_parts")
    assert (
        open_run(work / "of_parts").split.describe()["test"]
        == len((work / "parts" / "test.csv").read_text().splitlines()) - 1
    )


def test_split_into_a_folder_is_all_or_nothing(run, work, monkeypatch):
    written = []

    def fail_second(path, rows):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        Path(path).write_text("rows")

    monkeypatch.setattr(data_command, "write_interactions", fail_second)
    before = sorted(work.iterdir())
    run("data", "split", "made.csv", "--out", "halves", code=2)
    assert len(written) == 2
    assert sorted(work.iterdir()) == before


def test_report_again(run, work):
    (work / "run" / "report.html").unlink()
    assert Path(run("report", "run").strip()) == Path("run/report.html")
    assert (work / "run" / "report.html").exists()


def test_demo_is_train_with_a_control(run, work, monkeypatch):
    """On made-up data in MovieLens' place: the real thing is `make demo`."""
    monkeypatch.setattr(demo, "movielens_100k", lambda cache: Path(cache) / "made.csv")
    monkeypatch.setattr(demo, "SETTINGS", {o.name: o.parse(v) for o in options() for f, v in PAIRS if o.flag == f})
    shutil.copytree(work / "run", work / "runs" / "demo")
    run("demo", "--cache", ".", "--seed", 3, code=2)  # a run is replaced only where that is asked for
    printed = run("demo", "--cache", ".", "--seed", 3, "--overwrite")
    assert printed.count("change by distillation") == 2
    assert "runs/demo/report.html" in printed
    assert open_run(work / "runs" / "demo").config.run.seed == 3
    run("demo", "--cache", ".", "--run-out", "run", code=2)


PAIRS = list(zip(FAST[::2], FAST[1::2], strict=True))


def test_stopped_and_resumed_is_undisturbed(run, work):
    """Stopped by Ctrl-C, then killed, both in the joint phase: it ends with the very same metrics and models."""
    slower = {**dict(PAIRS), "--train-epochs": "14", "--train-patience": "0", "--train-batch-size": "64"}
    slow = [word for pair in slower.items() for word in pair]
    run("train", "--data-path", "made.csv", *slow, "--run-out", "whole")
    starts = ["--data-path", "made.csv", *slow, "--run-out", "cut"], ["--resume", "cut"]
    for arguments, sent, epoch in zip(starts, (signal.SIGINT, signal.SIGKILL), (1, 7), strict=True):
        stderr = cut_off(work, epoch, sent, *arguments)
        if sent == signal.SIGINT:
            assert stderr.splitlines() == ["bidistill: stopped; go on with: bidistill train --resume cut"]
    bidistill("train", "--resume", "cut", cwd=work)
    assert metrics(work / "cut") == metrics(work / "whole")
    assert same_models(work / "cut", work / "whole")


def cut_off(work: Path, epoch: int, sent: signal.Signals, *arguments: str) -> str:
    """What the command said that trains in `cut`, stopped once an epoch of the joint phase is over."""
    command = [sys.executable, "-m", "bidistill", "train", *arguments]
    child = subprocess.Popen(
        command, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    rows = work / "cut" / "metrics.csv"
    while not rows.exists() or f"joint,{epoch}," not in rows.read_text():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    child.send_signal(sent)
    stderr = child.communicate()[1]
    assert not (work / "cut" / "metrics.json").exists(), "the run ended before it could be stopped"
    assert child.returncode == (130 if sent == signal.SIGINT else -sent)
    return stderr


class Interrupted(Callback):
    """Sends Ctrl-C to this process after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, trainer: Trainer) -> None:  # type: ignore[override]
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_control_stopped_and_resumed_is_undisturbed(run, work, capsys, monkeypatch):
    def interrupted(*args):
        trainer = train_control(*args)
        trainer.callbacks.append(Interrupted(8))  # of 6 steps an epoch
        return trainer

    train_control = train.control_of
    monkeypatch.setattr(train, "control_of", interrupted)
    assert main(["train", "run/config.toml", "--run-out", "stopped", "--control"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]  # after warnings about the few epochs
    assert last == "bidistill: stopped; go on with: bidistill train --resume stopped --control"
    before = (work / "stopped" / "control" / "metrics.csv").read_text()
    monkeypatch.setattr(train, "control_of", train_control)
    run("train", "--resume", "stopped", "--control")
    after = (work / "stopped" / "control" / "metrics.csv").read_text()
    assert after.startswith(before)  # with the seconds of each epoch: it went on, and did not start again
    assert len(after) > len(before)
    assert metrics(work / "stopped" / "control") == metrics(work / "run" / "control")


def test_stopped_before_anything_was_saved(run, work, capsys, monkeypatch):
    def stopped(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_split", stopped)
    assert main(["train", "--data-path", "made.csv", "--run-out", "never"]) == 130
    assert capsys.readouterr().err == "bidistill: stopped; nothing was saved\n"
    assert not (work / "never").exists()


def test_output_into_a_closed_pipe(work):
    """`| head` closes the pipe while much is still to come."""
    command = [sys.executable, "-m", "bidistill", "recommend", "run", "--all-users", "-k", "120"]
    child = subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert child.stdout.readline() == "user_id,rank,item_id,score\n"
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(60) == 141


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_explains_itself(capsys):
    top = help_of(capsys)
    for command in ("train", "evaluate", "recommend", "report", "data", "demo"):
        assert command in top
        assert f"usage: bidistill {command}" in help_of(capsys, command)
    for action in ("describe", "split", "generate"):
        assert f"  bidistill data {action} " in help_of(capsys, "data", action)


def test_train_has_a_flag_with_help_and_default_for_every_option(capsys):
    shown = " ".join(help_of(capsys, "train").split())
    for each in options():
        assert each.flag in shown
        assert " ".join(each.help.split()) in shown
    assert "(default: 2.0)" in shown


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("bidistill of bdkernels ")
