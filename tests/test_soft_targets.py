"""distill.loss full_softmax and distill.guide_scores: what a step minimises, that students learn by it, and what is refused."""

import numpy as np
import pytest
import torch
from bidistill import Config, Distiller, Trainer, UserError
from bidistill.data import split
from bidistill.data.synthetic import generate
from bidistill.distill import make_method
from bidistill.distill.lists import of_shares
from bidistill.models.item_knn import ItemKNN
from bidistill.models.mf import MF
from bidistill.models.scoring import guide_scores, listed_scores
from bidistill.training.callbacks import Callback
from bidistill.training.soft_targets import soft_target_loss
from bidistill.training.types import Batch, Terms
from torch.nn.functional import cross_entropy

from bdkernels import Draws, Seen

BASE = {
    "teacher.kind": "item_knn",
    "student.dim": 3,
    "student.lr": 0.02,
    "train.batch_size": 256,
    "train.loss": "full_softmax",
    "train.order": "users",
    "train.joint": "student",
    "train.pretrain_epochs": 2,
    "train.epochs": 3,
    "eval.ks": (5, 10),
    "eval.baselines": ["popularity"],
    "train.monitor": "ndcg@10",
    "run.progress": False,
    "distill.lambda_teacher": 0.0,
    "distill.loss": "full_softmax",
    "distill.guide_scores": "shares",
    "distill.samples": 0,
    "distill.pool": 0,
    "distill.pool_top": 12,
}


@pytest.fixture(scope="module")
def parts():
    interactions, _, _ = generate(60, 80, 1200, dim=4, seed=1)
    return split(interactions, "leave_one", seed=1)


def config(**overrides):
    return Config().with_overrides(BASE | {name.replace("__", "."): value for name, value in overrides.items()})


def batch_of(rng, n_users, n_items, k=4):
    """Three interactions of user 1, two of user 4, one of user 0, whose lists are full, part and empty."""
    users = torch.tensor([1, 4, 1, 0, 4, 1])
    positives = torch.from_numpy(rng.integers(0, n_items, 6))
    lists = torch.full((n_users, k), -1)
    lists[1], lists[4, :2] = torch.tensor([3, 0, 9, 7]), torch.tensor([5, 2])
    guide = torch.from_numpy(rng.standard_normal((n_users, k))).float()
    ids = lists[users]
    nothing = Draws(ids[:, :0], ids[:, :0] >= 0)
    return Batch(users, positives, nothing, Draws(ids, ids >= 0), guide[users])


def test_a_step_is_that_of_dense_chances(rng):
    """Loss, both parts and all gradients beside those of torch's cross entropies over tables of all scores, row after row."""
    model = MF(5, 11, 3)
    torch.nn.init.normal_(model.user_factors.weight), torch.nn.init.normal_(model.item_factors.weight)
    torch.nn.init.normal_(model.item_bias.weight)
    batch = batch_of(rng, 5, 11)
    terms = Terms("full_softmax", "full_softmax", 0.7, 1.0, 0.4)
    loss, losses = soft_target_loss(model, batch, terms)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    scores = model.score(batch.users, torch.arange(11).expand(6, -1))
    cf = cross_entropy(scores, batch.positives)
    targets = torch.zeros(6, 11)
    for row in range(6):
        live = batch.distill.mask[row]
        if live.any():
            targets[row, batch.distill.ids[row][live]] = (batch.guide_scores[row][live] / 0.4).softmax(0)
    assert targets.sum(1).tolist() == pytest.approx([1, 1, 1, 0, 1, 1])
    distill = -(targets * scores.log_softmax(1)).sum(1).mean()
    want = cf + 0.7 * distill
    want.backward()
    for got, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert losses["cf"].item() == pytest.approx(cf.item(), rel=1e-5)
    assert losses["distill"].item() == pytest.approx(distill.item(), rel=1e-4)


def test_shares():
    ids = torch.tensor([[4, 2, 7, -1]])
    draws, logits = of_shares(Draws(ids, ids >= 0), torch.tensor([[6.0, 2.0, 0.0, 5.0]]))
    assert draws.mask.tolist() == [[True, True, False, False]]
    chances = (logits / 0.5).masked_fill(~draws.mask, -torch.inf).softmax(1)
    assert chances[0].tolist() == pytest.approx([0.9, 0.1, 0, 0])  # 6 ** 2 : 2 ** 2


def test_the_preset_is_what_is_tested_here(parts):
    """And it trains as it stands, on few epochs."""
    preset, own = Config.preset("neighbours"), config()
    others = {
        "student.dim",
        "student.lr",
        "train.batch_size",
        "distill.lambda_student",
        "distill.tau_guide",
        "distill.pool_top",
    }
    for name in own.differences(Config()):
        if name.startswith(("distill.", "teacher.", "train.joint", "train.loss", "train.order")) and name not in others:
            assert preset[name] == own[name], name
    few = {"train.pretrain_epochs": 1, "train.epochs": 1, "distill.pool_top": 20, "run.progress": False}
    history = Trainer(preset.with_overrides(few), parts).fit().history
    assert any("student/loss_distill" in row for row in history)


def test_a_users_list_is_scored_once(parts, monkeypatch):
    """The same scores as of each row by itself, for as many rows as there are users."""
    model = ItemKNN(parts.n_users, parts.n_items)
    model.fit(Seen.from_pairs(*(torch.from_numpy(t) for t in parts.part("train")), parts.n_users), 0)
    users = torch.tensor([3, 9, 3, 3, 9])
    ids = torch.randint(parts.n_items, (parts.n_users, 6))
    want, asked = listed_scores(model, users, ids[users]), []
    score = model.score
    monkeypatch.setattr(model, "score", lambda users, ids: (asked.append(len(users)), score(users, ids))[1])
    assert torch.equal(guide_scores(model, users, ids[users]), want)
    assert asked == [2]
    other = ids[users].clone()
    other[2] = other[2].flip(0)  # not the list of the user's first row
    assert torch.equal(guide_scores(model, users, other), listed_scores(model, users, other))
    assert asked[1:] == [5, 5]
    assert guide_scores(model, users, other[:, :0]).shape == (5, 0)
    assert len(asked) == 3  # nobody is asked for nothing


def test_students_learn_from_neighbours(parts):
    """Step by step the student's chances come nearer to its teacher's, and a weight of next to nothing is next to none."""
    result = Trainer(config(train__epochs=12, train__patience=0, distill__lambda_student=5.0), parts).fit()
    losses = [row["student/loss_distill"] for row in result.history if row["phase"] == "joint" and row["epoch"]]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.1
    least, alone = (
        next(Trainer(config(**changes), parts).fit().student.parameters())
        for changes in ({"distill__lambda_student": 1e-30}, {"distill__method": "none"})
    )
    torch.testing.assert_close(least, alone, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_goes_on_bit_for_bit(parts, tmp_path):
    whole = Trainer(config(run__out=str(tmp_path / "whole")), parts).fit()

    class Enough(Exception):
        pass

    class Stop(Callback):
        def on_epoch(self, run, row):
            if row["phase"] == "joint" and row["epoch"] == 2:
                raise Enough

    with pytest.raises(Enough):
        Trainer(config(run__out=str(tmp_path / "part")), parts, callbacks=[Stop()]).fit()
    resumed = Trainer.resume(tmp_path / "part").fit()
    for got, want in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__loss": "bce"}, "distill.loss is full_softmax, but train.loss is bce"),
        ({"distill__samples": 2}, "learns from a user's whole pool: set distill.samples to 0"),
        ({"distill__tau_learner": 2.0}, r"distill\.tau_learner is 2.*set it to 1"),
        ({"student__optimizer": "sparse_adam"}, r"student\.optimizer is sparse_adam"),
        ({"distill__guide_scores": "odds"}, r"distill\.guide_scores.*logits.*shares"),
    ],
)
def test_what_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        config(**changes)


def test_a_loop_of_ones_own_is_told(parts):
    settings = config()
    train = [torch.from_numpy(t) for t in parts.part("train")]
    seen = Seen.from_pairs(*train, parts.n_users)
    models = [MF(parts.n_users, parts.n_items, 2) for _ in range(2)]
    distiller = Distiller(
        make_method(settings.distill),
        seen,
        parts.n_items,
        learners=["student"],
        samples=0,
        resample_every=1,
        pool=12,
        kind="full_softmax",
    )
    with pytest.raises(ValueError, match="softmax_loss the drawn items as positives with weights"):
        distiller(train[0][:5], *models)
    with pytest.raises(ValueError, match="scores: expected 'logits' or 'shares'"):
        Distiller(make_method(settings.distill), seen, parts.n_items, pool=12, scores="odds")
    shares = {
        scores: Distiller(
            make_method(settings.distill), seen, parts.n_items, learners=["student"], samples=0, resample_every=1, pool=12,
            kind="listwise", scores=scores,
        )(train[0][:5], *models)["student"].item()
        for scores in ("logits", "shares")
    }  # fmt: skip
    assert np.isfinite(list(shares.values())).all()
    assert shares["logits"] != shares["shares"]
