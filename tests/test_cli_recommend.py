"""Lists of users as people write them, users whom the run does not know, and cells that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bidistill.cli import main, train

FLAGS = ["--train-pretrain-epochs", "1", "--train-epochs", "0", "--eval-ks", "2", "--train-monitor", "ndcg@2", "--teacher-dim",
         "2", "--student-dim", "1", "--run-progress", "false", "--data-time", "when", "--distill-method", "none"]  # fmt: skip
USERS = ["=1+1", "-a", "--b", "7", "-5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recommend")
    rows = [f"{user},{item},{n}" for user in USERS for n, item in enumerate(["@x", "b", "c", "d"])]
    (path / "rows.csv").write_text("\n".join(["user,item,when", *rows, "7,e,9", "7,f,10", "-a,e,9"]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(train, "write_report", lambda folder: folder / "report.html")
        assert main(["train", "--data-path", "rows.csv", *FLAGS, "--run-out", "run"]) == 0
    return path


@pytest.fixture
def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    monkeypatch.chdir(folder)

    def call(*words: str, code: int = 0) -> tuple[list[dict[str, str]], str]:
        capsys.readouterr()
        assert main(["recommend", "run", "-k", "1", *words]) == code
        printed = capsys.readouterr()
        return list(csv.DictReader(io.StringIO(printed.out))), printed.err

    return call


def users(rows: list[dict[str, str]]) -> list[str]:
    return [row["user_id"] for row in rows]


def test_ids_that_look_like_flags_and_lists_in_parts(ask: Any) -> None:
    assert users(ask("--users", "-a", "=1+1", "--mapped")[0]) == ["-a", "=1+1"]
    assert users(ask("--users=-a", "--users=--b")[0]) == ["-a", "--b"]
    assert users(ask("--users", "-5", "--users", "-a")[0]) == ["-5", "-a"]
    rows, told = ask("--users", "-a", "-a", "-5")
    assert users(rows) == ["-a", "-5"]
    assert "1 of 3 ids are repeated" in told
    assert "does not know '--modle'" in ask("--users", "-a", "--modle", "teacher", code=2)[1]
    assert "-k is given twice" in ask("--users", "-a", "-k", "2", code=2)[1]
    assert "write --flag=VALUE" in ask("--users", code=2)[1]


def test_users_files(ask: Any) -> None:
    Path("bom.txt").write_bytes("\ufeff-a\r\n=1+1\r\n".encode())
    assert users(ask("--users-file", "bom.txt")[0]) == ["-a", "=1+1"]
    Path("wide.txt").write_bytes("-a\n".encode("utf-16"))
    assert (
        "wide.txt is not UTF-8 text but looks like UTF-16; save it as UTF-8"
        in ask("--users-file", "wide.txt", code=2)[1]
    )


def test_unknown_users(ask: Any) -> None:
    rows, told = ask("--users", "nobody", "-a", "none", code=3)
    assert users(rows) == ["-a"]
    assert "2 of 3 users are not in the data of the run: nobody, none; they are left out" in told
    rows, told = ask("--users", "nobody", "-a", "none", "--unknown", "popular")
    assert users(rows) == ["nobody", "-a", "none"]
    assert [row["item_id"] for row in rows][::2] == ["@x", "@x"]
    assert [bool(row["score"]) for row in rows] == [False, True, False]
    assert "2 of 3 users" in ask("--users", "nobody", "-a", "none", "--unknown", "error", code=2)[1]
    assert "1 of 1 users" in ask("--users", "nobody", "--out", "no.csv", code=2)[1]
    assert not Path("no.csv").exists()
    ask("--users", "nobody", "-a", "--unknown", "popular", "--out", "best.parquet")
    assert [row["score"] is None for row in pq.read_table("best.parquet").to_pylist()] == [True, False]


def test_fewer_rows_are_counted(ask: Any) -> None:
    rows, told = ask("--users", "7", "-a")
    assert users(rows) == ["-a"]
    assert "1 users have fewer than 1 unseen items and get fewer rows" in told


def test_formulas_are_escaped_on_demand(ask: Any) -> None:
    assert users(ask("--users", "=1+1", "-a", "--escape-formulas")[0]) == ["'=1+1", "'-a"]
    rows, _ = ask("--users", "nobody", "--unknown", "popular", "--escape-formulas")
    assert (rows[0]["user_id"], rows[0]["item_id"]) == ("nobody", "'@x")
    assert "is for CSV" in ask("--users", "-a", "--escape-formulas", "--out", "a.parquet", code=2)[1]


def test_generate_prints_what_the_file_holds(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "made.csv"
    assert (
        main(["data", "generate", "--users", "20", "--items", "900", "--interactions", "100", "--out", str(path)]) == 0
    )
    held = len({line.split(",")[1] for line in path.read_text().splitlines()[1:]})
    assert held < 900
    assert f"100 interactions of 20 users with {held:,} items of the 900 asked for" in capsys.readouterr().out
