"""The grid of an experiment: which cells a file stands for, and what is wrong with it, before anything is trained."""

import pytest
from bidistill import Config, UserError
from bidistill.experiments.grid import Grid

MADE = {"generate": {"users": 60, "items": 80, "interactions": 1200}, "split": "leave_one"}
RUNS = {"alone": {"distill": {"method": "none"}}, "both": {}}


def grid(**changes):
    return Grid.of({"data": {"made": MADE}, "runs": RUNS, "control": "alone"} | changes, "study")


def test_cells_are_data_runs_and_seeds():
    found = grid(seeds=[3, 1], data={"made": MADE, "other": MADE})
    assert [cell.name for cell in found.cells] == [
        f"{data}/{run}/{seed}" for seed in (3, 1) for data in ("made", "other") for run in ("alone", "both")
    ]
    assert [cell.config.run.seed for cell in found.cells] == [3] * 4 + [1] * 4
    assert (found.name, found.folder, found.jobs, found.part) == ("study", "runs/study", 0, "test")


def test_settings_come_in_layers():
    data = {"made": MADE | {"settings": {"student": {"lr": 0.02, "dim": 3}}}, "other": MADE}
    runs = RUNS | {
        "both": {"student": {"dim": 4}, "on": {"made": {"student": {"dim": 6}}}},
        "paper": {"preset": "paper"},
    }
    found = grid(common={"student": {"dim": 2, "lr": 0.5}, "train": {"negatives": 9}}, data=data, runs=runs)
    dims = {cell.name: (cell.config.student.dim, cell.config.student.lr) for cell in found.cells}
    assert dims["made/alone/0"] == (3, 0.02)
    assert dims["made/both/0"] == (6, 0.02)
    assert dims["other/alone/0"] == (2, 0.5)
    assert dims["other/both/0"] == (4, 0.5)
    config = next(cell.config for cell in found.cells if cell.name == "made/paper/0")
    assert config.distill.tau_guide == Config.preset("paper").distill.tau_guide != Config().distill.tau_guide
    assert config.train.negatives == 9  # common stands above a preset
    assert not config.run.progress and config.run.out is None


def test_baselines_are_fitted_with_the_control_alone():
    found = grid(common={"eval": {"baselines": ["ease"]}})
    assert {cell.variant: cell.config.eval.baselines for cell in found.cells} == {
        "alone": ("ease",), "both": ("popularity",)
    }  # fmt: skip
    without = Grid.of({"data": {"made": MADE}, "runs": RUNS, "common": {"eval": {"baselines": ["ease"]}}}, "study")
    assert all(cell.config.eval.baselines == ("ease",) for cell in without.cells)


def test_sweeps_add_variants_but_not_what_is_there():
    sweeps = {
        "size": {"option": "student.dim", "values": [2, 5]},
        "weight": {"option": "distill.lambda_student", "values": [0.5, 2.0]},
    }
    found = grid(sweeps=sweeps)
    assert found.variants("made") == [
        "alone", "both", "alone@student.dim=2", "both@student.dim=2", "both@distill.lambda_student=0.5"
    ]  # fmt: skip
    assert found.sweeps["weight"].runs == ("both",)  # a weight of distillation is nothing to a run without it
    assert [found.point("made", "both", "student.dim", value) for value in (2, 5)] == ["both@student.dim=2", "both"]
    assert found.control_of("made", "both@student.dim=2") == "alone@student.dim=2"
    assert found.control_of("made", "both@distill.lambda_student=0.5") == "alone"
    assert found.control_of("made", "both") == "alone"
    assert found.control_of("made", "alone@student.dim=2") == found.control_of("made", "alone") == ""
    swept = next(cell for cell in found.cells if cell.variant == "both@student.dim=2")
    assert swept.config.student.dim == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, r"the experiment has no key 'seed': did you mean seeds\?"),
        ({"seeds": 3}, "seeds must be a list, found 3"),
        ({"seeds": [1, 1]}, "seeds must be different whole numbers"),
        ({"seeds": [True]}, "seeds must be different whole numbers"),
        ({"seeds": []}, "seeds must be different whole numbers"),
        ({"jobs": -1}, "jobs must be at least 0"),
        ({"jobs": True}, "jobs must be a whole number, found True"),
        ({"part": "train"}, "part must be val or test"),
        ({"control": "best"}, "control is 'best', which is no run: choose one of alone, both"),
        ({"preset": "huge"}, "preset must be one of default"),
        ({"name": "../x"}, "name must consist of letters"),
        ({"runs": {}}, r"there is no \[runs.NAME\]"),
        ({"data": {}}, r"there is no \[data.NAME\]"),
        ({"runs": {"a/b": {}}, "control": ""}, r"the name in \[runs.NAME\] must consist of"),
        ({"runs": {"a": 1}, "control": ""}, "runs.a must be a table"),
        ({"common": {"student": {"dims": 3}}}, "student.dims is not an option: did you mean student.dim"),
        ({"common": {"run": {"seed": 3}}}, "common sets run.seed, which the experiment sets itself"),
        ({"runs": RUNS | {"x": {"run": {"out": "here"}}}}, "runs.x sets run.out"),
        ({"runs": RUNS | {"x": {"data": {"path": "a.csv"}}}}, "runs.x sets data.path, but data are described"),
        ({"runs": RUNS | {"x": {"train": {"epochs": -1}}}}, "run 'x' on the data set 'made': train.epochs must be"),
        ({"runs": RUNS | {"x": {"on": {"there": {}}}}}, "there is no data set 'there': choose one of made"),
        ({"data": {"made": {"split": "ratio"}}}, "must have one of path, train_path, fetch and generate, found none"),
        ({"data": {"made": MADE | {"path": "x"}}}, "found path and generate"),
        ({"data": {"made": MADE | {"splits": "ratio"}}}, r"\[data.made\]: data.splits is not an option"),
        ({"sweeps": {"s": {"option": "student.dims", "values": [1]}}}, "student.dims is not an option"),
        ({"sweeps": {"s": {"option": "student.dim", "values": []}}}, "sweeps.s.values must be a list"),
        ({"sweeps": {"s": {"option": "student.dim", "values": [0]}}}, "with student.dim = 0: student.dim must be"),
        ({"sweeps": {"s": {"option": "run.seed", "values": [0]}}}, "sweeps.s.option must name an option"),
        ({"sweeps": {"s": {"option": "student.dim", "values": [3], "runs": ["x"]}}}, "runs must be some of alone, both"),
        ({"sweeps": {"s": {"options": "student.dim"}}}, "sweeps.s has no key 'options': did you mean option"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        grid(**changes)
    assert "\n" not in str(error.value)


def test_a_file_is_read_and_named(tmp_path):
    path = tmp_path / "my-study.toml"
    path.write_text("seeds = [1]\n[data.a]\npath = 'a.csv'\n[runs.b]\n")
    assert Grid.read(path).name == "my-study"
    for text, message in (
        ("seeds = [", "cannot read the experiment"),
        ("seeds = 1979-05-27\n[data.a]\npath = 'a.csv'\n[runs.b]\n", "my-study.toml: there is a value that is no text"),
        ("[data.a]\npath = 'a.csv'\n[runs.b]\n[oh]\n", "my-study.toml: the experiment has no key 'oh'"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            Grid.read(path)
    with pytest.raises(UserError, match="cannot read the experiment"):
        Grid.read(tmp_path / "absent.toml")
