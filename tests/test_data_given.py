"""Splits made elsewhere: every row is kept or counted with the reason why not, also from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bidistill import Config
from bidistill.cli import main
from bidistill.data import Split, given_split, read
from bidistill.data.load import load_split
from bidistill.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

PARTS = ("train", "val", "test")
ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(train=ROWS, val=ROWS, test=ROWS)
def test_rows_in_are_rows_kept_and_rows_dropped(train: Any, val: Any, test: Any) -> None:
    """Against sets in plain Python."""
    seen = set(train)
    cold = {user for user, _ in val + test} - {user for user, _ in train}
    kept = {"train": seen, "val": {p for p in {*val} - seen if p[0] not in cold}}
    kept["test"] = {p for p in {*test} - seen - ({*val} - seen) if p[0] not in cold}
    arrays = [np.array(rows) for rows in (train, val, test)]
    if not kept["val"] | kept["test"]:
        with pytest.raises(UserError, match="no held-out row is left"):
            given_split(*arrays, drop_seen_pairs=True, drop_cold_users=True)
        return
    parts = given_split(*arrays, drop_seen_pairs=True, drop_cold_users=True)
    for name in PARTS:
        users, items = parts.part(name)
        found = list(zip(parts.user_ids[users].tolist(), parts.item_ids[items].tolist(), strict=True))
        assert len(found) == len({*found})
        assert {*found} == kept[name]
    assert parts.origin is not None
    assert parts.origin.rows == len(train) + len(val) + len(test)
    assert parts.origin.rows == sum(map(len, kept.values())) + sum(parts.origin.dropped.values())
    for name, rows in zip(PARTS, (train, val, test), strict=True):
        lost = sum(n for why, n in parts.origin.dropped.items() if why.startswith(name))
        assert lost == len(rows) - len(kept[name])
    assert {*parts.user_ids.tolist()} == {user for pairs in kept.values() for user, _ in pairs}


def test_what_is_dropped_is_named() -> None:
    train, test = np.array([[1, 1], [2, 1], [2, 1]]), np.array([[1, 2], [2, 1], [9, 1], [9, 2]])
    with pytest.raises(UserError, match=r"1 \(user, item\) pairs are in train and in test, .* set `drop_seen_pairs`"):
        given_split(train, None, test)
    with pytest.raises(UserError, match="1 of 2 users of part test have no training row, such as 9; .* their 2 rows"):
        given_split(train, None, test, drop_seen_pairs=True)
    parts = given_split(train, None, test, drop_seen_pairs=True, drop_cold_users=True)
    assert parts.describe()["rows_read"] == 7
    assert parts.describe()["rows_dropped"] == {
        "train: repeated (user, item) pair": 1,
        "test: pair is in train": 1,
        "test: user without a training row": 2,
    }


def test_what_reading_dropped_is_counted_in_a_split(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user,item,rating,time\n" + "".join(f"1,{i},{i % 5},{i}\n" for i in range(20)) + "1,4,4,50\n")
    parts = load_split(Config().with_overrides({"data.path": str(path), "data.min_rating": 1.0}).data)
    assert parts.describe()["rows_read"] == 21
    assert parts.describe()["rows_dropped"] == {"rated below `min_rating`": 4, "repeated (user, item) pair": 1}
    assert parts.describe()["train"] + 2 + 5 == 21


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """arrays.npz (train, val, test), saved.npz (a saved split), rows.csv."""
    monkeypatch.chdir(tmp_path)
    rows = np.array([[user, item] for user in range(6) for item in range(user, user + 6)])
    parts = {"train": rows[rows[:, 1] % 3 == 0], "val": rows[rows[:, 1] % 3 == 1], "test": rows[rows[:, 1] % 3 == 2]}
    np.savez("arrays.npz", **parts)
    given_split("arrays.npz").save("saved.npz")
    Path("rows.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{i // 9}\n" for u, i in rows))
    return tmp_path


@pytest.mark.parametrize("name", ["arrays.npz", "saved.npz"])
def test_a_file_that_is_split_already_is_taken_as_it_is(files: Path, name: str, capsys: Any) -> None:
    expected = Split.load("saved.npz")
    for option in ("data.path", "data.train_path"):
        parts = load_split(Config().with_overrides({option: name}).data)
        assert parts.fingerprint() == expected.fingerprint()
        assert parts.origin is not None
        assert parts.origin.notes[0].startswith(f"{name} is split already and is taken as it is")
    assert main(["data", "describe", name]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["test"] == len(expected.test_users)
    assert "split already" in printed.err
    assert main(["data", "split", name, "--out", "again.npz"]) == 0
    assert Split.load("again.npz").fingerprint() == expected.fingerprint()
    assert "split already" in capsys.readouterr().err
    for flags in (["--data-split", "ratio"], ["--data-val", "2"], ["--data-split-seed", "1"]):
        assert main(["data", "split", name, *flags, "--out", "no.npz"]) == 2
        assert f"{name} is split already, so data." in capsys.readouterr().err
    assert not Path("no.npz").exists()


def test_options_that_would_be_ignored_are_refused(files: Path) -> None:
    for settings_, expected in (
        (
            {"data.path": "saved.npz", "data.min_rating": 3.0},
            r"saved\.npz is a saved split, so data\.min_rating does not",
        ),
        ({"data.path": "rows.csv", "data.drop_cold_users": True}, r"not split yet, so data\.drop_cold_users does not"),
        ({"data.path": "rows.csv", "data.test_path": "rows.csv"}, r"data\.path and data\.test_path are both set"),
        ({"data.test_path": "rows.csv"}, r"set data\.path .*; data\.test_path is held out only"),
        ({"data.train_path": "rows.csv", "data.val_path": "saved.npz"}, r"part val: saved\.npz holds a whole split"),
    ):
        with pytest.raises(UserError, match=expected):
            load_split(Config().with_overrides(settings_).data)


def test_drops_on_the_command_line(files: Path, capsys: Any) -> None:
    arrays = dict(np.load("arrays.npz"))
    np.savez("cold.npz", **(arrays | {"test": np.concatenate([arrays["test"], [[77, 1], [77, 2]]])}))
    assert main(["data", "split", "cold.npz", "--out", "s.npz"]) == 2
    assert "set --data-drop-cold-users to drop their 2 rows" in capsys.readouterr().err
    assert main(["data", "split", "cold.npz", "--out", "s.npz", "--data-drop-cold-users", "true"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows_dropped"] == {"test: user without a training row": 2}
    assert "38 rows = 36 kept + 2 dropped (2 test: user without a training row)" in printed.err
    assert "1 users without a training row are dropped, such as 77" in printed.err
    assert 77 not in Split.load("s.npz").user_ids


def test_ties_on_the_command_line(files: Path, capsys: Any) -> None:
    assert main(["data", "split", "rows.csv", "--out", "s.npz"]) == 0
    printed = capsys.readouterr()
    sizes = json.loads(printed.out)
    assert sizes["ties_at_cut_users"] == 6
    assert "ties at the cut: 6 of 6 evaluated users (100.0%)" in printed.err
    assert "warning: for these users the split is not one by time" in printed.err


def test_parts_in_files_count_rows_too(files: Path) -> None:
    data = read("rows.csv")
    parts = given_split(data, None, np.array([[0, 99]]))
    assert parts.origin is not None and (parts.origin.rows, dict(parts.origin.dropped)) == (37, {})
