"""Damage to every file of a run folder, then every command: the sound folder's result, or one sentence. Never a traceback."""

import json
import os
import shutil

import numpy as np
import pytest
from bidistill import Config, Trainer, UserError, generate, split
from bidistill.cli import main
from bidistill.files.records import read_record, write_record
from bidistill.runs.folder import LOCK, RunFolder
from bidistill.runs.records import Finished

SETTINGS = {
    "teacher.dim": 4, "student.dim": 2, "train.batch_size": 256, "train.pretrain_epochs": 1, "train.epochs": 1,
    "train.monitor": "ndcg@3", "eval.ks": (3,), "run.progress": False, "distill.pool": 4,
}  # fmt: skip
COMMANDS = (["evaluate", "run", "--json"], ["recommend", "run", "--all-users", "-k", "2"])


@pytest.fixture(scope="module")
def parts():
    return split(generate(30, 40, 400, dim=3, seed=3)[0], "leave_one")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, parts):
    """A folder with a finished run, and what the commands print of it."""
    home = tmp_path_factory.mktemp("damage")
    config = Config().with_overrides(SETTINGS | {"run.out": str(home / "run")})
    Trainer(config, parts).fit()
    return home


@pytest.fixture
def work(sound, tmp_path, monkeypatch):
    shutil.copytree(sound / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def flip(data: bytes, rng) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


def half(data: bytes, rng) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


SPOILS = {
    "bit": flip,
    "another bit": flip,
    "cut": lambda data, rng: data[: len(data) // 2],
    "half zero": half,
    "empty": lambda data, rng: b"",
}
FILES = ("config.toml", "split.npz", "metrics.csv", "metrics.json", "files.json", "teacher.safetensors",
         "student.safetensors", "pretrained/teacher.safetensors", "pretrained/student.safetensors", "checkpoint/state.json",
         "checkpoint/tensors")  # fmt: skip


def said(capsys, command) -> tuple[int, str]:
    capsys.readouterr()
    code = main(command)
    out, err = capsys.readouterr()
    if code:
        assert code == 2 and len(err.splitlines()) == 1 and err.startswith("bidistill: error: "), err
    return code, out


def the_file(run, name):
    return next((run / "checkpoint").glob("tensors-*")) if name == "checkpoint/tensors" else run / name


@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen_or_harmless(work, capsys, name, how):
    """Of reading commands, of a resumed run and of one that takes over the pretraining."""
    wanted = [said(capsys, command) for command in COMMANDS]
    assert [code for code, _ in wanted] == [0, 0]
    models = [(work / f"{model}.safetensors").read_bytes() for model in ("teacher", "student")]
    path = the_file(work, name)
    path.write_bytes(SPOILS[how](path.read_bytes(), np.random.default_rng([FILES.index(name), *how.encode()])))
    for command, was in zip(COMMANDS, wanted, strict=True):
        code, out = said(capsys, command)
        assert code or out == was[1]
    if name in ("split.npz", "metrics.json", "teacher.safetensors", "student.safetensors"):
        assert said(capsys, COMMANDS[0])[0] == 2
    refused = ""
    try:
        Trainer.resume(work).fit()
    except UserError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
    else:
        assert [(work / f"{model}.safetensors").read_bytes() for model in ("teacher", "student")] == models
    if name.startswith(("pretrained/", "checkpoint/")) or name == "split.npz":
        assert refused


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("teacher.safetensors", "student.safetensors"),
        ("teacher.safetensors", "pretrained/teacher.safetensors"),
        ("metrics.json", "checkpoint/state.json"),
        ("files.json", "metrics.json"),
        ("checkpoint/tensors", "student.safetensors"),
    ],
)
def test_swapped_files_are_seen(work, capsys, first, second):
    a, b = the_file(work, first), the_file(work, second)
    one, two = a.read_bytes(), b.read_bytes()
    assert one != two
    a.write_bytes(two)
    b.write_bytes(one)
    assert said(capsys, COMMANDS[0])[0] == 2


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_model_with_half_of_it_zero_is_refused(work, capsys, name):
    path = work / f"{name}.safetensors"
    path.write_bytes(half(path.read_bytes(), None))
    assert said(capsys, COMMANDS[0])[0] == 2
    if name == "student":
        assert said(capsys, COMMANDS[1])[0] == 2


EDITS = {
    "step": lambda s: s["progress"].update(step=s["progress"]["step"] + 2),
    "epoch": lambda s: s["progress"].update(epoch=-1),
    "best score": lambda s: s["teacher"].update(best_score=9),
    "missing key": lambda s: s.pop("progress"),
    "wrong type": lambda s: s.update(history="none"),
    "unknown key": lambda s: s.update(more=1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_state_is_refused(work, capsys, edit):
    path = work / "checkpoint" / "state.json"
    values = json.loads(path.read_text())
    EDITS[edit](values["state"])
    path.write_text(json.dumps(values))
    assert said(capsys, ["train", "--resume", "run"])[0] == 2


@pytest.mark.parametrize("edit", ["epoch", "missing key", "wrong type", "unknown key"])
def test_a_state_that_no_run_wrote_is_refused_by_its_schema(work, edit):
    """Also where the checksum is right."""
    from bidistill.runs.records import Checkpoint

    path = work / "checkpoint" / "state.json"
    record = read_record(path, Checkpoint)
    EDITS[edit](record.state)
    write_record(path, record)
    with pytest.raises(UserError, match=r"state\.json is not as this version writes it"):
        Trainer.resume(work)


def test_a_model_of_other_sizes_is_refused(work, parts):
    from bidistill import MF
    from bidistill.report import open_run
    from bidistill.runs.checkpoint import save_model

    seal = save_model(work / "student.safetensors", MF(parts.n_users, parts.n_items - 1, 2))
    record = read_record(work / "metrics.json", Finished)
    record.files["student.safetensors"] = seal
    write_record(work / "metrics.json", record)
    with pytest.raises(UserError, match="other users or items than"):
        open_run(work).model("student")


def test_earlier_versions_are_named(work, capsys):
    (work / "metrics.json").write_text(json.dumps({"metrics": {}, "pretrained": {}, "split": "", "versions": {}}))
    with pytest.raises(UserError, match="earlier version"):
        read_record(work / "metrics.json", Finished)
    assert said(capsys, COMMANDS[0])[0] == 2


# Files of others


def test_files_of_others_stay(work, parts):
    """Without --overwrite, with it, and through a link."""
    logs = work / "tensorboard"
    logs.mkdir()
    (logs / "events.theirs").write_text("logs")
    (work / "pretrained" / "theirs.txt").write_text("notes")
    config = Config().with_overrides(SETTINGS | {"run.out": str(work)})
    with pytest.raises(UserError, match="holds a run already"):
        Trainer(config, parts).fit()
    Trainer(config, parts, overwrite=True).fit()
    assert (logs / "events.theirs").read_text() == "logs" and (work / "pretrained" / "theirs.txt").exists()
    shutil.move(logs, work.parent / "logs")
    logs.symlink_to(work.parent / "logs")
    with pytest.raises(UserError, match="tensorboard is a link"):
        Trainer(config, parts, overwrite=True).fit()
    assert (work.parent / "logs" / "events.theirs").exists()


@pytest.mark.parametrize("name", ["config.toml", "pretrained/teacher.safetensors", "report.html"])
def test_a_file_of_others_in_the_way_is_refused(tmp_path, parts, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    config = Config().with_overrides(SETTINGS | {"run.out": str(tmp_path / "run")})
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{path.name} is there, and .*files.json does not say"):
            Trainer(config, parts, overwrite=overwrite).fit()
    assert path.read_text() == "theirs"


def test_one_process_works_in_a_folder(work):
    with RunFolder(work).held():
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .*, since "):
            Trainer.resume(work)
        assert (work / LOCK).exists()
    assert not (work / LOCK).exists()
    Trainer.resume(work)


def test_a_folder_that_is_deleted_under_way_is_not_made_anew(tmp_path, parts):
    from bidistill.training.callbacks import Callback

    class Delete(Callback):
        def on_step(self, trainer):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    config = Config().with_overrides(SETTINGS | {"run.out": str(tmp_path / "run")})
    with pytest.raises(UserError, match="was deleted or replaced while the run was going on"):
        Trainer(config, parts, callbacks=[Delete()]).fit()
    assert not (tmp_path / "run").exists()
