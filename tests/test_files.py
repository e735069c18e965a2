"""Files are written whole, kept through a power cut, under the user's umask; the system's errors are no damage."""

import fcntl
import os
import resource

import numpy as np
import pytest
import torch
from bidistill import UserError, generate, split
from bidistill.data import Split
from bidistill.files.access import load_npz, new_folder, replacing
from bidistill.runs.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def calls(monkeypatch):
    """What reaches the disk, in its order: (what, name)."""
    seen = []

    def told(module, name, place):
        real = getattr(module, name)

        def run(*arguments, **options):
            seen.append((name, place(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, run)

    def named(file):
        return os.path.basename(os.readlink(f"/proc/self/fd/{file}"))

    told(os, "fsync", named)
    told(os, "replace", lambda source, target: os.path.basename(target))
    told(os, "unlink", lambda path, **_: os.path.basename(path))
    return seen


def test_a_file_is_synced_before_its_name_and_its_folder_after(tmp_path, calls):
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    steps = [(what, name.startswith(".a.txt.unfinished") or name) for what, name in calls if what != "unlink"]
    assert steps == [("fsync", True), ("replace", "a.txt"), ("fsync", tmp_path.name)]


def test_old_tensors_go_when_the_disk_has_the_new_state(tmp_path, calls):
    save_checkpoint(tmp_path, {"a": torch.zeros(3)}, {"epoch": 1})
    calls.clear()
    save_checkpoint(tmp_path, {"a": torch.ones(3)}, {"epoch": 2})
    names = [f"{what} {name}" for what, name in calls if "unfinished" not in name]
    new = names.index("replace tensors-b.safetensors")
    state = names.index("replace state.json")
    old = names.index("unlink tensors-a.safetensors")
    folder = [i for i, name in enumerate(names) if name == f"fsync {tmp_path.name}"]
    assert any(new < i < state for i in folder) and any(state < i < old for i in folder)
    assert load_checkpoint(tmp_path)[1] == {"epoch": 2}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_follow_the_umask_which_is_never_changed(tmp_path, monkeypatch, mask):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask is the whole process's"))
            save_checkpoint(tmp_path / "checkpoint", {"a": torch.zeros(3)}, {})
            split(generate(20, 30, 200, dim=2)[0], "leave_one").save(tmp_path / "split.npz")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.glob("**/*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask} and len(files) == 3


def test_what_a_killed_process_has_left_is_removed_but_not_what_is_being_written(tmp_path):
    dead, alive, other = (tmp_path / f".{name}" for name in ("a.unfinished.1", "a.unfinished.2", "b.unfinished.3"))
    for path in (dead, alive, other):
        path.write_text("half")
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("new")
        assert {path.name for path in tmp_path.iterdir()} == {"a", alive.name, other.name}


def test_a_sound_file_is_not_called_damaged_where_the_system_has_no_more_open_files(tmp_path):
    parts = split(generate(20, 30, 200, dim=2)[0], "leave_one")
    parts.save(tmp_path / "split.npz")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.open(os.devnull, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))  # no number is left: all below are taken, or
        taken = []
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(UserError, match=r"split\.npz: Too many open files; let the process open more files"):
            Split.load(tmp_path / "split.npz")
        with pytest.raises(UserError, match=r"cannot write .*: Too many open files"), replacing(tmp_path / "new"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in (*taken, highest):
            os.close(each)
    assert Split.load(tmp_path / "split.npz").fingerprint() == parts.fingerprint()


def test_damage_is_called_damage(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(100))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"not a NumPy archive, or damaged"):
        load_npz(path)


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    dead, alive = tmp_path / ".parts.unfinished.1", tmp_path / ".parts.unfinished.2"
    for path in (dead, alive):
        path.mkdir()
        (path / "train.csv").write_text("half")
    number = os.open(alive, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "parts") as temporary:
            (temporary / "train.csv").write_text("whole")
    finally:
        os.umask(before)
    assert {path.name for path in tmp_path.iterdir()} == {"parts", alive.name}
    os.close(number)
    assert (tmp_path / "parts").stat().st_mode & 0o777 == 0o750
    with pytest.raises(UserError, match="cannot write .*parts: Directory not empty"), new_folder(tmp_path / "parts"):
        pass
    with pytest.raises(KeyError), new_folder(tmp_path / "other"):
        raise KeyError
    assert not (tmp_path / "other").exists()
