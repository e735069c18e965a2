"""Data at scale: rows written as they are made, memory that does not grow with them, and disks that fill up."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bidistill.cli import main
from bidistill.data import Interactions, Split, generate, read, split, synthetic, write_interactions
from bidistill.errors import UserError
from bidistill.files import access
from bidistill.files.access import require_room

FORMATS = ("csv", "tsv", "parquet", "npz")
SIZES = ("--users", "300", "--items", "200", "--interactions", "9000")


def command(*arguments: Any) -> list[str]:
    return ["data", "generate", *map(str, arguments)]


def child(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, with this one's module path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_file_holds_what_the_function_returns(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK", 1000)
    path = tmp_path / "deep" / f"made.{suffix}"
    assert main(command(*SIZES, "--seed", 3, "--dim", 4, "--zipf", 0.5, "--out", path)) == 0
    made = read(path)
    expected, _, _ = generate(300, 200, 9000, seed=3, dim=4, zipf=0.5)
    assert made.user_ids[made.users].tolist() == expected.users.tolist()
    assert made.item_ids[made.items].tolist() == expected.items.tolist()
    assert made.times is not None and expected.times is not None
    assert made.times.tolist() == expected.times.tolist()
    assert set(path.parent.iterdir()) == {path, path.with_name("made.generator.safetensors")}


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_with_strings_are_written_in_blocks_too(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bidistill.data.write.ROWS", 7)
    names = np.array([f"{'long' * (n % 5)}{n:02}" for n in range(30)], dtype=object)
    order = np.argsort(names)
    data = Interactions(
        np.arange(30), np.arange(30)[::-1].copy(), np.arange(30) / 4, names[order], np.arange(30) * 2**40
    )
    path = tmp_path / f"a.{suffix}"
    write_interactions(path, data)
    assert read(path).fingerprint() == data.fingerprint()


MEMORY = """
import json, sys
from bidistill.cli import main
from bidistill.data import read, split

def status(key):  # MB
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1024

def peak(run):
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    result = run()
    return result, status("VmHWM") - before

small = ["--users", "20000", "--items", "20000", "--interactions", "300000"]
main(["data", "generate", *small, "--out", sys.argv[1]])  # libraries, thread pools, a block
split(read(sys.argv[1]))
sizes = ["--users", "200000", "--items", "200000", "--interactions", "2000000"]
done, generating = peak(lambda: main(["data", "generate", *sizes, "--out", sys.argv[1]]))
data, reading = peak(lambda: read(sys.argv[1]))
parts, splitting = peak(lambda: split(data))
kept = len(data) + len(parts.train_users) + len(parts.val_users) + len(parts.test_users)
print(json.dumps([done, kept, generating, reading, splitting]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_at_two_million_rows(tmp_path: Path) -> None:
    done = child(MEMORY, tmp_path / "made.csv")
    assert done.returncode == 0, done.stderr
    failed, kept, generating, reading, splitting = json.loads(done.stdout.splitlines()[-1])
    print(f"MB above the start: generate {generating:.0f}, read {reading:.0f}, split {splitting:.0f}")
    assert (failed, kept) == (0, 4_000_000)
    assert generating < 75  # two tables of 13 MB and a block: 51. With all rows in memory it took 99
    assert reading < 350  # the text, and 48 MB of numbers: 200 to 230
    assert splitting < 150  # 70 to 76


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("suffix", ["csv", "npz"])
@pytest.mark.usefixtures("heard_signals")
def test_a_signal_leaves_nothing(
    number: signal.Signals, status: int, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "BLOCK", 1000)
    blocks = synthetic.Population.blocks

    def interrupted(self: synthetic.Population) -> Iterator[Any]:
        for place, block in enumerate(blocks(self)):
            if place == 3:
                assert len(list(tmp_path.iterdir())) == 2  # the older file, and what is written
                signal.raise_signal(number)
            yield block

    monkeypatch.setattr(synthetic.Population, "blocks", interrupted)
    path = tmp_path / f"made.{suffix}"
    path.write_text("older")
    before = signal.getsignal(number)
    try:
        ended = main(command(*SIZES, "--out", path))
    except SystemExit as error:
        ended = error.code
    assert ended == status
    assert signal.getsignal(number) == before
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "older"


LIMITED = """
import json, resource, sys
from bidistill.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
for line in json.loads(sys.argv[1]):
    print(main(line), flush=True)
"""


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of a file makes writing fail with an error as a full disk does."""
    source = tmp_path / "source.csv"
    assert main(command(*SIZES, "--out", source)) == 0
    out = tmp_path / "out"
    out.mkdir()
    lines = [command(*SIZES, "--out", out / f"made.{suffix}") for suffix in FORMATS]
    lines += [["data", "split", str(source), "--out", str(out / name)] for name in ("parts.npz", "parts")]
    done = child(LIMITED, json.dumps(lines))
    assert done.stdout.split() == ["2"] * len(lines), done.stderr
    messages = done.stderr.splitlines()
    assert len(messages) == len(lines)
    for message in messages:
        assert message.startswith("bidistill: error: cannot write ")
        assert "File too large; choose another place" in message
    assert not list(out.iterdir())


def test_a_disk_without_room_is_seen_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_room(tmp_path / "a", 1)
    with pytest.raises(
        UserError, match=r"cannot write .*: it needs about 1,000,000,000,000.0 MB more and the disk has"
    ):
        require_room(tmp_path / "a", 10**18)
    parts = split(generate(300, 200, 9000)[0])
    monkeypatch.setattr(access.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000_000})())
    monkeypatch.setattr(synthetic, "BLOCK", 1 << 15)
    sizes = ("--users", 1000, "--items", 20_000, "--interactions", 5_000_000)
    for suffix, rough in (("csv", 90), ("parquet", 50), ("npz", 240)):
        assert main(command(*sizes, "--out", tmp_path / f"made.{suffix}")) == 2
        message = capsys.readouterr().err
        assert "and the disk has 10.0 MB free; make room" in message
        needed = float(message.split("about ")[1].split(" MB")[0].replace(",", ""))
        assert rough / 2 < needed < rough * 1.5
    monkeypatch.setattr(access.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    with pytest.raises(UserError, match=r"parts\.npz: it needs about 0\.1 MB more"):
        parts.save(tmp_path / "parts.npz")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(self: synthetic.Population) -> Iterator[Any]:
        yield pytest.fail("rows were made")

    monkeypatch.setattr(synthetic.Population, "blocks", never)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "pipe.csv").symlink_to("/dev/full")
    for name, reason in (
        ("file/a.csv", "file is no folder"),
        ("folder.csv", "no regular file"),
        ("pipe.csv", "no regular"),
    ):
        assert main(command(*SIZES, "--out", tmp_path / name)) == 2
        message = capsys.readouterr().err
        assert f"cannot write {tmp_path / name}" in message
        assert reason in message
    assert main(command(*SIZES, "--out", tmp_path / "a.xlsx")) == 2
    assert "cannot write the format '.xlsx'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.csv", "pipe.csv"]


def test_progress_where_stderr_is_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        stderr = io.StringIO()
        stderr.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(command(*SIZES, "--out", tmp_path / "a.csv")) == 0
        assert ("generate" in stderr.getvalue() and "9.00k" in stderr.getvalue()) == terminal


def test_whole_numbers_in_text_are_read_as_they_are_written(tmp_path: Path) -> None:
    """The quick way to whole numbers is taken only where it means the same."""
    path = tmp_path / "a.csv"
    for texts, expected in (
        (["10", "9", "0"], [0, 9, 10]),
        (["10", "09", "0"], ["0", "09", "10"]),
        (["00", "0"], ["0", "00"]),
        (["10", " 9", "0"], [0, 9, 10]),
        (["-0", "1"], ["-0", "1"]),
        (["+5", "1"], ["+5", "1"]),
        ([str(10**power - 1) for power in range(1, 19)], [10**power - 1 for power in range(1, 19)]),
        ([str(10**power) for power in range(19)], [10**power for power in range(19)]),
        ([str(2**53 - 1), str(2**53), str(2**63 - 1)], [2**53 - 1, 2**53, 2**63 - 1]),
        ([str(2**31 - 1), str(2**31), str(2**32)], [2**31 - 1, 2**31, 2**32]),
    ):
        path.write_text("user,item\n" + "".join(f"{text},1\n" for text in texts))
        assert read(path).user_ids.tolist() == expected


def test_places_by_table_and_by_hash_agree() -> None:
    rng = np.random.default_rng(0)
    few = rng.integers(0, 900, (2000, 2))
    dense, sparse = read(few), read(few * 2**40)
    assert (dense.user_ids * 2**40 == sparse.user_ids).all()
    assert (dense.users == sparse.users).all()
    assert (dense.item_ids * 2**40 == sparse.item_ids).all()
    assert dense.user_ids.dtype == sparse.user_ids.dtype == dense.users.dtype == np.int64


def test_a_saved_split_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    split(generate(300, 200, 9000)[0]).save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"parts\.npz: not a NumPy archive, or damaged"):
            Split.load(path)
        with pytest.raises(UserError, match=r"parts\.npz: not a NumPy archive, or damaged"):
            Split.is_saved(path)
