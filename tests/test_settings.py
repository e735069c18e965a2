"""Every option through `plan`, `train` and `resume`, and at the ends of its range: a new option needs a case here."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from bidistill import Config, Trainer, UserError, generate, split
from bidistill.cli import main
from bidistill.cli import plan as plan_command
from bidistill.cli import train as train_command
from bidistill.config import MOST_LR, MOST_SECONDS, options
from bidistill.data.generator import write_generator
from bidistill.options import INT64
from bidistill.training import memory as arrays
from bidistill.training import settings as automatic
from test_plan import COSTS

from bdkernels.ranges import TAU

OPTIONS = {option.name: option for option in options()}
SMALL = {
    "run.progress": False,
    "train.epochs": 1,
    "train.pretrain_epochs": 1,
    "eval.ks": (5, 7),
    "train.monitor": "mrr",
}
MODELS = {
    "teacher.kind": "mf",
    "student.kind": "mf",
    "teacher.dim": 6,
    "student.dim": 3,
    "teacher.lr": 0.02,
    "student.lr": 0.03,
}
COLUMNS = {"data.path": "rows.csv", "data.sep": ";", "data.user": "who", "data.item": "what"}
# A run each. What a run leaves out is as in SMALL, or the default.
GROUPS = {
    "a file, eager, draws at every step": {
        **MODELS, "data.path": "rows.csv", "data.user": "who", "data.item": "what", "data.rating": "stars", "data.time": "when",
        "data.min_rating": 2.0, "data.header": True, "data.sep": ";", "data.quote": "none", "data.format": "table",
        "data.split": "ratio", "data.val": 0.2, "data.test": 0.2,
        "data.split_seed": 3, "data.min_per_user": 2, "teacher.weight_decay": 1e-4, "student.weight_decay": 1e-4,
        "teacher.optimizer": "sgd", "student.optimizer": "adagrad",
        "teacher.optimizer_args": {"momentum": 0.5},
        "student.optimizer_args": {"eps": 1e-6}, "teacher.clip_norm": 1.0, "student.clip_norm": 0.5,
        "teacher.lr_scheduler": "StepLR", "teacher.lr_scheduler_args": {"step_size": 1, "gamma": 0.5},
        "teacher.joint_lr": 0.005, "student.joint_lr": 0.01, "teacher.joint_lr_scheduler": "constant",
        "train.loss": "bpr", "train.negatives": 2,
        "train.batch_size": 300, "train.patience": 3, "train.eval_every": 2, "train.monitor": "recall@7",
        "distill.lambda_teacher": 0.3, "distill.lambda_student": 1.0, "distill.tau_learner": 2.0, "distill.tau_guide": 5.0,
        "distill.side": "under", "distill.samples": 2, "distill.resample_every": 0, "distill.to_student.kind": "exp",
        "distill.to_student.alpha": 3.0, "distill.to_teacher.kind": "tanh", "distill.to_teacher.eps": 0.1,
        "eval.metrics": ("coverage", "popularity"), "eval.baselines": ("popularity", "item_knn"),
        "eval.generator": "made.generator", "eval.batch_size": 16, "eval.users": 20,
        "run.seed": 3, "run.threads": 1, "run.checkpoint_every": 2,
        "run.checkpoint_steps": 2, "run.timeout": 60,
    },
    "three files, fused, some items": {
        "data.train_path": "train.csv", "data.val_path": "val.csv", "data.test_path": "test.csv",
        "data.drop_seen_pairs": True, "data.drop_cold_users": True,
        "teacher.optimizer": "sparse_adam", "student.optimizer": "sparse_adam", "distill.resample": "gradual",
        "distill.resample_every": 2, "student.lr_scheduler": "cosine", "student.lr_scheduler_args": {"warmup": 1},
        "teacher.joint_lr_scheduler": "StepLR", "teacher.joint_lr_scheduler_args": {"step_size": 1, "gamma": 0.5},
        "student.joint_lr_scheduler": "cosine", "student.joint_lr_scheduler_args": {"warmup": 1},
        "distill.guide": "ema", "distill.ema": 0.9, "distill.pool_top": 3, "distill.pool_uniform": 2,
        "train.loss": "softmax", "distill.loss": "listwise", "distill.samples": 2,
        "distill.pool": 4, "distill.subset": 30, "distill.to_student.kind": "rank_only", "distill.to_student.mu": 3.0,
        "distill.to_teacher.kind": "rank_only", "distill.to_teacher.mu": 4.0, "run.tensorboard": True, "run.device": "cpu:0",
    },
    "auto": {
        **COLUMNS, "data.split": "leave_one", "distill.subset": "auto", "distill.auto_share": 0.3,
        "distill.negatives_from_samples": True,
        "distill.independent_directions": True, "distill.to_student.eps": 0.1, "distill.to_teacher.alpha": 1.0,
    },
    "shared negatives": {
        **COLUMNS, "data.split": "leave_one", "train.loss": "softmax", "train.negatives": 9, "train.negative_source": "batch",
        "teacher.optimizer": "sparse_adam",
    },
    "student alone": {
        **COLUMNS, "data.split": "leave_one", "train.joint": "student", "distill.lambda_teacher": 0.0, "distill.samples": 0,
        "distill.guide": "frozen",
    },
    "whole catalog": {
        **COLUMNS, "data.split": "leave_one", "train.loss": "full_softmax", "train.order": "users",
        "distill.loss": "full_softmax", "distill.guide_scores": "shares", "distill.samples": 0, "distill.pool": 3,
        "distill.pool_top": 6,
    },
    "none, and auto": {
        **COLUMNS, "data.split": "leave_one", "distill.method": "none", "distill.subset": "auto",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(60, 80, 1200, dim=4, seed=1)[0], "leave_one", seed=1)


@pytest.fixture(autouse=True)
def _as_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory, parts):
    """rows.csv with a header and stars, train.csv, val.csv and test.csv, and what made them up."""
    folder = tmp_path_factory.mktemp("settings")
    write_generator(folder / "made.generator", *generate(60, 80, 1200, dim=4, seed=1)[1:])
    rows = []
    for name in ("train", "val", "test"):
        pairs = np.stack(parts.part(name), axis=1)
        (folder / f"{name}.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs.tolist()))
        rows += [f"{u};{i};{1 + (u + i) % 7 % 5};{n}" for n, (u, i) in enumerate(pairs.tolist())]
    (folder / "rows.csv").write_text("who;what;stars;when\n" + "\n".join(rows) + "\n")
    return folder


def flags(values):
    def text(value):
        if isinstance(value, dict):
            return ",".join(f"{name}={each}" for name, each in value.items())
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    texts = {name: text(value) for name, value in values.items()}
    return [f"{OPTIONS[name].flag}={text}" for name, text in texts.items()]


def test_every_option_has_a_case_that_is_not_its_default():
    # In every group, and in test_methods.py and test_models_outside.py.
    covered = {"run.out", "distill.args", "teacher.kind", "teacher.args", "student.kind", "student.args"}
    for values in (SMALL, *GROUPS.values()):
        covered |= {n for n, v in values.items() if v != OPTIONS[n].default or tuple(OPTIONS[n].choices) == (v,)}  # type: ignore[attr-defined]
    assert {*OPTIONS} - covered == set()


@pytest.mark.parametrize("group", GROUPS)
def test_through_plan_train_and_resume(group, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setattr(plan_command, "measure", lambda config, sizes: COSTS)
    monkeypatch.setattr(automatic, "draw_share", lambda config, sizes: 0.9)
    monkeypatch.setattr(automatic, "AUTO_ITEMS", 40)
    monkeypatch.setattr(train_command, "write_report", lambda folder: folder / "report.html")
    out = "run-" + group.partition(",")[0].replace(" ", "-")
    given = SMALL | GROUPS[group] | {"run.out": out}
    assert main(["plan", *flags(given)]) == 0, capsys.readouterr().err
    assert ("distill.subset auto: exact draws would take" in capsys.readouterr().out) == (group == "auto")
    assert main(["train", *flags(given)]) == 0, capsys.readouterr().err
    kept = Config.from_toml(files / out / "config.toml")
    wanted = given | ({"distill.subset": 40} if group == "auto" else {})
    assert {name: kept[name] for name in wanted} == wanted
    longer = ["--train-epochs", "3", "--run-checkpoint-every", "1"]
    assert main(["train", "--resume", out, *longer]) == 0, capsys.readouterr().err
    assert main(["plan", str(files / out / "config.toml")]) == 0, capsys.readouterr().err


def beyond(limit, up):
    """The next number."""
    return limit + (1 if up else -1) if isinstance(limit, int) else math.nextafter(limit, math.inf if up else -math.inf)


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.type in (int, float)])
def test_ranges_end_where_they_say(name):
    option = OPTIONS[name]
    for limit, up in ((option.limits["least"], False), (option.limits["most"], True)):
        if limit is not None:
            assert option.check(option.type(limit)) == limit
            with pytest.raises(
                UserError, match=name.replace(".", r"\.") + " must be .*" + ("at most" if up else "at least")
            ):
                option.check(option.type(beyond(limit, up)))
    for number in (10**400, 1e400, math.nan, True, "1"):
        with pytest.raises(UserError, match=name.replace(".", r"\.") + " must be"):
            option.check(number)
    if option.or_zero:
        assert option.check(0) == 0
        with pytest.raises(UserError, match="or 0, found 1e-300"):  # which is 0 in float32: not what was asked for
            option.check(1e-300)


LARGEST = {
    "run.seed": INT64, "train.batch_size": INT64, "train.patience": INT64, "train.eval_every": INT64,
    "distill.resample_every": INT64, "distill.subset": INT64, "eval.batch_size": INT64, "eval.users": INT64,
    "run.checkpoint_every": INT64, "run.checkpoint_steps": INT64, "run.timeout": MOST_SECONDS, "distill.tau_guide": TAU.high,
    "distill.to_student.alpha": sys.float_info.max, "distill.to_teacher.eps": OPTIONS["distill.to_teacher.eps"].limits["most"],
}  # fmt: skip
EXTREMES = [
    LARGEST,
    {"distill.resample_every": 0, "distill.to_student.alpha": 5e-324, "distill.to_teacher.eps": 5e-324, "eval.batch_size": 1},
    {"distill.to_student.kind": "rank_only", "distill.to_student.mu": 5e-324, "train.batch_size": 700},
    {"distill.to_teacher.kind": "rank_only", "distill.to_teacher.mu": sys.float_info.max},
    *({f"{name}.optimizer": "sparse_adam", f"{name}.lr": TAU.low} for name in ("teacher", "student")),
    *({"teacher.optimizer": kind, "teacher.lr": MOST_LR} for kind in ("adam", "adagrad", "sgd", "sparse_adam")),
    *({f"distill.tau_{who}": value} for who in ("learner", "guide") for value in (TAU.low, TAU.high)),
    *({"distill.lambda_student": value, "student.optimizer": "sgd"} for value in (TAU.low, TAU.high)),
    *({"student.weight_decay": value, "student.optimizer": "sgd"} for value in (TAU.low, TAU.high)),
]  # fmt: skip


@pytest.mark.parametrize("values", EXTREMES, ids=lambda values: "-".join(values)[:60])
def test_the_ends_of_the_ranges_run(values, parts):
    """To the end, or until the numbers are no longer finite, which names what to lower."""
    base = {"train.batch_size": 2048, "teacher.dim": 4, "student.dim": 2}
    trainer = Trainer(Config().with_overrides(SMALL | base | values), parts)
    last = {name.rpartition(".")[2] for name in values}
    diverges = MOST_LR in values.values() or TAU.high in values.values() or TAU.low in values.values()
    try:
        result = trainer.fit()
    except UserError as error:
        said = str(error)
    else:
        assert all(math.isfinite(v) for found in result.metrics.values() for v in found["val"].values())
        return
    assert diverges and "diverged after" in said
    assert "weight_decay" in last or any(
        name in said for name in ("lr", "lambda_student", "tau_learner") if name in last
    )


TOO_LARGE = {
    "teacher.dim": 10**12, "student.dim": INT64, "distill.pool": 10**9, "train.negatives": 10**9, "distill.samples": 10**9,
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_sizes_are_held_against_memory_before_anything_is_written(name, parts, tmp_path, monkeypatch, capsys):
    """By the trainer and by the plan, with the same option named."""
    monkeypatch.setattr(
        Config, "check_catalog", lambda self, n_items: None
    )  # a catalog would have to be that large first
    monkeypatch.setattr(arrays, "memory_there", lambda: 8 * 10**9)
    config = Config().with_overrides(SMALL | {name: TOO_LARGE[name], "run.out": str(tmp_path / "run")})
    with pytest.raises(UserError, match=rf"memory: .* GB are needed and 8\.0 GB are there.*: lower .*{name}"):
        Trainer(config, parts)
    assert not [*tmp_path.iterdir()]
    sizes = ["--users", "60", "--items", "80", "--interactions", "1200"]
    assert main(["plan", *sizes, *flags({name: TOO_LARGE[name]})]) == 2
    assert "memory: " in (said := capsys.readouterr().err) and name in said


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 7 bytes")])
def test_an_allocation_that_fails_all_the_same_is_one_sentence(error, parts):
    trainer = Trainer(Config().with_overrides(SMALL), parts)

    def fail(*_):
        raise error

    trainer.step = fail
    with pytest.raises(UserError, match=r"not enough memory for this: .*lower teacher\.dim"):
        trainer.fit()


def test_losses_that_an_operator_refuses_are_divergence(parts):
    trainer = Trainer(Config().with_overrides(SMALL), parts)

    def fail(*_):
        raise ValueError("user_table: expected rows whose losses are finite, got inf")

    trainer.step = fail
    with pytest.raises(UserError, match=r"teacher diverged after 0 epochs of pretrain_teacher: lower teacher\.lr"):
        trainer.fit()


def test_weight_and_temperature_together():
    values = {"distill.lambda_student": 1e10, "distill.tau_learner": 1e-30}
    with pytest.raises(
        UserError, match=r"lambda_student / distill\.tau_learner is 1e\+40.*lower distill\.lambda_student"
    ):
        Config().with_overrides(values)
    assert Config().with_overrides(values | {"distill.method": "none"})


def test_threads_and_steps_that_no_machine_has(parts, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(UserError, match=r"run\.threads is 9, but this machine has 2 CPUs: set it to at most 8"):
        Trainer(Config().with_overrides(SMALL | {"run.threads": 9}), parts)
    many = SMALL | {"train.epochs": 2**32, "train.batch_size": 500, "distill.resample_every": 0}
    with pytest.raises(UserError, match=r"12,884,901,888 steps of the joint phase.*lower train\.epochs"):
        Trainer(Config().with_overrides(many), parts)
