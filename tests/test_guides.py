"""Whom learners follow and who learns in the joint phase: live, frozen and averaged guides, a teacher that stays as it is, and
learning rates of the joint phase: trained, stopped, resumed bit for bit, and grown."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from bidistill import MF, Bidirectional, Config, Distiller, Trainer, UserError, generate, split
from bidistill.config import ModelConfig
from bidistill.data import Interactions
from bidistill.data.sizes import Sizes
from bidistill.evaluation.ranks import seen_items
from bidistill.plan.estimate import jobs_of
from bidistill.report import open_run, results, table, write_report
from bidistill.runs.checkpoint import load_checkpoint
from bidistill.training.callbacks import Callback
from bidistill.training.control import matched
from bidistill.training.sharded import Sharded
from runs import StopAt, equal, same, timeless
from test_plan import COSTS

from bdkernels import Seen

pytestmark = [
    pytest.mark.usefixtures("heard_signals"),
    pytest.mark.filterwarnings("ignore:.*epoch 0 is kept"),
]

BASE = {
    "teacher.dim": 8,
    "student.dim": 2,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.pretrain_epochs": 2,
    "train.epochs": 3,
    "train.patience": 0,
    "eval.ks": (5, 10),
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.samples": 3,
    "distill.pool": 6,
    "distill.resample_every": 2,
}
ALONE = {"train.joint": "student", "distill.lambda_teacher": 0.0}
AVERAGED = {"distill.guide": "ema", "distill.ema": 0.7}
JOINT_LR = {
    "teacher.joint_lr": 0.001, "student.lr_scheduler": "cosine", "student.joint_lr": 0.004,
    "student.joint_lr_scheduler": "StepLR", "student.joint_lr_scheduler_args": {"step_size": 1, "gamma": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(folder=None, *changes):
    settings = Config().with_overrides(BASE | {"run.out": None if folder is None else str(folder)})
    for each in changes:
        settings = settings.with_overrides(each)
    return settings


def joint(history):
    return [row for row in history if row["phase"] == "joint"]


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
@pytest.mark.parametrize("given", [{"distill.guide": "frozen"}, AVERAGED, ALONE, JOINT_LR], ids=repr)
def test_a_run_goes_on_bit_for_bit(parts, tmp_path, given, optimizer):
    given = given | {"teacher.optimizer": optimizer, "student.optimizer": optimizer}
    whole = Trainer(config(None, given), parts).fit()
    for name, place in (("epoch", (1, 3)), ("step", (2, 1))):
        trainer = Trainer(config(tmp_path / name, given), parts, callbacks=[StopAt(*place)])
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer.save()
        assert same(Trainer.resume(tmp_path / name).fit(), whole)


def test_frozen_guides_are_the_best_of_the_pretraining(parts, tmp_path):
    """A copy of them is in the checkpoint, and the losses are those of these copies, whatever became of the models."""
    trainer = Trainer(config(tmp_path, {"distill.guide": "frozen"}), parts, callbacks=[StopAt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    start = Trainer(config(None, {"train.epochs": 0}), parts).fit()
    saved = load_checkpoint(tmp_path / "checkpoint")[0]
    for name, model in (("teacher", start.teacher), ("student", start.student)):
        for key, value in model.state_dict().items():
            assert torch.equal(saved[f"method.guides.{name}.{key}"], value)
    objective = trainer.engine.objective
    assert not equal(objective.models["teacher"], start.teacher)
    users, positives = trainer.engine.users[:60], trainer.engine.items[:60]
    batches = objective.batches(("teacher", "student"), users, positives, 5, torch.Generator(), joint=True)
    for name, guide in (("student", start.teacher), ("teacher", start.student)):
        batch = batches[name]
        assert batch.distill.mask.any()
        wanted = guide.score(users, batch.distill.ids.clamp(min=0)).detach()
        torch.testing.assert_close(batch.guide_scores, wanted)


def test_what_is_drawn_goes_by_the_frozen_guide(parts):
    """The student's items are those of the guide's copy and the student of now; the teacher's those of the other pair."""
    teacher, student = MF(parts.n_users, parts.n_items, 4, seed=1), MF(parts.n_users, parts.n_items, 2, seed=2)
    old = copy.deepcopy(teacher), copy.deepcopy(student)
    seen, everyone = seen_items(parts, "val"), torch.arange(parts.n_users)

    def made(guide):
        return Distiller(Bidirectional(), seen, parts.n_items, samples=8, guide=guide)

    frozen = made("frozen")
    frozen.guides(teacher, student)
    change([teacher, student], 3)
    found = frozen.draw(teacher, student, everyone, 1, torch.Generator())
    to_student = made("live").draw(old[0], student, everyone, 1, torch.Generator())["student"]
    to_teacher = made("live").draw(teacher, old[1], everyone, 1, torch.Generator())["teacher"]
    assert torch.equal(found["student"].ids, to_student.ids) and torch.equal(found["teacher"].ids, to_teacher.ids)
    now = made("live").draw(teacher, student, everyone, 1, torch.Generator())
    assert not torch.equal(found["student"].ids, now["student"].ids)


@torch.no_grad()
def change(models, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in (each for model in models for each in model.parameters()):
        parameter.add_(torch.randn(parameter.shape, generator=generator))


class Counted(torch.nn.Module):
    """A model with a buffer, and a table that stands for users and items alike."""

    def __init__(self, n):
        super().__init__()
        self.n_users = self.n_items = n
        self.users = torch.nn.Embedding(n, 3)
        self.items = self.users
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def score(self, users, items):
        return torch.einsum("rd,rcd->rc", self.users(users), self.items(items))


def test_an_averaged_guide_by_hand():
    """average = decay * average + (1 - decay) * model before every step but the first; buffers are those of the model."""
    torch.manual_seed(0)
    teacher, student = Counted(20), Counted(20)
    users = torch.arange(20)
    seen = torch.arange(21), torch.arange(20)  # each has seen one item
    distiller = Distiller(Bidirectional(), Seen(*seen), 20, samples=2, guide="ema", ema=0.75)
    wanted = teacher.users.weight.detach().double()
    for step in range(5):
        if step:
            change([teacher], step)
            teacher.count += 1
            wanted = 0.75 * wanted + 0.25 * teacher.users.weight.detach().double()
        losses = distiller(users, teacher, student)
        guide = distiller.guides(teacher, student)["student"]
        torch.testing.assert_close(guide.users.weight.double(), wanted, rtol=1e-5, atol=1e-6)  # type: ignore[attr-defined]
        assert guide.count == step and losses["student"].isfinite()  # type: ignore[attr-defined]
        assert not any(parameter.requires_grad for parameter in guide.parameters())
    state = copy.deepcopy(distiller.state_dict())
    again = Distiller(Bidirectional(), Seen(*seen), 20, samples=2, guide="ema", ema=0.75)
    again.load_state_dict(state)
    change([teacher], 9)
    assert again(users, teacher, student)["student"] == distiller(users, teacher, student)["student"]
    for one, two in zip(again.tensors().values(), distiller.tensors().values(), strict=True):
        assert torch.equal(one, two)


def test_a_teacher_that_stays_as_it_is(parts, tmp_path):
    """No column of the joint phase is the teacher's, its state and metrics are those of its pretraining, and the student is that
    of a run where both go on and the guide is frozen."""
    quick = {"train.pretrain_epochs": 0, "train.batch_size": 64}  # so that a later epoch of the joint phase is the best
    settings = config(tmp_path / "run", ALONE, quick)
    trainer = Trainer(settings, parts)
    trainer.engine.learners["teacher"].step = lambda batch: pytest.fail("the teacher learns")
    result = trainer.fit()
    assert trainer.distiller._copies == {} and trainer.distiller.guide == "live"
    start = Trainer(config(None, {"train.epochs": 0}, quick), parts).fit()
    assert equal(result.teacher, start.teacher) and not equal(result.student, start.student)
    assert result.metrics["teacher"] == result.pretrained["teacher"]
    assert len(joint(result.history)) == 4
    assert not any(name.startswith("teacher/") for row in joint(result.history) for name in row)
    frozen = Trainer(config(None, {"distill.guide": "frozen", "distill.lambda_teacher": 0.0}, quick), parts).fit()
    assert equal(result.student, frozen.student) and not equal(result.teacher, frozen.teacher)
    for mine, theirs in zip(timeless(joint(result.history)), timeless(joint(frozen.history)), strict=True):
        assert mine == {name: value for name, value in theirs.items() if not name.startswith("teacher/")}

    control = matched(trainer).with_overrides({"run.out": str(tmp_path / "run" / "control")})
    assert control.train.joint == "student"
    other = Trainer(control, parts, warm_start=tmp_path / "run").fit()
    assert equal(other.teacher, result.teacher) and not equal(other.student, result.student)
    run = open_run(tmp_path / "run")
    assert run.control is not None
    found = results(run)
    assert found.line("teacher", "ndcg@10").changed == "none"
    assert [each and each.trained for each in found.epochs["teacher"]] == [0, None, None]
    assert "epochs" in table(found)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert (
        "Learning from the teacher, which stayed as it was, changed NDCG@10 on the test part, of 40 users: the student"
        in page
    )
    shutil.rmtree(tmp_path / "run" / "control")  # where the teacher has no history at all, there is no curve of it
    Trainer(config(tmp_path / "warm", ALONE, quick), parts, warm_start=tmp_path / "run").fit()
    assert write_report(tmp_path / "warm").read_text(encoding="utf-8").count("<svg") == page.count("<svg") - 1
    assert "the teacher&#x27;s by" not in page and "the teacher's by" not in page


def test_the_plan_of_a_teacher_that_stays_as_it_is(parts):
    """It is evaluated after the joint phase by the report alone."""
    settings = config(None, ALONE)
    jobs = {job.name: job for job in jobs_of(settings, Sizes.of_split(parts, settings), COSTS)}
    both = {job.name: job for job in jobs_of(config(), Sizes.of_split(parts, settings), COSTS)}
    shorter = both["joint phase: evaluation"].seconds - jobs["joint phase: evaluation"].seconds
    teacher = jobs["the report's evaluation of the teacher"]
    assert teacher.seconds == pytest.approx(shorter) and teacher.times == 1
    assert "the report's evaluation of the teacher" not in both


def test_learning_rates_of_the_joint_phase(parts):
    """Those of the settings, which the first phase does not have; unset, they are those of the first."""
    rates = {}

    class Watch(Callback):
        def on_step(self, run):
            phase, epoch = run.progress.phase, run.progress.epoch
            rates.setdefault((phase, epoch), {name: run.lr(name) for name in ("teacher", "student")})

    Trainer(config(None, JOINT_LR), parts, callbacks=[Watch()]).fit()
    assert [rates["pretrain_teacher", epoch]["teacher"] for epoch in (0, 1)] == [0.02, 0.02]
    assert [rates["pretrain_student", epoch]["student"] for epoch in (0, 1)] == pytest.approx([0.02, 0.01])
    assert [rates["joint", epoch]["teacher"] for epoch in (0, 1, 2)] == [0.001] * 3
    assert [rates["joint", epoch]["student"] for epoch in (0, 1, 2)] == pytest.approx([0.004, 0.002, 0.001])
    plain = ModelConfig(lr=0.5, lr_scheduler="cosine", lr_scheduler_args={"warmup": 1})
    assert plain.of_joint_phase() == plain
    constant = replace(plain, joint_lr_scheduler="constant").of_joint_phase()
    assert (constant.lr, constant.lr_scheduler, constant.lr_scheduler_args) == (0.5, None, {})


@pytest.mark.parametrize("given", [AVERAGED, {"distill.guide": "frozen"}, ALONE], ids=repr)
def test_runs_grow(tmp_path, given):
    """Old users and items keep their rows of the guides' copies, new ones get fresh rows, and training goes on."""
    made, _, _ = generate(60, 70, 1200, dim=4, seed=1)
    old = Interactions(
        *(each[made.users < 50] for each in (made.users, made.items)), None, np.arange(50), np.arange(made.n_items)
    )
    before, after = split(old, "leave_one", seed=1), split(made, "leave_one", seed=1)
    trainer = Trainer(config(tmp_path, given), before, callbacks=[StopAt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    copied = {name: model.state_dict() for name, model in trainer.distiller._copies.items()}
    assert bool(copied) == (given is not ALONE)
    grown = Trainer.resume(tmp_path, split=after, grow=True)
    places = torch.from_numpy(np.searchsorted(after.user_ids, before.user_ids))
    for name, model in grown.distiller.guides(*grown.engine.objective.pair).items():
        guide = {"student": "teacher", "teacher": "student"}[name]
        if copied:
            kept = model.state_dict()["user_factors.weight"]
            assert len(kept) == after.n_users and torch.equal(kept[places], copied[guide]["user_factors.weight"])
    result = grown.fit()
    assert all(torch.isfinite(each).all() for each in result.student.state_dict().values())
    if given is ALONE:
        assert result.metrics["teacher"] == result.pretrained["teacher"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train.joint": "student"}, r"distill\.lambda_teacher is 0\.1: set distill\.lambda_teacher to 0"),
        ({"train.joint": "teacher"}, r"train\.joint must be one of both, student"),
        ({"distill.ema": 0.5}, r"distill\.ema is set, but distill\.guide is 'live'"),
        ({"distill.ema": 1.0, "distill.guide": "ema"}, r"distill\.ema must be .* below 1"),
        ({"distill.guide": "best"}, r"distill\.guide must be one of live, frozen, ema"),
        ({"student.joint_lr": 0.0}, r"student\.joint_lr must be"),
        ({"student.joint_lr_scheduler": "cosin"}, r"student\.joint_lr_scheduler must be one of"),
        ({"student.joint_lr_scheduler_args": {"a": 1}}, r"there is no student\.joint_lr_scheduler"),
        (
            {"student.joint_lr_scheduler": "constant", "student.joint_lr_scheduler_args": {"a": 1}},
            r"there is no student\.joint_lr_scheduler",
        ),
    ],
)
def test_what_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        Config().with_overrides(values)


def test_what_is_refused_elsewhere(parts):
    sgd = {"teacher.optimizer": "sgd", "student.optimizer": "sgd"}
    with pytest.raises(UserError, match=r"distill\.guide 'frozen' works on one process only"):
        Sharded(None).check(config(None, sgd, {"distill.guide": "frozen"}))
    with pytest.raises(UserError, match=r"train\.joint student works on one process only"):
        Sharded(None).check(config(None, sgd, ALONE))
    assert config(None, {"distill.method": "none", "train.joint": "student"}).train.joint == "student"
    for wrong in ({"guide": "best"}, {"ema": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            Distiller(Bidirectional(), seen_items(parts, "val"), parts.n_items, **wrong)
