"""Settings: every option from Python, TOML and text; mistakes name the option."""

import pytest
from bidistill.config import Config, ModelConfig, TrainConfig, WeightConfig, options
from bidistill.errors import UserError
from bidistill.eval_options import EvalConfig
from bidistill.presets import PRESETS

OPTIONS = {option.name: option for option in options()}
BESIDE = {
    "train.joint": {"distill.lambda_teacher": 0.0},
    "distill.ema": {"distill.guide": "ema"},
}  # what an option needs


def other_value(option):
    """An allowed value that is not the default."""
    if option.part is str and option.type is tuple:
        return tuple(option.choices)[-2:]
    if option.choices:
        return next((c for c in option.choices if c != option.default), option.default)
    if option.type is dict:
        return {}  # with entries: test_registry.py
    if option.type is bool:
        return not option.default
    if option.type is tuple:
        return (10, 50, 7)
    if option.type is str:
        return "recall@10" if option.name == "train.monitor" else 'odd "text" \\ with ünicode'
    if option.limits["below"] is not None:
        return option.default / 2
    return option.type((option.default or 0) + 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_toml_round_trip(tmp_path, preset):
    config = Config.preset(preset)
    config.to_toml(tmp_path / "config.toml")
    assert Config.from_toml(tmp_path / "config.toml") == config


@pytest.mark.parametrize("name", [n for n in OPTIONS if not n.endswith((".eps", ".alpha"))])
def test_each_option_survives_toml_and_text(tmp_path, name):
    option = OPTIONS[name]
    value = other_value(option)
    plain = Config().with_overrides(BESIDE.get(name, {}))
    config = plain.with_overrides({name: value})
    assert config[name] == value
    config.to_toml(tmp_path / "config.toml")
    again = Config.from_toml(tmp_path / "config.toml")
    assert again == config
    assert again.hash() == config.hash()
    assert (config.hash() != plain.hash()) == (value != option.default)
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    assert option.parse(text) == value


def test_every_option_has_help_and_a_flag_of_its_own():
    assert all(option.help and option.section_help for option in options())
    assert len({option.flag for option in options()}) == len(options())
    assert OPTIONS["distill.lambda_student"].flag == "--distill-lambda-student"
    assert OPTIONS["distill.to_student.alpha"].flag == "--distill-to-student-alpha"


def test_defaults_are_those_of_the_issue():
    config = Config()
    assert (config.teacher.dim, config.student.dim) == (50, 5)
    assert (config.train.loss, config.train.negatives) == ("bce", 4)
    distill = config.distill
    assert (distill.lambda_teacher, distill.lambda_student, distill.tau_learner, distill.tau_guide) == (0.1, 2, 1, 1)
    assert (distill.to_student.kind, distill.to_teacher.kind, distill.side) == ("tanh", "exp", "over")


def test_paper_preset_is_the_published_setting():
    config = Config.preset("paper")
    assert (config.distill.lambda_teacher, config.distill.lambda_student) == (0.5, 0.5)
    assert (config.distill.tau_guide, config.distill.tau_learner) == (5, 1)
    assert (config.distill.resample_every, config.distill.samples) == (10, 1)
    assert config.distill.negatives_from_samples
    assert (config.distill.to_student.eps, config.distill.to_teacher.eps) == (1e-2, 1e-4)
    with pytest.raises(UserError, match=r"no preset 'papr'.*default, paper"):
        Config.preset("papr")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher.dim", 0),
        ("student.dim", -3),
        ("teacher.dim", 2.0),
        ("teacher.dim", True),
        ("teacher.lr", 0),
        ("teacher.lr", float("nan")),
        ("teacher.lr", float("inf")),
        ("teacher.lr", "fast"),
        ("teacher.optimizer", "adamw"),
        ("teacher.optimizer", "Optimizer"),
        ("teacher.lr_scheduler", "cosin"),
        ("student.clip_norm", -1.0),
        ("student.optimizer_args", 3),
        ("train.negatives", 0),
        ("train.batch_size", 0),
        ("train.loss", "hinge"),
        ("train.loss", None),
        ("distill.lambda_student", -1),
        ("distill.tau_guide", 0),
        ("distill.side", "both"),
        ("distill.samples", -1),
        ("distill.loss", "mse"),
        ("distill.to_student.kind", "tan"),
        ("distill.to_teacher.alpha", 0),
        ("eval.ks", ()),
        ("eval.ks", (0,)),
        ("eval.ks", (10, "50")),
        ("eval.ks", 10),
        ("run.progress", 1),
        ("run.out", 3),
    ],
)
def test_bad_values_name_the_option(name, value):
    with pytest.raises(UserError, match=name.replace(".", r"\.") + r" must be .*found"):
        Config().with_overrides({name: value})


def test_python_construction_is_checked_too():
    with pytest.raises(UserError, match=r"student\.dim must be a whole number at least 1, found 0"):
        Config(student=ModelConfig(dim=0))
    config = Config(teacher=ModelConfig(lr=1), eval=EvalConfig(ks=[10, 50]))
    assert isinstance(config.teacher.lr, float)
    assert config.eval.ks == (10, 50)
    with pytest.raises(UserError, match=r"train\.monitor is 'ndcg@7', but eval\.ks gives only: hr@10.*mrr"):
        Config(train=TrainConfig(monitor="ndcg@7"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"distill.to_student.alpha": 3.0, "distill.to_student.eps": 0.1},
            r"to_student\.alpha.*to_student\.eps.*keep one",
        ),
        ({"distill.to_teacher.kind": "uniform", "distill.to_teacher.alpha": 3.0}, r"to_teacher\.alpha.*no sharpness"),
        ({"distill.to_teacher.kind": "linear", "distill.to_teacher.eps": 3.0}, r"to_teacher\.eps.*no sharpness"),
        ({"distill.lambda_teacher": 0, "distill.lambda_student": 0}, r"both 0.*distill\.method"),
        ({"distill.lambda_teacher": 0, "distill.negatives_from_samples": True}, r"negatives_from_samples needs"),
        (
            {"teacher.optimizer": "SparseAdam", "teacher.weight_decay": 0.1},
            r"teacher\.weight_decay must be 0 with .*'SparseAdam'",
        ),
        ({"teacher.optimizer": "LBFGS"}, r"teacher\.optimizer LBFGS computes the loss several times"),
        ({"teacher.optimizer_args": {"lr": 0.1}}, r"teacher\.optimizer_args\.lr is given by teacher\.lr: leave it out"),
        (
            {"student.optimizer": "AdamW", "student.optimizer_args": {"amsgrd": True}},
            r"student\.optimizer_args\.amsgrd is no setting of the optimizer 'AdamW': did you mean amsgrad\?",
        ),
        ({"student.lr_scheduler_args": {"gamma": 0.5}}, r"there is no student\.lr_scheduler"),
        ({"student.lr_scheduler": "StepLR"}, r"'StepLR' needs step_size: set student\.lr_scheduler_args\.step_size"),
        (
            {"student.lr_scheduler": "cosine", "student.lr_scheduler_args": {"epochs": 3}},
            r"lr_scheduler_args\.epochs is given by the phase",
        ),
    ],
)
def test_options_that_exclude_each_other(overrides, message):
    with pytest.raises(UserError, match=message):
        Config().with_overrides(overrides)


def test_unknown_names_get_the_closest_one():
    with pytest.raises(
        UserError, match=r"distill\.lamda_student is not an option: did you mean distill\.lambda_student\?"
    ):
        Config().with_overrides({"distill.lamda_student": 1})
    with pytest.raises(UserError, match=r"student\.dims is not an option: did you mean student\.dim\?"):
        Config().with_overrides({"student.dims": 1})
    with pytest.raises(UserError, match="is not an option"):
        Config().with_overrides({"teacher": 1})


def test_bad_toml_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    with pytest.raises(UserError, match=r"cannot read the settings .*mine\.toml"):
        Config.from_toml(path)
    path.write_text("[train\nepochs = 1")
    with pytest.raises(UserError, match=r"cannot read the settings .*mine\.toml"):
        Config.from_toml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read the settings .*mine\.toml"):
        Config.from_toml(path)
    path.write_text("[train]\nepoch = 1")
    with pytest.raises(UserError, match=r"mine\.toml: train\.epoch is not an option: did you mean train\.epochs"):
        Config.from_toml(path)
    path.write_text("[train]\nepochs = 'x'")
    with pytest.raises(UserError, match=r"mine\.toml: train\.epochs must be a whole number"):
        Config.from_toml(path)


def test_a_partial_file_keeps_the_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[distill.to_teacher]\nkind = 'uniform'\neps = 1\n[train]\nepochs = 3")
    with pytest.raises(UserError, match="no sharpness"):
        Config.from_toml(path)
    path.write_text("[train]\nepochs = 3")
    config = Config.from_toml(path, preset="paper")
    assert config.differences(Config.preset("paper")) == ["train.epochs"]


def test_text_from_the_command_line():
    assert OPTIONS["run.progress"].parse("false") is False
    assert OPTIONS["data.header"].parse("none") is None
    assert OPTIONS["data.header"].parse("yes") is True
    assert OPTIONS["eval.ks"].parse("5, 20") == (5, 20)
    assert OPTIONS["distill.to_student.eps"].parse("1e-3") == 1e-3
    for name, text in [("eval.ks", "5,x"), ("run.progress", "maybe"), ("teacher.dim", "1.5"), ("train.loss", "none")]:
        with pytest.raises(UserError, match=name.replace(".", r"\.") + " must be"):
            OPTIONS[name].parse(text)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "eval.ks"),
        ({"eval.ks": (2,), "train.monitor": "mrr", "train.negatives": 9}, "train.negatives"),
        ({"eval.ks": (2,), "train.monitor": "mrr", "distill.samples": 9}, "distill.samples"),
    ],
)
def test_more_than_the_catalog_has(overrides, name):
    config = Config().with_overrides(overrides)
    config.check_catalog(100)
    with pytest.raises(UserError, match=name.replace(".", r"\.") + r" asks for \d+ items, but the catalog has 8"):
        config.check_catalog(8)


def test_configs_are_values():
    config = Config()
    changed = config.with_overrides({"distill.to_student.mu": 3})
    assert config.distill.to_student.mu == 10
    assert changed.distill.to_student == WeightConfig(mu=3.0)
    assert changed.differences(config) == ["distill.to_student.mu"]
    assert Config().with_overrides(changed.values()) == changed
