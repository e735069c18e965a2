"""Bad input on the command line: exit code 2, one sentence that names the file, column or option, nothing half-written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bidistill.cli import main, train

GOOD = "user,item,time\n" + "".join(f"{u},{i},{u * 10 + i}\n" for u in range(6) for i in range(u, u + 6))
FAST = ["--train-pretrain-epochs", "1", "--train-epochs", "1", "--eval-ks", "2", "--train-monitor", "ndcg@2",
        "--teacher-dim", "2", "--student-dim", "1", "--run-progress", "false", "--train-negatives", "1",
        "--distill-pool", "4"]  # fmt: skip


def fast(*flags: str) -> list[str]:
    """These flags, and those of FAST that they do not give."""
    pairs = [*zip(FAST[::2], FAST[1::2], strict=True), *zip(flags[::2], flags[1::2], strict=True)]
    return [word for pair in dict(pairs).items() for word in pair]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text(GOOD)
    return tmp_path


def refuse(capsys, *args: object) -> str:
    """Run, expect exit code 2, and return the one line on stderr."""
    before = sorted(p for p in Path.cwd().rglob("*"))
    capsys.readouterr()
    assert main([str(a) for a in args]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("bidistill: error: ")
    assert sorted(p for p in Path.cwd().rglob("*")) == before, "something was written"
    return lines[0]


DATA = [
    ("empty", "", ["empty"]),
    ("only a header", "user,item,time\n", ["no", "row"]),
    ("a column is missing", "user,thing,time\n1,2,3\n", ["item", "thing"]),
    ("NaN id", "user,item,time\n1,2,3\n,5,6\n", ["user", "row"]),
    ("negative id", "user,item,time\n1,2,3\n-4,5,6\n", ["user", "-4"]),
    ("ragged rows", "user,item,time\n1,2,3\n4,5\n", ["data.csv"]),
    ("one item", "user,item,time\n1,7,1\n2,7,2\n3,7,3\n", ["item"]),
    ("no one to evaluate", "user,item,time\n1,7,1\n2,8,2\n3,9,3\n", ["user"]),
    ("a rating is no number", "user,item,time,rating\n1,2,3,good\n", ["rating"]),
]


@pytest.mark.parametrize(("text", "words"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_data(here, capsys, text, words):
    Path("data.csv").write_text(text)
    extra = ["--data-min-rating", 3] if "rating" in text else []
    message = refuse(capsys, "train", "--data-path", "data.csv", *extra, *FAST)
    for word in words:
        assert word in message.lower(), message


def test_missing_files(here, capsys):
    assert "nowhere.csv" in refuse(capsys, "train", "--data-path", "nowhere.csv")
    assert "data.path" in refuse(capsys, "train")
    assert "nowhere.toml" in refuse(capsys, "train", "nowhere.toml")
    assert "nowhere" in refuse(capsys, "evaluate", "nowhere")
    assert "nowhere" in refuse(capsys, "recommend", "nowhere", "--users", 1)
    assert "nowhere" in refuse(capsys, "report", "nowhere")
    assert "nowhere" in refuse(capsys, "train", "--resume", "nowhere")
    assert "nowhere" in refuse(capsys, "data", "describe", "nowhere.csv")


SETTINGS = [
    (["--eval-ks", "500", "--train-monitor", "ndcg@500"], ["eval.ks", "500", "11"]),
    (["--distill-samples", "99"], ["distill.samples", "99", "11"]),
    (["--teacher-dim", "0"], ["teacher.dim", "at least 1"]),
    (["--teacher-lr", "fast"], ["teacher.lr", "'fast'"]),
    (["--distill-side", "left"], ["distill.side", "over, under"]),
    (["--distill-to-student-alpha", "-1"], ["distill.to_student.alpha", "above 0"]),
    (["--train-monitor", "ndcg@7"], ["train.monitor", "ndcg@7"]),
    (["--distil-lambda-student", "1"], ["--distil-lambda-student", "did you mean --distill-lambda-student"]),
    (["--run-device", "gpu9"], ["run.device", "gpu9"]),
    (["--preset", "best"], ["preset", "best"]),
    (["--data-user", "person"], ["person", "user"]),
]


@pytest.mark.parametrize(("flags", "words"), SETTINGS, ids=[s[0][0] for s in SETTINGS])
def test_settings(here, capsys, flags, words):
    message = refuse(capsys, "train", "--data-path", "good.csv", *fast(*flags))
    for word in words:
        assert word in message, message


def test_typos_in_a_config(here, capsys):
    Path("c.toml").write_text("[distill]\nlambda_studnet = 1.0\n")
    message = refuse(capsys, "train", "c.toml", "--data-path", "good.csv")
    assert "c.toml" in message
    assert "distill.lambda_student" in message
    Path("c.toml").write_text("[distill\n")
    assert "c.toml" in refuse(capsys, "train", "c.toml")


def test_unwritable_folder(here, capsys):
    Path("file").write_text("")
    message = refuse(capsys, "train", "--data-path", "good.csv", *FAST, "--run-out", "file/run")
    assert "file/run" in message
    assert "file" in refuse(
        capsys, "data", "generate", "--users", 5, "--items", 9, "--interactions", 20, "--out", "file/x.csv"
    )


def test_impossible_backend(here, capsys, monkeypatch):
    monkeypatch.setenv("BDKERNELS_BACKEND", "fastest")
    assert "BDKERNELS_BACKEND" in refuse(capsys, "train", "--data-path", "good.csv", *FAST)


def test_contradictions_and_wrong_values(here, capsys):
    assert "data.train_path" in refuse(capsys, "train", "--data-path", "good.csv", "--data-train-path", "good.csv")
    assert "--preset" in refuse(capsys, "train", "--resume", "run", "--preset", "paper")
    assert "--run-out" in refuse(capsys, "train", "--resume", "run", "--run-out", "other")
    generate = ["data", "generate", "--users", 9, "--items", 9, "--out", "made.csv"]
    assert "--interactions must" in refuse(capsys, *generate, "--interactions", 80)
    assert "--seed" in refuse(capsys, *generate, "--interactions", 20, "--seed", -1)
    assert "'many'" in refuse(capsys, *generate, "--interactions", "many")
    assert ".xlsx" in refuse(capsys, *generate[:-1], "made.xlsx", "--interactions", 20)
    assert "leaves no user" in refuse(capsys, "data", "split", "good.csv", "--data-test", 50, "--out", "s.npz")
    assert "--users" in refuse(capsys, "recommend", "run")


def test_one_sentence_from_a_process_of_its_own(here):
    """No traceback, and exit code 2, also outside of the tests' own process."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "python")])}
    command = [sys.executable, "-m", "bidistill", "train", "--data-path", "nowhere.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bidistill: error: nowhere.csv: there is no such file; check the path\n"


def test_unknown_command_and_no_command(here, capsys):
    assert "trian" in refuse(capsys, "trian")
    assert "COMMAND" in refuse(capsys)
    assert "ACTION" in refuse(capsys, "data")


@pytest.fixture
def finished(here, capsys, monkeypatch) -> Path:
    monkeypatch.setattr(train, "write_report", lambda folder: folder / "report.html")  # drawing takes seconds
    assert main(["train", "--data-path", "good.csv", *FAST, "--run-out", "run"]) == 0
    return here


def test_finished_runs_are_safe_and_damage_is_named(finished, capsys):
    assert "holds a run already" in refuse(capsys, "train", "--data-path", "good.csv", *FAST, "--run-out", "run")
    assert "1 of 1 users are not in the data of the run: 99" in refuse(capsys, "recommend", "run", "--users", 99)
    assert "-k must lie between 1 and" in refuse(capsys, "recommend", "run", "--users", 1, "-k", 50)
    assert "--ks must lie between 1 and" in refuse(capsys, "evaluate", "run", "--ks", 50)
    assert ".csv or .parquet" in refuse(capsys, "recommend", "run", "--users", 1, "--out", "x.json")
    assert "--ks must be whole numbers" in refuse(capsys, "evaluate", "run", "--ks", "ten")
    Path("none.txt").write_text("\n")
    assert "none.txt" in refuse(capsys, "recommend", "run", "--users-file", "none.txt")
    assert "gone.txt" in refuse(capsys, "recommend", "run", "--users-file", "gone.txt")
    assert "train.loss" in refuse(capsys, "train", "--resume", "run", "--train-loss", "bpr")
    for name in ("student.safetensors", "split.npz"):
        whole = (Path("run") / name).read_bytes()
        (Path("run") / name).write_bytes(whole[: len(whole) // 2])
        assert name in refuse(capsys, "evaluate", "run")
        (Path("run") / name).write_bytes(whole)
    for path in sorted(Path("run/checkpoint").rglob("*")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert "checkpoint" in refuse(capsys, "train", "--resume", "run")
        path.write_bytes(whole)
    Path("run/metrics.json").rename("kept.json")
    assert "resume" in refuse(capsys, "evaluate", "run")
    Path("kept.json").rename("run/metrics.json")
    shutil.rmtree("run/checkpoint")
    assert "checkpoint" in refuse(capsys, "train", "--resume", "run")


def test_another_split_is_refused(finished, capsys):
    Path("run/split.npz").unlink()
    other = np.array([[u, i] for u in range(6) for i in range(6)])
    np.savez("other.npz", train=other[other[:, 1] < 4], val=other[other[:, 1] == 4], test=other[other[:, 1] == 5])
    assert main(["data", "split", "good.csv", "--data-split", "leave_one", "--out", "run/split.npz"]) == 0
    assert "another split" in refuse(capsys, "train", "--resume", "run")


def test_one_user_and_tiny_data_train(here, capsys):
    """The smallest data that can be trained on is."""
    Path("one.csv").write_text("user,item,time\n" + "".join(f"7,{i},{i}\n" for i in range(4)))
    assert main(["train", "--data-path", "one.csv", *FAST, "--run-out", "one", "--control"]) == 0
    Path("full.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{i}\n" for u in range(3) for i in range(4)))
    assert main(["train", "--data-path", "full.csv", *FAST, "--run-out", "full"]) == 0


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_read_only_folder(here, capsys):
    Path("locked").mkdir(mode=0o500)
    assert "locked" in refuse(capsys, "train", "--data-path", "good.csv", *FAST, "--run-out", "locked/run")
