"""Methods from outside the package: trained, stopped and resumed bit for bit, grown, and used in a loop by hand."""

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from bidistill import MF, Bidirectional, Config, Distiller, Method, Trainer, UserError, generate, register_method, split
from bidistill.evaluation.ranks import seen_items
from bidistill.plan import Sizes
from bidistill.registry import METHODS
from bidistill.report import open_run, results, table, write_report
from bidistill.runs.checkpoint import load_checkpoint
from bidistill.runs.growth import Growth
from bidistill.training.engine import Engine
from bidistill.training.memory import memory
from bidistill.training.timing import draw_cost, step_seconds
from runs import StopAfter, equal, same

from bdkernels import Draws, Exp, Scores, Seen, Tanh, distill_loss, rank, sample, topk

pytestmark = [
    pytest.mark.usefixtures("heard_signals", "outside"),
    pytest.mark.filterwarnings("ignore:.*epoch 0 is kept"),
]

BASE = {
    "teacher.dim": 8,
    "student.dim": 2,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.pretrain_epochs": 1,
    "train.epochs": 3,
    "train.patience": 0,
    "eval.ks": (5, 10),
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.samples": 3,
    "distill.pool": 6,
    "distill.resample_every": 2,
}


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(folder=None, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(BASE | {"run.out": None if folder is None else str(folder)} | named)


@dataclass
class Remembering(Method):
    """Unseen items at random from the better half of a guide, besides those that it has given a user before."""

    seed: int = 0

    def prepare(self, seen, popularity, partition, seed):
        self.given = torch.zeros(partition.n_users, 2, dtype=torch.int64)  # counted, for each direction
        self.popularity = popularity
        self.steps = torch.zeros((), dtype=torch.int64)

    def refresh(self, teacher, student, step):
        assert step == self.steps
        self.steps += 1

    def draw(self, teacher, student, asked):
        models, found = {"student": teacher, "teacher": student}, {}
        for at, learner in enumerate(asked.learners):
            best = topk(asked.scorer(models[learner]), 20, asked.seen).ids
            generator = torch.Generator().manual_seed(asked.seed * 1000 + asked.step * 2 + at + self.seed)
            turn = torch.randint(20, (len(best), asked.k), generator=generator) + self.given[asked.users, at][:, None]
            ids = best.gather(1, turn % 20)
            self.given[asked.users, at] += asked.k
            found[learner] = Draws(ids, ids >= 0)
        return found

    def numbers(self, teacher, student, step):
        return {"given": float(self.given.sum())}

    def state_dict(self):
        return {"given": self.given, "popularity": self.popularity, "steps": self.steps}

    def load_state_dict(self, state):
        self.given, self.popularity, self.steps = (state[name] for name in ("given", "popularity", "steps"))

    def row_kinds(self):
        return {"given": "users", "popularity": "items", "steps": ""}


class Silent(Remembering):
    def row_kinds(self):
        return {"given": "users"}


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
@pytest.mark.parametrize("stop", [9, 13])  # of 3 steps an epoch: after an epoch of the joint phase, and within one
def test_a_method_from_outside_trains_stops_and_resumes(outside, parts, tmp_path, optimizer, stop):
    outside("top_of_guide")
    given = {"teacher__optimizer": optimizer, "student__optimizer": optimizer, "distill__args": {"tau": 2.0}}
    whole = Trainer(config(distill__method="top_of_guide", **given), parts).fit()
    joint = [row for row in whole.history if row["phase"] == "joint" and row["epoch"]]
    assert all(row[f"{name}/loss_distill"] > 0 for row in joint for name in ("teacher", "student"))

    settings = config(tmp_path, distill__method="top_of_guide", **given)
    trainer = Trainer(settings, parts, callbacks=[StopAfter(stop)])
    assert isinstance(trainer.distiller, Distiller) and trainer.distiller.method.tau == 2.0  # type: ignore[attr-defined]
    said = [each for each in trainer.engine.unfused() if "distill" in each]
    assert said == [
        "teacher and student train without the fused step: distill.method 'top_of_guide' has a loss of its own"
    ]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert set(below(load_checkpoint(tmp_path / "checkpoint")[0])) == {"method.pool"}
    assert Config.from_toml(tmp_path / "config.toml") == settings
    assert same(Trainer.resume(tmp_path).fit(), whole)


def below(tensors):
    return [name for name in tensors if name.startswith("method.")]


def test_what_the_outside_method_draws_and_minimises(outside, parts):
    """In the Trainer: the guide's best unseen items by the dense scores, and the loss of the history by hand."""
    outside("top_of_guide")
    given = {"distill__method": "top_of_guide", "distill__resample_every": 0, "train__epochs": 1}
    trainer = Trainer(config(**given), parts)
    engine = trainer.engine
    users, positives = engine.users[:100], engine.items[:100]
    models = {name: learner.model for name, learner in engine.learners.items()}
    everything = torch.arange(parts.n_users), torch.arange(parts.n_items).expand(parts.n_users, -1)
    scores = {name: model.score(*everything) for name, model in models.items()}
    hidden = torch.zeros(parts.n_users, parts.n_items, dtype=torch.bool)
    hidden[engine.users, engine.items] = True
    drawn = trainer.distiller.draw(*engine.objective.pair, users, 0, torch.Generator())
    wanted = {}
    for learner, guide in (("student", "teacher"), ("teacher", "student")):
        best = scores[guide].detach().masked_fill(hidden, -torch.inf)[users].topk(3).indices
        assert torch.equal(drawn[learner].ids, best)
        own, theirs = (scores[name].detach()[users].gather(1, best).double() for name in (learner, guide))
        wanted[f"{learner}/loss_distill"] = -(theirs.softmax(1) * own.log_softmax(1)).sum(1).mean().item()
    found = engine.step("joint", users, positives, 0)
    assert {name: found[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", ["top_of_guide", "bidirectional", "remembering"])
def test_in_a_loop_by_hand(outside, parts, method):
    """It goes on bit for bit from its state."""
    loops, own = outside("hand_loop"), outside("top_of_guide")
    make = {"top_of_guide": own.TopOfGuide, "bidirectional": Bidirectional, "remembering": Remembering}
    users, items = (torch.from_numpy(each) for each in (parts.train_users, parts.train_items))

    def loop():
        models = MF(parts.n_users, parts.n_items, 8, seed=1), MF(parts.n_users, parts.n_items, 2, seed=2)
        return loops.Loop(make[method](), *models, users, items)

    whole, first, second = loop(), loop(), loop()
    losses = whole.run(27)
    assert losses == first.run(27) and all(each["student"] > 0 for each in losses)
    before = first.run(0) + losses[:14]
    stopped = loop()
    assert stopped.run(14) == before
    state = copy.deepcopy(stopped.state_dict())
    stopped.run(1)  # must not touch what was saved
    second.load_state_dict(state)
    kept = copy.deepcopy(state)
    assert second.run(13) == losses[14:]
    assert torch.equal(state["distiller"]["pool"], kept["distiller"]["pool"])
    for a, b in zip(whole.models, second.models, strict=True):
        assert equal(a, b)
    assert second.distiller.step == 27
    for key, value in whole.distiller.tensors().items():
        assert torch.equal(value, second.distiller.tensors()[key])


def test_a_pool_by_hand_is_drawn_anew_after_so_many_calls(outside, parts):
    own = outside("top_of_guide")
    models = MF(parts.n_users, parts.n_items, 4, seed=1), MF(parts.n_users, parts.n_items, 2, seed=2)
    seen = seen_items(parts, "val")
    distiller = Distiller(own.TopOfGuide(), seen, parts.n_items, samples=2, pool=5, resample_every=4)
    everyone, pools = torch.arange(parts.n_users), []
    for _ in range(9):
        distiller(everyone, *models)
        pools.append(distiller.pool.clone())
        with torch.no_grad():
            models[0].item_factors.weight.add_(torch.randn(parts.n_items, 4))
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(pools)]
    assert [at + 1 for at, each in enumerate(changed) if each] == [4, 8]
    with pytest.raises(ValueError, match="queries: expected none with resample_every > 0"):
        distiller(everyone, *models, queries={"ids": everyone})


def test_queries_of_the_loop_reach_models_and_method(outside, parts):
    """Models that take a dict: the same losses as by ids, and repeated rows draw items of their own."""

    class ByName(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.n_users, self.n_items = model, model.n_users, model.n_items

        def score(self, queries, items):
            return self.model.score(queries["ids"], items)

        def factors(self, queries):
            return self.model.factors(queries["ids"])

    plain = MF(parts.n_users, parts.n_items, 4, seed=1), MF(parts.n_users, parts.n_items, 2, seed=2)
    users, losses, asked = torch.tensor([3, 5, 3, 3]), [], []
    for models, given in ((plain, {}), ([ByName(each) for each in plain], {"queries": {"ids": users}})):
        method = Bidirectional(Tanh(2.0), Exp(2.0))
        distiller = Distiller(method, seen_items(parts, "val"), parts.n_items, samples=3, seed=2)
        draw = method.draw
        method.draw = lambda *rest, draw=draw: asked.append(draw(*rest)) or asked[-1]
        losses.append({name: loss.item() for name, loss in distiller(users, *models, **given).items()})
    assert losses[0] == losses[1] and len(asked) == 2
    rows = asked[0]["student"].ids[users == 3]
    assert len({tuple(row) for row in rows.tolist()}) == 3


class Distance(torch.nn.Module):
    """A model that has `score` alone: items near the user are good."""

    def __init__(self, n_users, n_items, dim, seed):
        super().__init__()
        self.n_users, self.n_items = n_users, n_items
        torch.manual_seed(seed)
        self.users, self.items = torch.nn.Embedding(n_users, dim), torch.nn.Embedding(n_items, dim)

    def score(self, users, items):
        return -(self.users(users)[:, None] - self.items(items)).square().sum(2)


def test_models_that_are_no_dot_product(outside, parts):
    """Both methods draw from dense scores what they draw from the model, and the loop trains and goes on."""
    loops, own = outside("hand_loop"), outside("top_of_guide")
    everyone = torch.arange(parts.n_users)
    seen = seen_items(parts, "val")
    pair = [Distance(parts.n_users, parts.n_items, dim, seed) for dim, seed in ((4, 1), (2, 2))]
    with torch.no_grad():
        dense = [Scores(m.score(everyone, torch.arange(parts.n_items).expand(len(everyone), -1))) for m in pair]
    drawn = Distiller(own.TopOfGuide(), seen, parts.n_items, samples=3).draw(*pair, everyone, 0, torch.Generator())
    assert torch.equal(drawn["student"].ids, topk(dense[0], 3, seen).ids)
    drawn = Distiller(Bidirectional(Tanh(2.0), Exp(2.0)), seen, parts.n_items, samples=3, seed=5)
    drawn = drawn.draw(*pair, everyone, 7, torch.Generator())  # type: ignore[attr-defined]
    wanted = sample(*dense, 3, seen, to_student=Tanh(2.0), to_teacher=Exp(2.0), user_ids=everyone, step=7, seed=5)
    for name, draws in wanted._asdict().items():
        assert torch.equal(drawn[name].ids, draws.ids)
    pairs = [torch.from_numpy(each) for each in (parts.train_users, parts.train_items)]
    losses = loops.Loop(Bidirectional(), *pair, *pairs).run(12)
    assert all(0 < loss < 10 for each in losses for loss in each.values())


def larger(pair):
    """Models whose scores differ by more than rounding."""
    for parameter in itertools.chain(*(model.parameters() for model in pair)):
        parameter.data *= 20
    return pair


@pytest.mark.parametrize("kind", ["bce", "listwise"])
def test_the_usual_loss_has_the_kind_and_the_temperatures_of_the_distiller(outside, parts, kind):
    """A method without a loss of its own is fused where models and optimizers allow it, and [distill] sets its temperatures."""

    class Fixed(Method):
        def draw(self, teacher, student, asked):
            ids = torch.arange(asked.k).expand(len(asked.users), -1).contiguous()
            return {name: Draws(ids, ids >= 0) for name in asked.learners}

    register_method("fixed", Fixed)
    given = {"distill__method": "fixed", "distill__loss": kind, "distill__tau_guide": 3.0, "distill__tau_learner": 2.0}
    optimizers = {"teacher__optimizer": "sgd", "student__optimizer": "sgd"}
    engine = Engine(config(**given, **optimizers), parts)
    assert engine.unfused() == []
    users = engine.users[:50]
    teacher, student = larger(engine.objective.pair)
    ids = torch.arange(3).expand(50, -1)
    wanted = distill_loss(student.score(users, ids), teacher.score(users, ids), 2.0, 3.0, kind=kind).item()
    assert engine.step("joint", users, engine.items[:50], 0)["student/loss_distill"].item() == pytest.approx(wanted)
    eager = Distiller(Fixed(), engine.seen, parts.n_items, samples=3, kind=kind, tau_learner=2.0, tau_guide=3.0)
    fresh = larger(Engine(config(**given, **optimizers), parts).objective.pair)
    assert eager(users, *fresh)["student"].item() == pytest.approx(wanted)


def test_frozen_guides_and_a_state_of_its_own_are_resumed(outside, parts, tmp_path):
    register_method("remembering", Remembering)
    given = {"distill__method": "remembering", "distill__args": {"seed": 3}, "distill__guide": "frozen"}
    whole = Trainer(config(**given), parts)
    result = whole.fit()
    assert [row["given"] for row in result.history if row["phase"] == "joint"] == [
        0.0, *[float(parts.n_users * 2 * 6 * n) for n in (1, 1, 2)]
    ]  # fmt: skip
    trainer = Trainer(config(tmp_path, **given), parts, callbacks=[StopAfter(13)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    start = Trainer(config(**given, train__epochs=0), parts).fit()  # the best states of the pretraining
    saved, _ = load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(saved["method.guides.teacher.item_factors.weight"], start.teacher.item_factors.weight)  # type: ignore[attr-defined]
    assert saved["method.state.given"].shape == (parts.n_users, 2) and saved["method.state.steps"] == 7
    again = Trainer.resume(tmp_path)
    assert same(again.fit(), result)
    for key, value in whole.distiller.tensors().items():
        assert torch.equal(value, again.distiller.tensors()[key]), key


def test_a_method_grows_with_the_data(outside, parts):
    """Users and items in between: what the method says has rows keeps them; where it does not say, a sentence tells."""
    models = {"teacher": MF(6, 9, 3, seed=1), "student": MF(6, 9, 2, seed=2)}
    grown = {"teacher": MF(8, 12, 3, seed=3), "student": MF(8, 12, 2, seed=4)}
    growth = Growth(torch.tensor([0, 2, 3, 4, 6, 7]), torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 11]), 8, 12)
    nothing = torch.zeros(0, dtype=torch.int64)

    def distiller(method, users, items):
        seen = Seen.from_pairs(nothing, nothing, users)
        return Distiller(method, seen, items, pool=2, resample_every=1, guide="frozen")

    class Few(Remembering):
        def draw(self, teacher, student, asked):
            ids = asked.users[:, None].expand(-1, asked.k).contiguous()
            self.given[asked.users] += 1
            return {name: Draws(ids, ids >= 0) for name in asked.learners}

    old, new = distiller(Few(), 6, 9), distiller(Few(), 8, 12)
    old(torch.arange(6), models["teacher"], models["student"])
    tensors = {name: value.clone() for name, value in old.tensors().items()}
    assert (tensors["pool"] >= 0).all()
    new.load_grown(tensors, growth, grown)
    assert torch.equal(new.pool[growth.users], growth.items[old.pool.long()].int())
    assert (new.pool[[1, 5]] == -1).all()
    assert new.method.given[growth.users].tolist() == [[2, 2]] * 6 and not new.method.given[[1, 5]].any()
    assert len(new.method.popularity) == 12 and new.method.steps == 1
    guides = new.guides(grown["teacher"], grown["student"])
    assert torch.equal(guides["student"].item_factors.weight[growth.items], models["teacher"].item_factors.weight)
    assert torch.equal(guides["student"].item_factors.weight[3], grown["teacher"].item_factors.weight[3])
    with pytest.raises(UserError, match=r"cannot grow: Silent\.row_kinds does not say whether 'popularity'"):
        distiller(Silent(), 8, 12).load_grown(tensors, growth, grown)


@pytest.mark.parametrize("method", ["top_of_guide", "remembering"])
def test_a_method_and_models_from_outside(outside, parts, tmp_path, method):
    """In the Trainer, with models that have `score` alone: stopped within an epoch and resumed bit for bit."""
    own = outside("neural")
    outside("top_of_guide")
    register_method("remembering", Remembering)
    given = {"distill__method": method, "train__pretrain_epochs": 1}
    whole = Trainer(config(**given), parts, **own.modules(parts)).fit()
    trainer = Trainer(config(tmp_path, **given), parts, **own.modules(parts), callbacks=[StopAfter(10)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert same(Trainer.resume(tmp_path, **own.modules(parts)).fit(), whole)


def test_the_report_names_the_method(outside, parts, tmp_path):
    outside("top_of_guide")
    Trainer(config(tmp_path, distill__method="top_of_guide"), parts).fit()
    found = results(open_run(tmp_path))
    assert found.titles[-1] == "top of guide distillation" and "distilled: top of guide distillation" in table(found)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Best values: " in page and page.count("top of guide distillation") >= 3 and "bidirectional" not in page


def test_the_plan_of_a_method_from_outside(outside, parts):
    """Its draws are measured by drawing, its pool and copies of guides are counted."""
    outside("top_of_guide")
    register_method("remembering", Remembering)
    engine = Engine(config(distill__method="top_of_guide"), parts)
    called = []
    draw = METHODS["top_of_guide"].draw
    METHODS["top_of_guide"].draw = lambda *rest: called.append(rest[3].k) or draw(*rest)
    assert draw_cost(engine).at(50) > 0 and set(called) == {6}
    assert step_seconds(engine, "joint", repeats=1) > 0
    sizes = Sizes.of_split(parts, config())
    frozen = {"distill__method": "remembering", "distill__guide": "frozen"}
    parts_of = {part.name: part.bytes for part in memory(config(**frozen), sizes)}
    tables = sum(4 * (parts.n_users * dim + parts.n_items * (dim + 1)) for dim in (8, 2))
    assert parts_of["copies of guides"] == tables and parts_of["pool of draws"] == 4 * parts.n_users * 2 * 6
    of_teacher = 4 * (parts.n_users * 8 + parts.n_items * 9)
    for given, wanted in (
        ({**frozen, "distill__lambda_teacher": 0.0}, of_teacher),
        ({"distill__guide": "ema", "distill__lambda_teacher": 0.0}, of_teacher),
        ({**frozen, "distill__lambda_teacher": 0.0, "train__joint": "student"}, 0),
        ({}, 0),
    ):
        assert {part.name: part.bytes for part in memory(config(**given), sizes)}["copies of guides"] == wanted


def test_bidirectional_by_hand_is_that_of_the_trainer(parts):
    """The same draws, and the numbers of estimated ranks."""
    engine = Engine(config(distill__subset=20, distill__to_student__alpha=3.0), parts)
    engine.objective.resample(0, 4)
    by_hand = Distiller(
        Bidirectional(Tanh(3.0), Exp(), subset=20), engine.seen, parts.n_items, pool=6, resample_every=2, seed=0
    )
    by_hand.resample(*engine.objective.pair, 0)
    assert torch.equal(by_hand.pool, engine.objective.distiller.pool)
    found = by_hand.numbers(*engine.objective.pair, 0)
    assert 0 < found["rank_error"] < found["rank_error_bound"]
    ranks = rank(engine.objective.pair[0].factors(torch.arange(2)), torch.zeros(2, 1, dtype=torch.int64))  # type: ignore[attr-defined]
    assert ranks.shape == (2, 1)
