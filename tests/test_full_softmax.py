"""train.loss full_softmax and train.order users: what a step minimises, in which order, and what is refused."""

import math

import numpy as np
import pytest
import torch
from bidistill import Config, Trainer, UserError, evaluate
from bidistill.data import split
from bidistill.data.splits import Split
from bidistill.data.synthetic import generate
from bidistill.models.base import tables_of
from torch import nn

BASE = {
    "teacher.dim": 8,
    "student.dim": 2,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.loss": "full_softmax",
    "train.order": "users",
    "train.pretrain_epochs": 4,
    "train.epochs": 2,
    "eval.ks": (5, 10),
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.pool": 5,
}


@pytest.fixture(scope="module")
def parts():
    interactions, _, _ = generate(60, 80, 1200, dim=4, seed=1)
    return split(interactions, "leave_one", seed=1)


def config(**overrides):
    return Config().with_overrides(BASE | {name.replace("__", "."): value for name, value in overrides.items()})


def test_a_step_is_that_of_dense_scores(parts):
    """One step of Adam beside the same of torch's cross entropy over all scores."""
    trainer = Trainer(config(), parts)
    learner = trainer.engine.learners["teacher"]
    users, items = (torch.from_numpy(t[:100]) for t in parts.part("train"))
    tables = [t.clone().requires_grad_() for t in tables_of(learner.model)]
    scores = tables[0][users] @ tables[1].T + tables[2]
    want = nn.functional.cross_entropy(scores, items)
    want.backward()
    optimizer = torch.optim.Adam(tables, lr=learner.lr)
    optimizer.step()
    losses = trainer.engine.step("pretrain_teacher", users, items, 0)
    assert losses["teacher/loss_cf"].item() == pytest.approx(want.item(), rel=1e-6)
    for found, table in zip(tables_of(learner.model), tables, strict=True):
        torch.testing.assert_close(found, table.detach(), rtol=1e-3, atol=1e-4)  # Adam's first step is lr * sign


def test_it_learns_and_distils(parts):
    untrained = evaluate(Trainer(config(), parts).engine.learners["student"].model, parts, "val", (10,))["ndcg@10"]
    result = Trainer(config(), parts).fit()
    assert result.metrics["student"]["val"]["ndcg@10"] > 1.3 * untrained
    first = next(row for row in result.history if row["phase"] == "pretrain_teacher" and row["epoch"] == 1)
    assert first["teacher/loss_cf"] == pytest.approx(
        math.log(parts.n_items), rel=0.05
    )  # untrained models choose uniformly
    assert all("student/loss_distill" in row for row in result.history if row["phase"] == "joint" and row["epoch"])


@pytest.mark.parametrize("order", ["users", "interactions"])
def test_orders_are_permutations(parts, order):
    engine = Trainer(config(train__order=order), parts).engine
    found = [engine.order("joint", epoch) for epoch in (0, 1, 0)]
    assert all(torch.equal(each.sort().values, torch.arange(len(engine.users))) for each in found)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    visits = [torch.unique_consecutive(engine.users[each]) for each in found[:2]]
    together = [len(each) == len(each.unique()) for each in visits]
    assert together == [order == "users"] * 2
    if order == "users":
        assert not torch.equal(*visits)
        items = [engine.items[each][engine.users[each] == 0] for each in found[:2]]
        assert not torch.equal(*items)  # a user's own interactions are in another order too


class WithoutFactors(nn.Module):
    def __init__(self, n_users, n_items):
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, 2), nn.Embedding(n_items, 2)

    def score(self, users, items):
        return (self.users(users)[:, None] * self.items(items)).sum(2)


def test_what_is_refused(parts):
    with pytest.raises(UserError, match=r"student\.optimizer is sparse_adam.* touches every item"):
        config(student__optimizer="sparse_adam")
    with pytest.raises(
        UserError, match="negatives_from_samples is set, but train.loss full_softmax takes no negatives"
    ):
        config(distill__negatives_from_samples=True)
    with pytest.raises(UserError, match="the teacher WithoutFactors has no trained_factors"):
        Trainer(config(), parts, teacher=WithoutFactors(parts.n_users, parts.n_items))
    with pytest.raises(UserError, match=r"train\.order.*interactions.*users"):
        config(train__order="items")


def test_a_user_who_has_seen_everything_may_learn():
    """Nothing has to be drawn for them."""
    train, held = (np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])), (np.array([1]), np.array([1]))
    parts = Split.of({"train": train, "val": held, "test": held}, np.arange(2), np.arange(3))
    settings = config(eval__ks=(2,), train__monitor="ndcg@2", distill__method="none")
    assert math.isfinite(Trainer(settings, parts).fit().metrics["teacher"]["val"]["ndcg@2"])
