"""MovieLens-100K out of a wheel: cached, checked, and a clear sentence for every way to fail."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bidistill.data import movielens, movielens_100k, read
from bidistill.errors import UserError

CONTENT = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"


class FakePip:
    """Stands in for subprocess.run: writes a wheel with the given member into pip's --dest folder."""

    def __init__(self, member: str = movielens.MEMBER, content: bytes = CONTENT) -> None:
        self.member, self.content, self.calls = member, content, 0

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.calls += 1
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert movielens.PACKAGE in command
        folder = Path(next(part for part in command if part.startswith("--dest=")).removeprefix("--dest="))
        with zipfile.ZipFile(folder / "recbole-1.2.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(movielens, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return fake


def test_taken_out_once_and_kept(pip: FakePip, tmp_path: Path) -> None:
    path = movielens_100k(tmp_path / "cache")
    assert path == tmp_path / "cache" / "ml-100k.inter"
    assert path.read_bytes() == CONTENT
    assert movielens_100k(str(tmp_path / "cache")) == path
    assert pip.calls == 1
    assert list(path.parent.iterdir()) == [path]
    data = read(path)
    assert (data.user_ids[0], data.item_ids[0]) == (196, 242)


def test_another_file_of_that_name_is_not_replaced(pip: FakePip, tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_bytes(CONTENT[:-5])
    with pytest.raises(
        UserError, match=r"ml-100k\.inter is there but is not the file expected .*; remove or rename it"
    ):
        movielens_100k(tmp_path)
    assert (tmp_path / "ml-100k.inter").read_bytes() == CONTENT[:-5]
    assert pip.calls == 0


@pytest.mark.usefixtures("pip")
def test_an_unexpected_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for fake, expected in (
        (FakePip(member="recbole/other.txt"), "recbole-1.2.1-py3-none-any.whl lacks recbole/dataset_example"),
        (FakePip(content=CONTENT + b"x"), "is not the file expected"),
    ):
        monkeypatch.setattr(subprocess, "run", fake)
        with pytest.raises(UserError, match=expected) as caught:
            movielens_100k(tmp_path)
        assert f"by hand as {tmp_path / 'ml-100k.inter'}" in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found\n")

    def hangs(*_: Any, **__: Any) -> SimpleNamespace:
        raise subprocess.TimeoutExpired("pip", 300)

    for fake, expected in ((fails, "No matching distribution found"), (hangs, "timed out after 300 seconds")):
        monkeypatch.setattr(subprocess, "run", fake)
        with pytest.raises(UserError, match=expected) as caught:
            movielens_100k(tmp_path)
        assert f"by hand as {tmp_path / 'ml-100k.inter'}" in str(caught.value)


@pytest.mark.usefixtures("pip")
def test_an_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*ml-100k\.inter"):
        movielens_100k(tmp_path / "file")


def test_the_real_file(tmp_path: Path) -> None:
    try:
        path = movielens_100k(tmp_path)
    except UserError as error:
        if "pip download" not in str(error):
            raise
        pytest.skip(f"MovieLens-100K cannot be downloaded here: {error}")
    data = read(path)
    assert (len(data), data.n_users, data.n_items, data.duplicates) == (100_000, 943, 1682, 0)
    assert read(path, min_rating=4).below_threshold == 100_000 - 55_375
