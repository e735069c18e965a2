"""Where distilled items come from: discrepancy draws, the guide's best, uniform ones, mixed by counts; and whole pools."""

import numpy as np
import pytest
import torch
from bidistill import MF, Bidirectional, Config, Distiller, Trainer, UserError, generate, split
from bidistill.data.sizes import Sizes
from bidistill.distill.method import make_method
from bidistill.evaluation.ranks import seen_items
from bidistill.training.engine import Engine
from bidistill.training.memory import memory
from bidistill.training.timing import draw_cost, step_seconds
from runs import StopAt, same
from scipy.stats import chisquare

from bdkernels import Exp, Seen, Tanh, Uniform, sample

pytestmark = [
    pytest.mark.usefixtures("heard_signals"),
    pytest.mark.filterwarnings("ignore:.*epoch 0 is kept"),
]

BASE = {
    "teacher.dim": 8, "student.dim": 2, "train.batch_size": 256, "train.pretrain_epochs": 1, "train.epochs": 3,
    "train.patience": 0, "eval.ks": (5, 10), "train.monitor": "ndcg@10", "run.progress": False,
    "distill.pool": 4, "distill.pool_top": 3, "distill.pool_uniform": 5,
}  # fmt: skip
WHOLE = {"distill.samples": 0}


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(folder=None, *changes):
    settings = Config().with_overrides(BASE | {"run.out": None if folder is None else str(folder)})
    for each in changes:
        settings = settings.with_overrides(each)
    return settings


def dense(model, parts):
    """[users, items] float64 scores, -inf where the user has seen the item in training."""
    users, items = torch.arange(parts.n_users), torch.arange(parts.n_items).expand(parts.n_users, -1)
    found = model.score(users, items).detach().double().numpy()
    found[parts.train_users, parts.train_items] = -np.inf
    return found


def pair(parts):
    return MF(parts.n_users, parts.n_items, 8, seed=1), MF(parts.n_users, parts.n_items, 2, seed=2)


@pytest.mark.parametrize("learners", [("student", "teacher"), ("student",), ("teacher",)])
def test_a_pool_has_its_counts_of_each_source(parts, learners):
    models = dict(zip(("teacher", "student"), pair(parts), strict=True))
    seen, everyone = seen_items(parts, "val"), torch.arange(parts.n_users)
    method = Bidirectional(Tanh(5.0), Exp(2.0), top=3, uniform=5)
    distiller = Distiller(method, seen, parts.n_items, learners=learners, samples=0, pool=12, resample_every=1, seed=4)
    distiller.resample(models["teacher"], models["student"], 7)
    found = distiller.draw(models["teacher"], models["student"], everyone, 7, torch.Generator())
    factors = [models[name].factors(everyone) for name in ("teacher", "student")]
    wanted = sample(
        *factors, 4, seen, to_student=Tanh(5.0) if "student" in learners else None,
        to_teacher=Exp(2.0) if "teacher" in learners else None, user_ids=everyone, step=7, seed=4,
    )._asdict()  # fmt: skip
    assert {*found} == {*learners}
    for name, draws in found.items():
        assert draws.ids.shape == (parts.n_users, 12) and draws.mask.all()
        assert torch.equal(draws.ids[:, :4], wanted[name].ids)
        scores = dense(models[{"student": "teacher", "teacher": "student"}[name]], parts)
        assert np.array_equal(draws.ids[:, 4:7].numpy(), np.argsort(-scores, 1, kind="stable")[:, :3])
        assert np.isfinite(np.take_along_axis(scores, draws.ids.numpy(), 1)).all()  # nothing seen


def test_uniform_items_are_uniform_and_other_ones_each_time(parts):
    """Chi-square of all users' draws over their unseen items, and no draw is that of the discrepancy's proposals."""
    models, seen = pair(parts), seen_items(parts, "val")
    everyone = torch.arange(parts.n_users)
    distiller = Distiller(Bidirectional(top=0, uniform=40), seen, parts.n_items, samples=80)
    counts, unseen = np.zeros((parts.n_users, parts.n_items)), np.isfinite(dense(models[0], parts))
    factors, repeats = [model.factors(everyone) for model in models], []
    for step in range(20):
        ids = distiller.draw(*models, everyone, step, torch.Generator())["student"].ids.numpy()
        np.add.at(counts, (np.arange(parts.n_users)[:, None], ids[:, 40:]), 1)
        proposed = sample(
            *factors, 40, seen, to_student=Uniform(), to_teacher=None, user_ids=everyone, step=step, seed=0
        )
        repeats.append((proposed.to_student.ids.numpy() == ids[:, 40:]).mean())
    assert counts.sum() == 20 * 40 * parts.n_users and not counts[~unseen].any()
    chances = [chisquare(row[which]).pvalue for row, which in zip(counts, unseen, strict=True)]
    assert min(chances) > 1e-4 / parts.n_users and np.mean(chances) > 0.3
    assert np.mean(repeats) < 0.1  # equal by chance alone: they are not the proposals that the discrepancy accepts from


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
@pytest.mark.parametrize(
    "given",
    [{}, WHOLE, WHOLE | {"distill.pool": 0, "distill.pool_uniform": 0}, WHOLE | {"distill.resample": "gradual"},
     {"distill.pool": 0, "distill.pool_top": 0, "distill.samples": 2, "distill.resample_every": 2}],
    ids=repr,
)  # fmt: skip
def test_a_run_goes_on_bit_for_bit(parts, tmp_path, given, optimizer):
    given = given | {"teacher.optimizer": optimizer, "student.optimizer": optimizer}
    whole = Trainer(config(None, given), parts).fit()
    assert all(row["student/loss_distill"] > 0 for row in whole.history if row["phase"] == "joint" and row["epoch"])
    trainer = Trainer(config(tmp_path, given), parts, callbacks=[StopAt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    assert same(Trainer.resume(tmp_path).fit(), whole)


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
def test_the_loss_over_a_whole_pool(parts, optimizer):
    """The mean over the rows and all of their pool's items, whether the step is fused or not."""
    engine = Engine(config(None, WHOLE, {"teacher.optimizer": optimizer, "student.optimizer": optimizer}), parts)
    engine.objective.resample(0, 3)
    users, positives = engine.users[:90], engine.items[:90]
    teacher, student = engine.objective.pair
    pool = engine.objective.distiller.pool
    assert pool.shape == (parts.n_users, 24) and (pool >= 0).all()
    ids = pool[users, :12].long()
    own, guide = (model.score(users, ids).detach().double().sigmoid() for model in (student, teacher))
    wanted = torch.nn.functional.binary_cross_entropy(own, guide)
    found = engine.step("joint", users, positives, 0)["student/loss_distill"]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
def test_the_listwise_loss_over_a_whole_mixed_pool(parts, optimizer):
    """KL(p || q) of the softmaxes over a user's whole list, by a frozen teacher: eager and fused, and the student learns it."""
    own = {
        "student.optimizer": optimizer,
        "distill.loss": "listwise",
        "distill.tau_guide": 0.5,
        "distill.lambda_teacher": 0.0,
    }
    engine = Engine(config(None, WHOLE, own, {"train.joint": "student", "distill.lambda_student": 5.0}), parts)
    assert [each for each in engine.unfused() if "student" in each.partition(" trains")[0]] == (
        [] if optimizer == "sparse_adam" else engine.unfused()
    )
    teacher, student = engine.objective.pair
    with torch.no_grad():  # an untrained teacher has hardly a preference
        teacher.user_factors.weight.mul_(30)  # type: ignore[attr-defined]
        teacher.item_factors.weight.mul_(30)  # type: ignore[attr-defined]
    engine.objective.resample(0, 3)
    users, positives = engine.users, engine.items
    ids = engine.objective.distiller.pool[users].long()
    mine, theirs = (model.score(users, ids).detach().double().numpy() for model in (student, teacher))
    p, q = (np.exp(each - np.log(np.exp(each).sum(1, keepdims=True))) for each in (theirs / 0.5, mine))
    wanted = (p * np.log(p / q)).sum(1).mean()
    losses = [engine.step("joint", users, positives, step)["student/loss_distill"].item() for step in range(30)]
    assert losses[0] == pytest.approx(wanted, rel=1e-4) and losses[-1] < 0.95 * losses[0]


def test_what_a_run_takes(parts):
    """The memory of the pool and of a step, and measurements of draws and steps with a mixed pool."""
    sizes = Sizes.of_split(parts, config())
    held = {part.name: part.bytes for part in memory(config(), sizes)}
    assert held["pool of draws"] == 4 * parts.n_users * 2 * 12
    whole = {part.name: part.bytes for part in memory(config(None, WHOLE), sizes)}
    assert whole["a training step"] > held["a training step"]
    engine = Engine(config(None, WHOLE), parts)
    assert draw_cost(engine).at(50) > 0 and step_seconds(engine, "joint", repeats=1) > 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"distill.pool": 0}, r"distill\.pool, pool_top and pool_uniform are 0 together"),
        ({"distill.pool": 2**31 - 1, "distill.pool_top": 1}, r"are 2147483648 together: make that at least 1 and at most"),
        ({"distill.pool_top": 2, "distill.resample_every": 0}, r"distill\.pool_top is set, but there is no pool"),
        ({"distill.pool_uniform": 2, "distill.resample_every": 0}, r"distill\.pool_uniform is set, but there is no pool"),
        ({"distill.pool_top": -1}, r"distill\.pool_top must be"),
        ({"distill.samples": -1}, r"distill\.samples must be"),
    ],
)  # fmt: skip
def test_what_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        Config().with_overrides(values)


def test_what_is_refused_elsewhere(parts):
    with pytest.raises(UserError, match=r"distill\.samples 0 takes a user's whole pool"):
        Trainer(config(None, {"distill.samples": 0, "distill.pool_top": 0, "distill.pool_uniform": 0}).with_overrides(
            {"distill.resample_every": 0}), parts)  # fmt: skip
    with pytest.raises(UserError, match=r"distill\.pool_top asks for 51 items"):
        Trainer(config(None, {"distill.pool_top": 51}), parts)
    seen = seen_items(parts, "val")
    with pytest.raises(ValueError, match="samples: expected at least 1 with resample_every 0"):
        Distiller(Bidirectional(), seen, parts.n_items, samples=0)
    with pytest.raises(ValueError, match="top and uniform: expected at most 4 together, got 3 and 2"):
        Distiller(Bidirectional(top=3, uniform=2), seen, parts.n_items, samples=4).draw(
            *pair(parts), torch.arange(3), 0, torch.Generator()
        )
    assert make_method(config().distill).top == 3


def test_users_with_less_unseen_than_top(parts):
    """Where a guide has fewer unseen items than asked for, the rest of the places is empty."""
    model = MF(2, 4, 3, seed=1), MF(2, 4, 2, seed=2)
    seen = Seen(torch.tensor([0, 3, 3]), torch.tensor([0, 1, 3]))
    distiller = Distiller(Bidirectional(top=3), seen, 4, learners=["student"], samples=3)
    found = distiller.draw(*model, torch.arange(2), 0, torch.Generator())["student"]
    assert found.ids[0].tolist() == [2, -1, -1] and found.mask.tolist() == [[True, False, False], [True] * 3]
