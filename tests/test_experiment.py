"""`bidistill experiment` from a file to its report: what is trained and what is not, what is recorded, and what is refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bidistill import Config, Trainer, UserError, generate, split
from bidistill.cli import main
from bidistill.evaluation.evaluate import per_user
from bidistill.experiments import runner, trial
from bidistill.experiments.folder import ExperimentFolder
from bidistill.experiments.grid import Grid
from bidistill.experiments.records import CellRecord
from bidistill.experiments.results import experiment_results
from bidistill.experiments.statistics import bootstrap_p, holm, paired_p
from bidistill.files.records import read_record, write_record
from bidistill.report.experiment import write_experiment_report
from bidistill.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("heard_signals")

SOURCE = {
    "name": "study",
    "seeds": [0, 1],
    "jobs": 2,
    "control": "alone",
    "common": {
        "teacher": {"dim": 6},
        "student": {"dim": 2},
        "train": {"pretrain_epochs": 3, "epochs": 3, "patience": 0, "batch_size": 512, "monitor": "ndcg@10"},
        "eval": {"ks": [10], "baselines": ["ease"]},
    },
    "data": {
        "first": {"generate": {"users": 60, "items": 80, "interactions": 1500, "dim": 3, "seed": 1}, "split": "leave_one"},
        "second": {"generate": {"users": 50, "items": 90, "interactions": 1400, "dim": 3, "seed": 2}, "split": "ratio"},
    },
    "runs": {
        "alone": {"distill": {"method": "none"}},
        "both": {"distill": {"lambda_student": 1.0}},
        # It decays by a factor of -99 a step: one epoch of a trial is too little to see it diverge.
        "wild": {"student": {"optimizer": "SGD", "lr": 100.0, "weight_decay": 1.0}, "train": {"pretrain_epochs": 12}},
    },
    "sweeps": {"size": {"option": "student.dim", "values": [1, 2], "runs": ["alone"]}},
}  # fmt: skip
CELLS = 2 * 2 * 4


def grid(folder, **changes):
    return Grid.of(SOURCE | {"folder": str(folder)} | changes, "study")


def without(grid_source, *runs):
    """The runs of the source but for these."""
    return {name: each for name, each in grid_source["runs"].items() if name not in runs}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder whose cells are finished, but for those of the wild run."""
    folder = tmp_path_factory.mktemp("experiment") / "study"
    done = runner.run_experiment(grid(folder))
    assert len(done.trained) == 12 and sorted(done.failed) == sorted(
        f"{d}/wild/{s}" for d in ("first", "second") for s in (0, 1)
    )
    assert not done.there and not done.left
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "study")


def cell_of(found, name):
    return next(cell for cell in found.cells if cell.name == name)


def test_a_cell_is_the_run_of_its_settings(finished):
    """Shared pretraining, processes and threads change nothing: a Trainer of the same settings gives the same numbers."""
    found = grid(finished)
    made = generate(60, 80, 1500, dim=3, seed=1)[0]
    parts = split(made, "leave_one")
    for name in ("first/alone/1", "first/both/1"):
        cell = cell_of(found, name)
        record = ExperimentFolder(finished).cell(cell)
        result = Trainer(cell.config, parts).fit()
        assert record.metrics == result.metrics
        assert record.pretrained == result.pretrained
        assert record.split == parts.fingerprint()
        kept = [row for row in record.history if row["phase"] == "joint"]
        assert [row["student/ndcg@10"] for row in kept] == [
            row["student/ndcg@10"] for row in result.history if row["phase"] == "joint"
        ]
        assert record.epochs["student"]["joint"][0] == 3 and record.epochs["teacher"]["pretraining"][0] == 3
        assert record.bytes == {"teacher": 4 * (60 * 6 + 80 * 7), "student": 4 * (60 * 2 + 80 * 3)}
        assert record.microseconds["student"] > 0 and record.seconds["cell"] > 0
        ranks = ExperimentFolder(finished).ranks(cell, record)
        users = per_user(result.student, parts, "test", (10,))
        assert np.array_equal(ranks["test_users"], users["users"])  # one held-out item each
        assert np.array_equal(1 / ranks["test_student"], users["mrr"])
        assert set(record.baselines) == ({"popularity", "ease"} if "alone" in name else {"popularity"})


def test_runs_of_the_same_pretraining_share_it(finished):
    first, second = (
        ExperimentFolder(finished).cell(cell_of(grid(finished), f"second/{run}/0")) for run in ("alone", "both")
    )
    assert first.pretrained == second.pretrained
    # 2 data sets x 2 seeds x (dim 2, dim 1), and those of the wild run, whose folders are there but not finished
    folders = list((finished / "pretrained").iterdir())
    assert sum((each / "metrics.json").exists() for each in folders) == 8
    assert not list(finished.glob("pretrained/*/checkpoint")) or all(
        not (each.parent / "metrics.json").exists() for each in finished.glob("pretrained/*/checkpoint")
    )
    assert not (finished / "models").exists()


def test_without_sharing_the_numbers_are_the_same(finished, tmp_path):
    runs = without(SOURCE, "wild")
    apart = grid(tmp_path / "apart", share_pretraining=False, runs=runs, sweeps={}, keep_models=True)
    done = runner.run_experiment(apart, only=["first/both/0"])
    assert done.trained == ("first/both/0",)
    cell = cell_of(apart, "first/both/0")
    one, other = (ExperimentFolder(each).cell(cell) for each in (finished, tmp_path / "apart"))
    assert one.metrics == other.metrics and one.pretrained == other.pretrained
    assert not (tmp_path / "apart" / "pretrained").exists()
    kept = ExperimentFolder(tmp_path / "apart").models_path(cell)
    assert main(["evaluate", str(kept)]) == 0


def test_a_failed_cell_says_why_and_is_tried_again(folder):
    path = folder / "cells/first/wild/0.json"
    record = read_record(path, CellRecord)
    assert re.match("student diverged after .* pretrain_student: lower student.lr", record.error)
    assert not record.metrics and not (folder / "cells/first/wild/0.npz").exists()
    done = runner.run_experiment(grid(folder), only=["first/*"])
    assert done.failed == ("first/wild/0", "first/wild/1") and not done.trained
    tame = SOURCE["runs"] | {"wild": {"student": {"lr": 0.01}}}
    done = runner.run_experiment(grid(folder, runs=tame), only=["first/wild/*"])
    assert done.trained == ("first/wild/0", "first/wild/1")
    assert not read_record(path, CellRecord).error
    assert done.left == ("second/wild/0", "second/wild/1")


def test_a_second_call_trains_what_is_missing(folder):
    runs = without(SOURCE, "wild")
    done = runner.run_experiment(grid(folder, runs=runs))
    assert not done.trained and len(done.there) == 12
    path = folder / "cells/second/both/1.json"
    before = read_record(path, CellRecord)
    path.unlink()
    done = runner.run_experiment(grid(folder, runs=runs))
    assert done.trained == ("second/both/1",) and len(done.there) == 11
    assert read_record(path, CellRecord).metrics == before.metrics
    more = runs | {"late": {"distill": {"lambda_student": 3.0}}}
    done = runner.run_experiment(grid(folder, runs=more))
    assert len(done.trained) == 4 and all("/late/" in name for name in done.trained)


def test_changed_settings_and_data_are_refused_or_trained_anew(folder):
    runs = without(SOURCE, "wild")
    changed = runs | {"both": {"distill": {"lambda_student": 1.5}}}
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(
        UserError, match=r"both/0.json was trained with distill.lambda_student = 1.0, now 1.5, and 3 other"
    ):
        runner.run_experiment(grid(folder, runs=changed))
    data = SOURCE["data"] | {"first": SOURCE["data"]["first"] | {"split_seed": 4}}
    with pytest.raises(UserError, match="was trained with other data"):
        runner.run_experiment(grid(folder, runs=runs, data=data))
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    done = runner.run_experiment(grid(folder, runs=changed), redo=True)
    assert sorted(done.trained) == sorted(f"{d}/both/{s}" for d in ("first", "second") for s in (0, 1))
    done = runner.run_experiment(grid(folder, runs=changed, data=data), redo=True, only=["first/*/0"])
    assert len(done.trained) == 3
    found = experiment_results(ExperimentFolder(folder))  # the second seed is of other data, and is left out
    assert found.row("first", "both").models["student"].values.keys() == {0}
    assert found.row("second", "both").models["student"].values.keys() == {0, 1}
    assert any("3 cells of other settings or data are in the folder and are not shown" in note for note in found.notes)


def test_options_that_change_no_result_may_change(folder):
    common = SOURCE["common"] | {"eval": {"ks": [10], "baselines": ["ease"], "batch_size": 7}}
    done = runner.run_experiment(grid(folder, common=common, runs=without(SOURCE, "wild"), part="val", jobs=1))
    assert not done.trained
    assert experiment_results(ExperimentFolder(folder)).part == "val"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: (path / "other.txt").write_text("mine"), "holds files that are no experiment's"),
        (lambda path: Config().to_toml(path / "config.toml"), "holds files that are no experiment's"),
        (lambda path: runner.ExperimentFolder(path).write(Grid.of(SOURCE, "x"), {}), None),
    ],
)
def test_a_folder_of_others_is_refused(make, message, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    make(home)
    names = sorted(home.iterdir())
    other = grid(home, name="other")
    with pytest.raises(UserError, match=message or "belongs to the experiment 'study', this one is 'other'"):
        runner.run_experiment(other)
    assert sorted(home.iterdir()) == names


def test_one_process_works_in_a_folder(folder):
    with RunFolder(folder).held(), pytest.raises(UserError, match="is in use by process"):
        runner.run_experiment(grid(folder))


def test_what_a_model_cannot_serve_is_refused_before_training(tmp_path):
    for settings, message in (
        ({"distill": {"method": "rrd"}}, r"first/bad/0: .*only the student learns.*; nothing was trained"),
        ({"teacher": {"kind": "ease"}}, r"first/bad/0: the teacher \(ease\) is fitted in one call, so it cannot learn"),
        ({"eval": {"ks": [10, 100]}}, r"first/bad/0: eval.ks asks for 100 items, but the catalog has 80"),
    ):
        runs = SOURCE["runs"] | {"bad": settings}
        with pytest.raises(UserError, match=message) as error:
            runner.run_experiment(grid(tmp_path / "new", runs=runs))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_method_that_fails_in_its_first_step_is_refused(tmp_path, monkeypatch):
    def fails(self):
        raise ArithmeticError("no such draw")

    monkeypatch.setattr(trial.Trainer, "fit", fails)
    with pytest.raises(UserError, match=r"first/alone/0 cannot be trained.*ArithmeticError: no such draw"):
        runner.run_experiment(grid(tmp_path / "new"))


def test_too_little_disk_and_memory_are_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "disk_there", lambda folder: 1000)
    with pytest.raises(UserError, match=r"the 16 cells need about .*MB, and the disk has 0 MB free"):
        runner.run_experiment(grid(tmp_path / "new"))
    monkeypatch.undo()
    monkeypatch.setattr(trial, "shortage", lambda parts: "memory: too little")
    with pytest.raises(UserError, match=r"2 cells at a time: memory: too little"):
        runner.run_experiment(grid(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_disk_is_estimated_about_right(finished):
    found = grid(finished, runs=without(SOURCE, "wild"))
    splits = {name: runner.load_data(found.data[name], "") for name in found.data}
    need = trial.check_disk(finished, found.cells, splits, 2, share=True, keep=False)
    whole = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file() and "wild" not in str(path))
    assert whole / 2 < need < 4 * whole


def test_damage_is_told(folder):
    path = folder / "cells/first/alone/0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(UserError, match=r"0.json is damaged .*delete the file, and run the experiment again"):
        runner.run_experiment(grid(folder))
    path.unlink()
    (folder / "cells/first/alone/1.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="is not the file that .*1.json names"):
        write_experiment_report(folder)


# Results


def test_results_are_those_of_the_records(finished):
    found = experiment_results(ExperimentFolder(finished))
    home, plan = ExperimentFolder(finished), grid(finished)
    ps = {"seeds": [], "users": []}
    for data in ("first", "second"):
        values = {}
        for run in ("alone", "both"):
            records = [home.cell(cell_of(plan, f"{data}/{run}/{seed}")) for seed in (0, 1)]
            values[run] = [record.metrics["student"]["test"]["ndcg@10"] for record in records]
            model = found.row(data, run).models["student"]
            assert model.after.mean == pytest.approx(np.mean(values[run]))
            assert model.after.spread == pytest.approx(np.std(values[run], ddof=1))
            assert model.before.mean == np.mean([record.pretrained["student"]["test"]["ndcg@10"] for record in records])
            assert list(model.values.values()) == values[run]
        test = found.row(data, "both").models["student"].test
        assert test.gain == pytest.approx(np.mean(values["both"]) / np.mean(values["alone"]) - 1)
        assert test.p_seeds == pytest.approx(paired_p(list(np.subtract(values["both"], values["alone"]))))
        users = []
        for seed in (0, 1):
            pair = []
            for run in ("both", "alone"):
                cell = cell_of(plan, f"{data}/{run}/{seed}")
                ranks = home.ranks(cell, home.cell(cell))
                gain = np.where(ranks["test_student"] <= 10, 1 / np.log2(1 + ranks["test_student"].astype(float)), 0)
                people, counts = np.unique(ranks["test_users"], return_counts=True)
                ideal = [sum(1 / np.log2(2 + np.arange(min(n, 10)))) for n in counts]
                pair.append(np.array([gain[ranks["test_users"] == user].sum() for user in people]) / ideal)
            users.append(pair[0] - pair[1])
        assert test.p_users == pytest.approx(bootstrap_p(np.mean(users, axis=0)), abs=2e-4)
        ps["seeds"].append(test.p_seeds)
        ps["users"].append(test.p_users)
    models = [found.row(data, "both").models["student"] for data in ("first", "second")]
    assert [model.holm_seeds for model in models] == pytest.approx(holm(ps["seeds"]))
    assert [model.holm_users for model in models] == pytest.approx(holm(ps["users"]))
    assert found.row("first", "wild").failed.keys() == {0, 1} and not found.row("first", "wild").models
    assert found.row("first", "alone").models["student"].test is None


def test_who_is_below_a_baseline_is_said_to_be_so(folder):
    found = experiment_results(ExperimentFolder(folder))
    value = found.row("first", "alone").models["student"].after.mean
    for baseline, there in ((value + 0.01, True), (value - 0.01, False)):
        for seed in (0, 1):
            path = folder / f"cells/first/alone/{seed}.json"
            record = read_record(path, CellRecord)
            record.baselines["ease"]["test"]["ndcg@10"] = baseline
            write_record(path, record)
        notes = experiment_results(ExperimentFolder(folder)).notes
        told = [
            note for note in notes if f"below ease ({baseline:.4f}) are" in note and "the student of alone (" in note
        ]
        assert bool(told) == there


def test_other_numbers_of_epochs_than_the_control_are_told(folder):
    assert not any(
        "in the joint phase, that of its control" in note for note in experiment_results(ExperimentFolder(folder)).notes
    )
    for seed in (0, 1):
        path = folder / f"cells/first/both/{seed}.json"
        record = read_record(path, CellRecord)
        record.epochs["student"]["joint"][0] = 2 + seed
        write_record(path, record)
    told = (
        "first: the student of both had 2.5 epochs in the joint phase, that of its control 3: set train.patience to 0"
    )
    assert any(note.startswith(told) for note in experiment_results(ExperimentFolder(folder)).notes)


def test_the_report_shows_all_of_it(folder, capsys):
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    found = experiment_results(ExperimentFolder(folder))
    model = found.row("first", "both").models["student"]
    texts = [(folder / name).read_text() for name in ("report.html", "results.md")]
    for text in (*texts, shown):
        assert f"{model.after.mean:.4f} +- {model.after.spread:.4f}" in text
        assert f"{100 * model.test.gain:+.1f} %" in text
        assert "(ease)" in text and "alone@student.dim=1" in text
    for text in texts:
        assert "first/wild/0 failed: student diverged" in text.replace("\n", " ")
        assert "12 of 16 cells are finished, 4 failed" in text
        assert "3 + 3" in text  # epochs
    assert texts[0].count("<svg") == 2 + 4 + 2 + 4  # gains, learning curves, ranks, the sweep
    assert "first/alone, " in texts[0]  # a sign that a phase did a model no good
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"|<!doctype[^>]*>', "", texts[0])
    plain = json.loads((folder / "results.json").read_text())
    assert (
        plain["rows"]["first"][0]["models"]["student"]["after"]["mean"]
        == found.rows["first"][0].models["student"].after.mean
    )


def test_no_results_yet(tmp_path):
    home = ExperimentFolder(tmp_path / "new")
    home.write(grid(tmp_path / "new"), {})
    with pytest.raises(UserError, match="has no finished cell yet"):
        write_experiment_report(tmp_path / "new")


# The command


def test_the_files_of_this_repository_are_whole():
    files = sorted((Path(__file__).resolve().parents[1] / "benchmarks" / "experiments").glob("*.toml"))
    assert len(files) > 1
    assert len({Grid.read(path).folder for path in files}) == len(files)


def test_ctrl_c_leaves_what_is_whole_and_the_way_on(tmp_path):
    """The first cell is there, the second one, of very many epochs, is stopped."""
    (tmp_path / "long.toml").write_text("""seeds = [0]
jobs = 1
[common]
student.dim = 2
train = {pretrain_epochs = 1, epochs = 1, patience = 0}
[data.made]
generate = {users = 40, items = 60, interactions = 900}
split = "leave_one"
[runs.short]
[runs.long]
train.epochs = 1_000_000
""")
    command = [sys.executable, "-m", "bidistill", "experiment", "long.toml"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = next(line for line in process.stdout if "made/short/0" in line and "[1 of 2]" in line)
    assert "NDCG@50 on validation" in told
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "go on with: bidistill experiment long.toml" in errors
    assert [path.name for path in (tmp_path / "runs/long/cells/made").iterdir()] == ["short"]
    done = runner.run_experiment(
        replace(Grid.read(tmp_path / "long.toml"), folder=str(tmp_path / "runs/long")), only=["*/short/*"]
    )
    assert done.there == ("made/short/0",) and done.left == ("made/long/0",)


def test_the_command_and_its_exit_codes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = """seeds = [0]
[common.train]
pretrain_epochs = 1
epochs = 1
[common.student]
dim = 2
[data.made]
generate = {users = 40, items = 60, interactions = 900}
split = "leave_one"
[runs.both]
[runs.wild]
student = {optimizer = "SGD", lr = 1e6, weight_decay = 1.0}
train = {pretrain_epochs = 9, batch_size = 128}
"""
    (tmp_path / "tiny.toml").write_text(text)
    assert main(["experiment", "tiny.toml", "--check"]) == 0
    assert "2 are still missing" in capsys.readouterr().out and not (tmp_path / "runs").exists()
    assert main(["experiment", "tiny.toml", "--jobs", "1"]) == 3
    out = capsys.readouterr().out
    assert "made/wild/0 failed: " in out and "tiny: 1 cells trained, 1 failed" in out
    assert (tmp_path / "runs/tiny/report.html").exists()
    assert main(["experiment", "tiny.toml", "--only", "*/both/*"]) == 0
    assert "0 cells trained, 0 failed, 1 were there, 1 are still missing" in capsys.readouterr().out
    for arguments, message in (
        (["--only", "x/*"], "no cell is called 'x/*': names are DATA/RUN/SEED, such as made/both/0"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--jobs", "999"], "jobs is 999, but this machine has"),
    ):
        assert main(["experiment", "tiny.toml", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_source_of_data_is_checked_and_made(tmp_path):
    made = {"users": 40, "items": 60, "interactions": 900}
    for data, message in (
        ({"generate": made | {"tastes": "strong"}}, r"\[data.x\]: generate.tastes must be a number, found 'strong'"),
        ({"generate": made | {"users": 4.5}}, "generate.users must be a whole number, found 4.5"),
        ({"generate": made | {"user": 4}}, "generate has no 'user': it takes users, items"),
        ({"generate": {"users": 4, "items": 9}}, "generate needs interactions"),
        ({"generate": made, "header": True}, "header does not apply to data that generate makes up"),
        ({"fetch": "netflix"}, "fetch must be one of movielens-100k, found 'netflix'"),
        ({"path": str(tmp_path / "absent.npz")}, "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            runner.load_data(grid(tmp_path, data={"x": data}).data["x"], tmp_path)
    data = {"generate": made | {"tastes": 1, "zipf": 0.5}, "split": "leave_one"}
    found = runner.load_data(grid(tmp_path, data={"x": data}).data["x"], tmp_path)
    wanted = split(generate(40, 60, 900, tastes=1, zipf=0.5)[0], "leave_one")
    assert found.fingerprint() == wanted.fingerprint()


def test_the_model_that_made_the_data_up_is_the_ceiling(tmp_path, monkeypatch, capsys):
    """It is evaluated with the control, shown beside the baselines, and nobody is below it for that reason."""
    monkeypatch.chdir(tmp_path)
    sizes = ["--users", "50", "--items", "70", "--interactions", "1200"]
    assert main(["data", "generate", *sizes, "--out", "made.csv"]) == 0
    text = """control = "alone"
[common]
student.dim = 2
train = {pretrain_epochs = 1, epochs = 1, patience = 0}
[data.made]
path = "made.csv"
settings.eval.generator = "made.generator.safetensors"
[runs.alone]
distill.method = "none"
[runs.both]
"""
    (tmp_path / "ceiling.toml").write_text(text)
    assert main(["experiment", "ceiling.toml"]) == 0
    out = capsys.readouterr().out
    assert "(generator)" in out and "below generator" not in out
