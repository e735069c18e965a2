"""Models that are fitted in one call: their numbers against dense formulas, and the door of the Trainer that they come in by."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from bidistill import MF, Config, Trainer, UserError, evaluate, generate, matched, open_run, split
from bidistill.data.sizes import Sizes, made_up
from bidistill.evaluation.ranks import seen_items
from bidistill.models import als, build_model, cooccurrence, history
from bidistill.models.base import device_of
from bidistill.models.checks import check_model
from bidistill.models.ease import EASE
from bidistill.models.item_knn import ItemKNN
from bidistill.models.popularity import Popularity
from bidistill.models.scoring import scorer_of
from bidistill.plan import make_plan
from bidistill.report import results, table, write_report
from bidistill.runs.checkpoint import load_checkpoint, load_model, save_model
from bidistill.runs.folder import RunFolder
from bidistill.training import memory as arrays
from runs import StopAt, equal, same
from test_plan import COSTS
from torch import nn

from bdkernels import Factors, Scores, Seen, rank, sample, topk

pytestmark = pytest.mark.usefixtures("heard_signals")

BASE = {
    "distill.lambda_teacher": 0.0,
    "student.dim": 3,
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
KINDS = ("popularity", "ease", "item_knn")
N_USERS, N_ITEMS = 40, 23


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


@pytest.fixture
def taken(rng):
    """[N_USERS, N_ITEMS] of zeros and ones; a user and an item without any."""
    found = (rng.random((N_USERS, N_ITEMS)) < 0.2 + 0.3 * (np.arange(N_ITEMS) % 5 == 0)).astype(float)
    found[3], found[:, 7] = 0, 0
    return found


def rows(taken):
    return Seen.from_pairs(*(torch.from_numpy(ids) for ids in taken.nonzero()), len(taken))


def config(folder=None, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(BASE | {"run.out": None if folder is None else str(folder)} | named)


def scored(model):
    """All scores, by `score`."""
    users, items = torch.arange(model.n_users), torch.arange(model.n_items)
    return model.score(users, items.expand(model.n_users, -1))


# Their numbers


def test_popularity_counts(taken):
    model = Popularity(N_USERS, N_ITEMS)
    assert not scored(model).any()
    model.fit(rows(taken), 0)
    assert np.array_equal(scored(model).numpy(), np.tile(taken.sum(0), (N_USERS, 1)))
    factors = model.factors(torch.arange(4))
    assert torch.equal(factors.user_factors @ factors.item_factors.T, scored(model)[:4])
    part = Popularity(N_USERS, N_ITEMS, users=range(10, 20), items=range(5, 9))
    part.fit(rows(taken), 0)
    assert torch.equal(part.counts, model.counts[5:9])


@pytest.mark.parametrize(("precision", "close"), [("float64", 1e-6), ("float32", 1e-4)])
def test_ease_is_the_closed_form(taken, precision, close):
    model = EASE(N_USERS, N_ITEMS, regularization=3.0, precision=precision)
    assert not scored(model).any()
    model.fit(rows(taken), 0)
    inverse = np.linalg.inv(taken.T @ taken + 3.0 * np.eye(N_ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    assert np.abs(scored(model).numpy() - taken @ weights).max() < close
    # It is the best: no change of an entry off the diagonal makes the loss smaller.
    gradient = taken.T @ (taken @ model.weights.double().numpy() - taken) + 3.0 * model.weights.double().numpy()
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 100 * close


def test_ease_says_what_to_do_where_it_has_no_inverse():
    everything = torch.ones(1, 1, dtype=torch.int64).expand(3000, -1)
    model = EASE(3000, 2, regularization=1e-30, precision="float32")
    both = Seen.from_pairs(torch.arange(3000).repeat(2), torch.cat([0 * everything, everything]).reshape(-1), 3000)
    with pytest.raises(UserError, match=r"cannot invert its matrix in float32: raise regularization, or set precision"):
        model.fit(both, 0)


@pytest.mark.parametrize("of", ["scored", "taken"])
@pytest.mark.parametrize(("k", "shrink"), [(1, 0.0), (4, 2.5), (N_ITEMS, 0.0)])
def test_item_knn_is_the_cosine_of_the_nearest(taken, k, shrink, of):
    model = ItemKNN(N_USERS, N_ITEMS, k=k, shrink=shrink, of=of)
    assert not scored(model).any()
    model.fit(rows(taken), 0)
    norms = np.sqrt(taken.sum(0))
    alike = (taken.T @ taken) / np.maximum(np.outer(norms, norms) + shrink, 1e-30)
    np.fill_diagonal(alike, 0)
    weights = np.zeros_like(alike)
    for item in range(N_ITEMS):
        near = np.lexsort((np.arange(N_ITEMS), -alike[:, item].astype(np.float32)))[:k]
        if of == "scored":
            weights[near, item] = alike[near, item]
        else:
            weights[item, near] = alike[item, near]
    assert np.abs(scored(model).numpy() - taken @ weights).max() < 1e-6


@pytest.mark.parametrize("cells", [1, 60, 1 << 22])
def test_items_taken_together_are_counted_in_any_blocks(taken, monkeypatch, cells):
    monkeypatch.setattr(cooccurrence, "CELLS", cells)
    monkeypatch.setattr(cooccurrence, "PAIRS", cells)
    found = list(cooccurrence.cooccurrences(rows(taken), N_ITEMS))
    assert [first for first, _ in found] == list(range(0, N_ITEMS, max(1, cells // N_ITEMS)))
    assert np.array_equal(torch.cat([counts for _, counts in found]).numpy(), taken.T @ taken)


@pytest.mark.parametrize("cells", [1, 100, 1 << 22])
@pytest.mark.parametrize("kind", [EASE, ItemKNN, partial(ItemKNN, k=4), partial(ItemKNN, k=4, of="taken")])
def test_a_score_has_the_same_bits_in_any_block(taken, monkeypatch, kind, cells):
    model = kind(N_USERS, N_ITEMS)
    model.fit(rows(taken), 0)
    whole = model.score_block(torch.arange(N_USERS), 0, N_ITEMS)
    monkeypatch.setattr(history, "CELLS", cells)
    users = torch.tensor([5, 3, 5, 39])
    for first, stop in ((0, N_ITEMS), (4, 5), (7, 19)):
        assert torch.equal(model.score_block(users, first, stop), whole[users, first:stop])
        items = torch.arange(first, stop).expand(len(users), -1)
        assert torch.equal(model.score(users, items), whole[users, first:stop])
    assert model.score_block(users[:0], 2, 9).shape == (0, 7) and model.score(users[:0], items[:0]).shape == (0, 12)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kind", [EASE, ItemKNN])
def test_nothing_is_listed(taken, kind, threads):
    """As in the steps of a student's pretraining, whose teacher is not asked for a score."""
    model, users = kind(N_USERS, N_ITEMS), torch.arange(N_USERS).repeat(20)
    model.fit(rows(taken), 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert model.score(users, users[:, None][:, :0]).shape == (20 * N_USERS, 0)
        assert model.score_block(users, 3, 3).shape == (20 * N_USERS, 0)
        assert torch.equal(model.score(users, torch.ones(20 * N_USERS, 1).long())[:, 0], scored(model)[users, 1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [EASE, ItemKNN])
def test_operators_take_its_blocks(taken, kind):
    """Ranks, lists and draws are those of the table of its scores."""
    model, seen = kind(N_USERS, N_ITEMS), rows(taken)
    model.fit(seen, 0)
    users = torch.arange(N_USERS)
    dense, other = Scores(scored(model)), Factors(torch.rand(N_USERS, 2), torch.rand(N_ITEMS, 2))
    found, ids = scorer_of(model, users), torch.randint(N_ITEMS, (N_USERS, 3))
    assert torch.equal(rank(found, ids, seen), rank(dense, ids, seen))
    assert torch.equal(topk(found, 5, seen).ids, topk(dense, 5, seen).ids)
    pair = (sample(each, other, 4, seen, user_ids=users, step=1) for each in (found, dense))
    assert torch.equal(*(each.to_student.ids for each in pair))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_scores_by_itself(taken, tmp_path, kind):
    model: Any = build_model({"kind": kind, "n_users": N_USERS, "n_items": N_ITEMS})
    check_model("teacher", model, N_USERS, N_ITEMS)
    model.fit(rows(taken), 0)
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert equal(again, model) and torch.equal(scored(again), scored(model)) and scored(model).any()


@pytest.mark.parametrize(
    ("kind", "args", "words"),
    [
        ("ease", {"regularization": 0}, "regularization must be above 0, found 0"),
        ("ease", {"precision": "half"}, "precision must be float32 or float64, found 'half'"),
        ("item_knn", {"k": 0}, "k must be a whole number above 0, found 0"),
        ("item_knn", {"shrink": -1.0}, "shrink must be at least 0, found -1.0"),
        ("item_knn", {"of": "users"}, "of must be scored or taken, found 'users'"),
        ("als", {"alpha": float("nan")}, "alpha must be above 0, found nan"),
        ("als", {"iterations": 1.5}, "iterations must be a whole number above 0, found 1.5"),
        ("als", {"continued": 1}, "continued must be true or false, found 1"),
        ("popularity", {"dim": 1}, "dim is no setting of the model 'popularity'"),
    ],
)
def test_settings_are_refused_before_anything_is_fitted(kind, args, words):
    with pytest.raises(UserError, match=f"teacher.args.*{words}"):
        Config().with_overrides({"teacher.kind": kind, "teacher.args": args})


# implicit


@pytest.fixture
def implicit():
    return pytest.importorskip("implicit", reason="implicit is not installed: als is not fitted")


def objective(model, taken):
    """What `ALS` says that it minimises, in float64."""
    users, items = (each.detach().double().numpy() for each in model.tables()[:2])
    weight = np.where(taken > 0, model.alpha, 1.0)
    errors = (weight * (taken - users @ items.T) ** 2).sum()
    return errors + model.regularization * ((users**2).sum() + (items**2).sum())


def test_als_is_at_the_minimum_of_its_objective(implicit, taken):
    """One exact sweep by dense least squares finds nothing that is better."""
    model = als.ALS(N_USERS, N_ITEMS, 3, alpha=5.0, regularization=0.5, iterations=200)
    start = objective(model, taken)
    model.fit(rows(taken), 1)
    users, items = (each.detach().double().numpy() for each in model.tables()[:2])
    found, weight = objective(model, taken), np.where(taken > 0, model.alpha, 1.0)
    assert found < start
    for u in range(N_USERS):
        left = (items.T * weight[u]) @ items + model.regularization * np.eye(3)
        solved = np.linalg.solve(left, items.T @ (weight[u] * taken[u]))
        assert np.abs(solved - users[u]).max() < 0.01 * max(1.0, np.abs(users).max())


def test_als_repeats_and_goes_by_its_seed(implicit, taken):
    models = [als.ALS(N_USERS, N_ITEMS, 4) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.fit(rows(taken), seed)
    assert equal(models[0], models[1]) and not equal(models[0], models[2])
    assert not any(each.requires_grad for each in models[0].parameters())


@pytest.mark.parametrize("continued", [False, True])
def test_als_as_a_teacher_and_as_a_student_to_start_from(implicit, parts, continued):
    own = {"args": {"continued": continued, "iterations": 3}}
    kinds = {"teacher.kind": "als", "teacher.dim": 6, "teacher.args": own["args"], "teacher.lr": 0.02}
    if continued:
        kinds |= {"student.kind": "als", "student.args": own["args"], "distill.lambda_teacher": 0.1}
    trainer = Trainer(config().with_overrides(kinds), parts)
    result = trainer.fit()
    fitted = als.ALS(parts.n_users, parts.n_items, 6, iterations=3)
    trainer.engine.fit("teacher")
    fitted.load_state_dict(trainer.engine.learners["teacher"].model.state_dict())
    kept = {row["epoch"]: row for row in result.history if row["phase"] == "pretrain_teacher"}
    assert kept[1]["teacher/ndcg@10"] == evaluate(fitted, parts, "val", (10,))["ndcg@10"]
    learned = [row for row in result.history if row["phase"] == "joint" and "teacher/loss_cf" in row]
    assert bool(learned) == continued


def test_without_the_library_it_is_said_what_to_install(parts, monkeypatch):
    monkeypatch.setattr(als, "find_spec", lambda name: None)
    for settings in ({"teacher__kind": "als"}, {"eval__baselines": ("popularity", "als")}):
        with pytest.raises(
            UserError, match=r"'als' needs implicit: install it with pip install 'bdkernels\[baselines\]'"
        ):
            Trainer(config(**settings), parts)
    build_model({"kind": "als", "n_users": 3, "n_items": 4, "dim": 2})  # what was fitted elsewhere can be opened


# The door


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_teacher(parts, tmp_path, kind):
    """It is fitted once, stays as it is, guides the student, and is in every table."""
    trainer = Trainer(config(tmp_path, teacher__kind=kind, train__pretrain_epochs=7, eval__ks=(5, 10)), parts)
    result = trainer.fit()
    alone: Any = build_model({"kind": kind, "n_users": parts.n_users, "n_items": parts.n_items})
    alone.fit(seen_items(parts, "val"), 0)
    assert equal(result.teacher, alone)
    assert result.pretrained["teacher"] == result.metrics["teacher"]
    assert result.metrics["teacher"]["test"] == evaluate(alone, parts, "test", (5, 10))
    rows = [row for row in result.history if row["phase"] == "pretrain_teacher"]
    assert [row["epoch"] for row in rows] == [0, 1] and "fit_seconds" in rows[1]
    assert rows[1]["teacher/ndcg@10"] == result.metrics["teacher"]["val"]["ndcg@10"]
    joint = [row for row in result.history if row["phase"] == "joint"]
    assert all("student/loss_distill" in row for row in joint[1:]) and not any(
        "teacher/loss_cf" in row for row in joint
    )
    assert trainer.config.train.joint == "student"
    assert not any(name.startswith("teacher.") for name in load_checkpoint(tmp_path / "checkpoint")[0])
    opened = open_run(tmp_path)
    assert equal(opened.teacher, alone) and equal(opened.model("teacher", pretrained=True), alone)
    found = results(opened)
    assert [each and each.kept for each in found.epochs["teacher"]] == [1, None]
    assert kind in write_report(opened).read_text() and "teacher" in table(found)


def test_it_may_be_a_module_with_buffers_alone(parts, tmp_path):
    """What a user writes: no parameter, no gradient, whatever `fit` needs."""

    class Recent(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scores", torch.zeros(parts.n_items, dtype=torch.float64))

        def fit(self, train, seed):
            self.scores += torch.bincount(train.indices, minlength=parts.n_items) + torch.rand(parts.n_items) / 2

        def score(self, users, items):
            return self.scores[items]

    first = Trainer(config(tmp_path), parts, teacher=Recent()).fit()
    again = Trainer(config(), parts, teacher=Recent()).fit()
    assert same(first, again)  # whatever is random goes by the seed of the run
    assert first.teacher.state_dict()["scores"].any()
    assert device_of(first.teacher).type == "cpu"
    assert equal(open_run(tmp_path, teacher=Recent()).teacher, first.teacher)


def stopped(folder, parts, where, **settings):
    """A run that was stopped."""
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(folder, **settings), parts, callbacks=[where]).fit()


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_where_it_was_stopped(parts, tmp_path, kind, monkeypatch):
    whole = Trainer(config(teacher__kind=kind), parts).fit()
    stopped(tmp_path / "joint", parts, StopAt(1, 1), teacher__kind=kind)
    assert same(Trainer.resume(tmp_path / "joint").fit(), whole)
    # After the fit, before the model is kept.
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped(tmp_path / "fitted", parts, StopAt(9, 9), teacher__kind=kind)
    assert json.loads((tmp_path / "fitted/checkpoint/state.json").read_text())["state"]["progress"]["epoch"] == 1
    assert same(Trainer.resume(tmp_path / "fitted").fit(), whole)


def test_the_control_takes_the_fitted_teacher_over(parts, tmp_path):
    trainer = Trainer(config(tmp_path, teacher__kind="ease", eval__baselines=("item_knn",)), parts)
    result = trainer.fit()
    alone = matched(trainer).with_overrides({"run.out": str(tmp_path / "control")})
    control = Trainer(alone, parts, warm_start=tmp_path).fit()
    assert equal(control.teacher, result.teacher) and control.pretrained == result.pretrained
    assert set(control.baselines) == {"popularity"} and set(result.baselines) == {"popularity", "item_knn"}
    assert any("student/loss_cf" in row for row in control.history)
    assert not any("student/loss_distill" in row or "teacher/loss_cf" in row for row in control.history)
    found = open_run(tmp_path)
    assert found.control is not None and len(results(found).labels) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_fitted_again_when_the_data_grow(tmp_path, kind):
    made, _, _ = generate(50, 60, 1000, dim=4, seed=2)
    few = made.users % 5 != 1
    before, after = (split(generated(made, chosen), "leave_one") for chosen in (few, np.ones(len(made), bool)))
    assert before.n_users < after.n_users
    stopped(tmp_path, before, StopAt(1, 1), teacher__kind=kind)
    grown = Trainer.resume(tmp_path, split=after, grow=True)
    fresh: Any = build_model({"kind": kind, "n_users": after.n_users, "n_items": after.n_items})
    fresh.fit(seen_items(after, "val"), 0)
    assert equal(grown.engine.learners["teacher"].model, fresh)
    result = grown.fit()
    assert equal(result.teacher, fresh) and equal(open_run(tmp_path).model("teacher", pretrained=True), fresh)
    assert result.pretrained["teacher"]["val"]["users"] == after.n_users


def generated(made, chosen):
    from bidistill import Interactions

    (users, user_at), (items, item_at) = (
        np.unique(each[chosen], return_inverse=True) for each in (made.users, made.items)
    )
    return Interactions(user_at, item_at, np.arange(chosen.sum()), users, items)


class Fitted(MF):
    """An `mf` that is fitted to something, with one fault or none."""

    def __init__(self, parts, fault="", continued=False):
        super().__init__(parts.n_users, parts.n_items, 4)
        self.fault, self.continued = fault, continued
        self.requires_grad_(continued)

    def fit(self, train, seed):
        with torch.no_grad():
            for each in self.parameters():
                each.copy_(torch.randn_like(each))
            if self.fault == "nan":
                self.item_bias.weight[3] = torch.nan

    def tables(self):
        return None if self.fault == "contradiction" else super().tables()

    def factors(self, users):
        found = Factors(self.user_factors(users), self.item_factors.weight, self.item_bias.weight)
        return found._replace(item_bias=None) if self.fault == "contradiction" else found


def test_one_that_is_continued_is_trained_from_there(parts, tmp_path):
    settings = {"distill.lambda_teacher": 0.1, "run.out": str(tmp_path), "run.checkpoint_steps": 2}
    given = {"teacher": Fitted(parts, continued=True), "student": Fitted(parts, continued=True)}
    trainer = Trainer(config().with_overrides(settings), parts, **given)
    result = trainer.fit()
    losses = [row["teacher/loss_cf"] for row in result.history if "teacher/loss_cf" in row]
    assert [row["phase"] for row in result.history if "student/loss_distill" in row] == ["joint", "joint"]
    assert len(losses) == 2 and trainer.config.train.joint == "both"
    kept: Any = open_run(tmp_path, **given).model("teacher", pretrained=True)
    assert not equal(kept, result.teacher) and kept.item_bias.weight.std() > 0.5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", r"the teacher Fitted: after fit, item_bias.weight has numbers that are not finite"),
        ("contradiction", r"the teacher Fitted: factors and score contradict each other"),
    ],
)
def test_a_fit_that_failed_is_an_error(parts, fault, words):
    with pytest.raises(UserError, match=words):
        Trainer(config(), parts, teacher=Fitted(parts, fault)).fit()


def test_what_it_cannot_do_is_refused_before_the_run(parts, tmp_path):
    for settings, words in (
        (
            {"distill__lambda_teacher": 0.2},
            r"the teacher \(ease\) is fitted in one call, .* distill.lambda_teacher is 0.2: set distill.lambda_teacher to 0",
        ),
        ({"student__kind": "ease"}, r"the student \(ease\) is fitted in one call, so it cannot learn from a teacher"),
        ({"eval__baselines": ("ease", "mf")}, r"eval.baselines has mf, a kind that is not fitted in one call"),
    ):
        with pytest.raises(UserError, match=words):
            Trainer(config(tmp_path, teacher__kind="ease", **settings), parts)
    trainer = Trainer(config(tmp_path, teacher__kind="ease"), parts)
    with pytest.raises(UserError, match="set_lr: EASE is fitted in one call, and has no learning rate"):
        trainer.set_lr("teacher", 0.1)
    assert not list(tmp_path.iterdir())


def test_one_that_does_not_fit_is_refused_with_the_memory_that_it_needs(monkeypatch):
    parts = made_up(Sizes(30, 3000, 300, 240, 30))
    monkeypatch.setattr(arrays, "PROGRAM", 0)
    monkeypatch.setattr(arrays, "memory_there", lambda: 2 * 8 * 3000**2 - 1)
    with pytest.raises(
        UserError, match=r"0.2 GB are needed .* 0.1 GB, goes to teacher: what its fit takes: lower the number"
    ):
        Trainer(config(teacher__kind="ease"), parts)
    words = (
        r"0.2 GB are needed .*largest of the baselines: lower the number of items, or leave it out of eval.baselines"
    )
    with pytest.raises(UserError, match=words):
        Trainer(config(eval__baselines=("ease",)), parts)


def test_a_fitted_student_alone(parts, tmp_path):
    """Without distillation there is nothing that it would have to learn: both are fitted and evaluated."""
    settings = {"student__kind": "ease", "teacher__kind": "popularity", "distill__method": "none"}
    trainer = Trainer(config(tmp_path, **settings), parts)
    result = trainer.fit()
    assert [(row["phase"], row["epoch"]) for row in result.history] == [
        ("pretrain_teacher", 0),
        ("pretrain_teacher", 1),
        ("pretrain_student", 0),
        ("pretrain_student", 1),
        ("joint", 0),
    ]
    assert result.metrics == result.pretrained and trainer.config.train.epochs == 0
    write_report(tmp_path)
    assert "epoch kept" in table(results(open_run(tmp_path)))


def test_the_plan_has_its_memory_and_no_steps_of_it():
    settings = config(teacher__kind="ease", eval__baselines=("item_knn",))
    sizes = Sizes.of(1000, 500, 20_000, settings)
    plan = make_plan(settings, sizes, COSTS)
    memory = {part.name: part.bytes for part in plan.memory}
    assert memory["teacher: what it is fitted to"] == 4 * 500**2 + 8 * 1001
    assert memory["teacher: what its fit takes"] == 16 * 500**2
    assert memory["the largest of the baselines"] == 3 * 12 * 100 * 500 + 8 * 1001
    assert {job.name: job.times for job in plan.times}["pretraining, teacher: step"] == 0
    assert "the teacher is fitted in one call, which these times leave out" in plan.remarks
    assert not [note for note in make_plan(config(), sizes, COSTS).remarks if "fitted" in note]
