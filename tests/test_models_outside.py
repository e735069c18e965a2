"""Models from outside the package: given to the Trainer, or registered by name; stopped, resumed, saved and opened again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bidistill import MF, Config, Trainer, UserError, evaluate, generate, matched, open_run, register_model, split
from bidistill.cli import main
from bidistill.data.sizes import Sizes
from bidistill.data.write import write_interactions
from bidistill.models.kinds import config_of
from bidistill.models.sizes import size_of_kind
from bidistill.plan import costs, make_plan
from bidistill.plan.cluster import Network, world_plan
from bidistill.registry import MODELS
from bidistill.report import CONTROL, DISTILLED, SEPARATE, results, write_report
from bidistill.training.timing import draw_share
from bidistill.training.updates import FusedUpdate
from runs import StopAfter, equal, same
from torch import nn

from bdkernels import Factors

pytestmark = pytest.mark.usefixtures("heard_signals")

BASE = {
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.pretrain_epochs": 2,
    "train.epochs": 2,
    "train.patience": 0,
    "eval.ks": (5, 10),
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.pool": 5,
}
OWN = ("two_tower", "neural")


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(folder=None, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(BASE | {"run.out": None if folder is None else str(folder)} | named)


@pytest.mark.parametrize("name", OWN)
def test_a_given_module_trains_stops_resumes_and_is_opened_again(outside, parts, tmp_path, name):
    """The run without interruption, bit for bit, dropout and all; and what is opened ranks as what was trained."""
    own = outside(name)
    start = own.modules(parts)["teacher"]
    whole = own.train(config(), parts)
    assert not equal(whole.teacher, start)
    untrained = evaluate(start, parts, "val", (10,))["ndcg@10"]
    assert whole.pretrained["teacher"]["val"]["ndcg@10"] > untrained
    assert any("teacher/loss_distill" in row and "student/loss_distill" in row for row in whole.history)

    with pytest.raises(KeyboardInterrupt):
        Trainer(config(tmp_path), parts, **own.modules(parts), callbacks=[StopAfter(13)]).fit()  # of 3 steps an epoch
    with pytest.raises(
        UserError, match=r"the teacher is a module that a program gave \(.*\).* teacher=module to Trainer"
    ):
        Trainer.resume(tmp_path)
    result = Trainer.resume(tmp_path, **own.modules(parts)).fit()
    assert same(result, whole)

    opened = open_run(tmp_path, **own.modules(parts))
    assert equal(opened.teacher, whole.teacher) and equal(opened.student, whole.student)
    assert opened.metrics == whole.metrics and opened.config.teacher.kind == "given"
    again = open_run(tmp_path, **own.modules(parts)).model("teacher", pretrained=True)
    assert equal(opened.model("teacher", pretrained=True), again) and not equal(again, start)
    assert evaluate(opened.student, opened.split, "test", (5, 10)) == whole.metrics["student"]["test"]
    assert equal(
        opened.model("teacher", pretrained=True),
        open_run(tmp_path, **own.modules(parts)).model("teacher", pretrained=True),
    )
    with pytest.raises(UserError, match=r"the student is a module that a program gave"):
        _ = open_run(tmp_path).student


@pytest.mark.parametrize("name", OWN)
def test_a_registered_kind(outside, parts, tmp_path, capsys, name):
    """Chosen by settings alone, so that the command line can evaluate, recommend and report, and resume needs no module."""
    outside(name)
    kinds = {"teacher__kind": name, "student__kind": name, "student__dim": 3}
    if name == "two_tower":
        kinds |= {"teacher__args": {"width": 6}, "student__args": {"width": 2, "dropout": 0.0}}
    settings = config(tmp_path, **kinds)
    whole = Trainer(settings.with_overrides({"run.out": None}), parts).fit()
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings, parts, callbacks=[StopAfter(13)]).fit()
    assert same(Trainer.resume(tmp_path).fit(), whole)
    opened = open_run(tmp_path)
    assert equal(opened.student, whole.student) and config_of(opened.student) == config_of(whole.student)
    assert Config.from_toml(tmp_path / "config.toml") == settings
    for command in (["evaluate", str(tmp_path)], ["report", str(tmp_path)]):
        assert main(command) == 0, capsys.readouterr().err
    user = str(parts.user_ids[0])
    capsys.readouterr()
    assert main(["recommend", str(tmp_path), "--users", user, "-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


class Modes(nn.Module):
    """Writes down in which mode, and whether for a gradient, it is asked; a layer of it is frozen."""

    def __init__(self, n_users, n_items, asked):
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, 4), nn.Embedding(n_items, 4)
        self.frozen, self.asked = nn.BatchNorm1d(4).eval(), asked

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def score(self, users, items):
        self.asked.add(("score", self.training, torch.is_grad_enabled()))
        assert not self.frozen.training
        return (self.frozen(self.users(users))[:, None] * self.items(items)).sum(2)

    def factors(self, users):
        self.asked.add(("factors", self.training, torch.is_grad_enabled()))
        return Factors(self.frozen(self.users(users)), self.items.weight)


@pytest.mark.parametrize("every", [0, 1])
def test_only_a_step_learns_in_training_mode(parts, every):
    """Ranks, draws and the guides' scores are those of the evaluation mode, so dropout does not make them others."""
    asked = set()
    pair = {name: Modes(parts.n_users, parts.n_items, asked) for name in ("teacher", "student")}
    for module in pair.values():
        module.eval()  # as it is left by whoever has looked at it before
    trainer = Trainer(config(distill__resample_every=every), parts, **pair)
    asked.clear()
    trainer.fit()
    # The step's scores alone in training mode; those of the guide, and what ranks and draws are made from, not.
    assert asked == {("score", True, True), ("score", False, False), ("factors", False, False)}
    assert all(module.training and module.frozen.weight.requires_grad for module in pair.values())
    assert torch.equal(pair["teacher"].frozen.running_mean, torch.zeros(4))


class Odd(nn.Module):
    """A model with one fault."""

    def __init__(self, parts, fault=""):
        super().__init__()
        self.fault = fault
        few = fault == "too few rows"
        self.users = nn.Embedding(parts.n_users - few, 4, sparse="sparse" in fault)
        self.items = nn.Embedding(parts.n_items, 4, sparse="sparse" in fault)
        if fault == "other items":
            self.n_items = parts.n_items + 1
        if "block" in fault:
            self.factors, self.score_block = None, self.some_block
        if fault == "frozen":
            self.requires_grad_(False)

    def score(self, users, items):
        found = (self.users(users)[:, None] * self.items(items)).sum(2)
        if self.fault == "a shape":
            return found.sum(1)
        if self.fault == "whole numbers":
            return found.long()
        return found.detach() if self.fault == "detached" else found

    def some_block(self, users, first, stop):
        found = self.users(users) @ self.items.weight[first:stop].T
        return found.repeat(1, 2) if self.fault == "a block" else 2 * found if self.fault == "other blocks" else found

    def factors(self, users):
        if self.fault == "no factors":
            return self.users(users), self.items.weight
        items = self.items.weight[: 5 if self.fault == "some items" else None]
        return Factors(self.users(users) * (2.0 if self.fault == "contradiction" else 1.0), items)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "too few rows",
            r"the teacher Odd: score fails for the first and the last user .*index out of range.* split.n_users",
        ),
        ("other items", r"the teacher Odd has n_items = 51, but the split has 50: make it for split.n_items"),
        ("frozen", r"the teacher Odd has no parameter that requires a gradient"),
        (
            "a shape",
            r"the teacher Odd: score gives the shape \[2\], not \[2, 3\]: it must be score\(users: int64 \[B\], items",
        ),
        ("whole numbers", r"the teacher Odd: score gives torch.int64, not a tensor of floats"),
        ("detached", r"the teacher Odd: score gives numbers without a gradient"),
        ("no factors", r"the teacher Odd: factors gives tuple: it must be factors\(users: int64 \[B\]\) -> Factors"),
        ("some items", r"the teacher Odd: factors, item_factors gives the shape \[5, 4\], not \[50, 4\]"),
        ("contradiction", r"the teacher Odd: factors and score contradict each other"),
        (
            "a block",
            r"the teacher Odd: score_block gives the shape \[2, 2\], not \[2, 1\]: it must be score_block\(users",
        ),
        ("other blocks", r"the teacher Odd: score_block and score contradict each other"),
        ("sparse", r"teacher.optimizer is adam, but the teacher Odd has parameters with sparse gradients"),
    ],
)
def test_what_a_module_lacks_is_said_before_training(parts, tmp_path, fault, words):
    with pytest.raises(UserError, match=words):
        Trainer(config(tmp_path / "run"), parts, teacher=Odd(parts, fault), student=Odd(parts))
    assert not (tmp_path / "run").exists()


def test_what_is_no_model_at_all(parts):
    sound = Odd(parts)
    for teacher, words in (
        (lambda users, items: 0, "the teacher must be a torch.nn.Module, found function"),
        (
            nn.Linear(2, 2),
            r"the teacher Linear has no method score: give it score\(users: int64 \[B\], items: int64 \[B, C\]",
        ),
        (sound, "the teacher and the student share parameters.*copy.deepcopy"),
    ):
        with pytest.raises(UserError, match=words):
            Trainer(config(), parts, teacher=teacher, student=sound)
    with pytest.raises(
        UserError, match=r"teacher.optimizer is sparse_adam, but .* Odd has parameters with dense gradients"
    ):
        Trainer(config(teacher__optimizer="sparse_adam"), parts, teacher=Odd(parts), student=sound)
    with pytest.raises(UserError, match="the student is a module that a program gave, .* or register its class"):
        Trainer(config(student__kind="given"), parts)
    with pytest.raises(UserError, match="distill.subset auto .* the teacher is given: set it to 0"):
        Trainer(config(distill__subset="auto"), parts, teacher=sound)


def test_sparse_gradients_and_one_given_model(parts):
    """The other model is made from the settings."""
    result = Trainer(
        config(teacher__optimizer="sparse_adam", student__dim=3), parts, teacher=Odd(parts, "sparse")
    ).fit()
    assert type(result.teacher) is Odd and type(result.student) is MF and result.student.dim == 3


def test_models_of_two_sorts_learn_from_each_other(outside, parts, tmp_path):
    """A teacher that is no dot product, or scores blocks; a student of tables, whose steps are fused."""
    teachers = {"neural": outside("neural").modules(parts)["teacher"], "blocks": Odd(parts, "blocks")}
    for name, teacher in teachers.items():
        folder = tmp_path / name
        settings = config(folder, student__optimizer="sparse_adam", student__dim=3, distill__resample_every=0)
        trainer = Trainer(settings, parts, teacher=teacher)
        assert isinstance(trainer.engine.learners["student"].update, FusedUpdate)
        result = trainer.fit()
        last = result.history[-1]
        assert last["teacher/loss_distill"] > 0 and last["student/loss_distill"] > 0
        opened = open_run(folder, teacher=teacher)
        assert equal(opened.student, result.student) and equal(open_run(folder).student, result.student)
        assert evaluate(opened.teacher, parts, "test", (5, 10)) == result.metrics["teacher"]["test"]


def test_another_module_does_not_resume_the_run(outside, parts, tmp_path):
    own = outside("two_tower")
    Trainer(config(tmp_path, train__epochs=1), parts, **own.modules(parts)).fit()
    with pytest.raises(UserError, match="was trained with teacher.args = .*TwoTower.*, not .*Odd"):
        Trainer.resume(tmp_path, config=config(train__epochs=1), teacher=Odd(parts), student=Odd(parts))
    wider = {"teacher": own.TwoTower(parts.n_users, parts.n_items, 9), "student": own.modules(parts)["student"]}
    with pytest.raises(UserError, match="does not hold the tensors of this run .*size mismatch"):
        Trainer.resume(tmp_path, **wider)
    with pytest.raises(UserError, match="does not hold the tensors of its model, a TwoTower .*size mismatch"):
        _ = open_run(tmp_path, **wider).teacher


def test_a_warm_start_of_given_modules(outside, parts, tmp_path, capsys):
    """A control in Python: the same modules from the same pretraining."""
    own = outside("two_tower")
    run = Trainer(config(tmp_path / "run"), parts, **own.modules(parts))
    run.fit()
    control = matched(run).with_overrides({"run.out": str(tmp_path / "run" / "control")})
    Trainer(control, parts, **own.modules(parts), warm_start=tmp_path / "run").fit()
    opened = open_run(tmp_path / "run", **own.modules(parts))
    assert opened.control is not None and opened.control.pretrained == opened.pretrained
    assert results(opened).labels == [SEPARATE, CONTROL, DISTILLED]
    assert write_report(opened) == tmp_path / "run" / "report.html"
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "the teacher is a module that a program gave (TwoTower)" in capsys.readouterr().err


def test_given_modules_grow(outside, parts, tmp_path):
    """New users and items get the rows of the new modules, the others keep theirs; shapes tell which rows are whose."""
    own = outside("two_tower")
    more = split(generate(48, 60, 1100, dim=4, seed=1)[0], "leave_one", seed=1)
    Trainer(config(tmp_path), parts, **own.modules(parts)).fit()
    before = open_run(tmp_path, **own.modules(parts)).model("teacher", pretrained=True)
    fresh = own.modules(more)["teacher"]
    grown = Trainer.resume(tmp_path, split=more, grow=True, **own.modules(more))
    after = grown.engine.new_model("teacher")
    grown.folder.load_pretrained("teacher", after, more.fingerprint())
    rows = {"users.0.weight": parts.n_users, "items.0.weight": parts.n_items}
    for name, value in before.state_dict().items():
        if name in rows:
            assert torch.equal(after.state_dict()[name][: rows[name]], value)
            assert torch.equal(after.state_dict()[name][rows[name] :], fresh.state_dict()[name][rows[name] :])
        elif name != "catalog":
            assert torch.equal(after.state_dict()[name], value)


class Computed(nn.Module):
    """A factory that needs real memory: it computes its initial values by numpy."""

    def __init__(self, n_users, n_items, seed):
        super().__init__()
        table = np.random.default_rng(seed).normal(size=(n_users + 2 * n_items, 3)) * torch.ones(1).numpy()
        self.n_users, self.table = n_users, nn.Parameter(torch.from_numpy(table).float())

    def score(self, users, items):
        return (self.table[users][:, None] * self.table[self.n_users + items]).sum(2)


@pytest.mark.usefixtures("outside")
def test_the_size_of_any_kind_is_known_before_it_is_made():
    register_model("computed", Computed)
    sizes = {"n_users": 1000, "n_items": 300}
    assert size_of_kind({"kind": "computed", **sizes}).state == 4 * 3 * 1600
    found = size_of_kind({"kind": "mf", **sizes, "dim": 7})
    assert found == (4 * (1000 * 7 + 300 * 8), 8 * 7, 7, True, False, None)
    ease = size_of_kind({"kind": "ease", **sizes})
    assert ease[:5] == (4 * 300**2 + 8 * 1001, 0, None, False, True) and ease.fit_bytes(9) == 16 * 300**2


def test_a_given_module_counts_in_the_memory_that_a_run_needs(outside, parts, monkeypatch):
    monkeypatch.setattr("bidistill.training.memory.memory_there", lambda: 10**8)
    large = outside("two_tower").TwoTower(10**6, parts.n_items)
    with pytest.raises(UserError, match="memory: .* lower the size of the teacher$"):
        Trainer(config(), parts, teacher=large)


def test_the_plan_and_subset_auto_know_any_kind(outside, parts, monkeypatch):
    """Memory by the model's own state, time by its own steps, draws and ranks."""
    outside("neural")
    for name in ("program_seconds", "read_seconds"):
        monkeypatch.setattr(costs, name, lambda: 1e-3)
    monkeypatch.setattr(costs, "save_seconds", lambda folder: 1e-9)
    settings = config(teacher__kind="neural", student__kind="neural", student__dim=4, distill__subset="auto")
    sizes = Sizes.of_split(parts, settings)
    measured = costs.measure(settings, sizes)
    plan = make_plan(settings, sizes, measured)
    model = MODELS["neural"](parts.n_users, parts.n_items, dim=4)
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    memory = {part.name: part.bytes for part in plan.memory}
    assert memory["student: tables, best state, optimizer"] == 5 * state  # itself, the best, Adam's two, a gradient
    assert all(job.seconds > 0 for job in plan.times if "resampling" in job.name or "evaluation" in job.name)
    with pytest.raises(UserError, match="teacher.kind 'neural' cannot lie on several processes: plan without --world"):
        world_plan(settings, sizes, measured, 2, Network())
    assert 0 < draw_share(settings, sizes) < 1
    assert Trainer(settings, parts).config.distill.subset == 0


FAKE = """[bidistill.models]
{name} = outside.{name}:{factory}
"""


def test_an_installed_package_registers_its_kind(outside, tmp_path):
    """By an entry point: another process, which imports nothing of it itself, trains and recommends."""
    name, factory = "two_tower", "TwoTower"
    package = tmp_path / "site" / "their_models-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: their-models\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(FAKE.format(name=name, factory=factory))
    write_interactions(tmp_path / "rows.csv", generate(40, 50, 800, dim=4, seed=1)[0])
    settings = config(tmp_path / "run").with_overrides(
        {"data.path": str(tmp_path / "rows.csv"), "data.split": "leave_one"}
    )
    settings.to_toml(tmp_path / "settings.toml")
    text = (tmp_path / "settings.toml").read_text().replace('kind = "mf"', f'kind = "{name}"')
    (tmp_path / "settings.toml").write_text(text)
    root = Path(__file__).parents[1]
    paths = [tmp_path / "site", root / "tests", root, root / "python"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    folder = str(tmp_path / "run")
    for command in (["train", str(tmp_path / "settings.toml")], ["recommend", folder, "--users", "1"]):
        done = subprocess.run(
            [sys.executable, "-m", "bidistill", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    outside(name)
    assert type(open_run(folder).student).__name__ == factory


def test_the_page_on_models(outside, tmp_path, monkeypatch):
    """Its Python blocks, one after the other, as they stand."""
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    exec(compile("\n".join(blocks), "docs/models.md", "exec"), names)
    assert names["run"].student.layers[0].in_features == 8 and (tmp_path / "named" / "metrics.json").exists()  # type: ignore[attr-defined]
