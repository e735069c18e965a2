"""A loss from outside the package: no fused step knows it, so it takes the eager one, with every optimizer, and that is said."""

from dataclasses import replace

import pytest
import torch
from bidistill import LOSSES, Config, Trainer, UserError, generate, split
from bidistill.data.sizes import Sizes
from bidistill.plan import make_plan
from bidistill.training.engine import Engine
from bidistill.training.fusion import told
from bidistill.training.updates import EagerUpdate, FusedUpdate
from test_plan import COSTS

MINE = "sampled_softmax"
OPTIMIZERS = {
    "adam": lambda parameters, **o: torch.optim.Adam(parameters, **o),
    "adagrad": lambda parameters, **o: torch.optim.Adagrad(parameters, **o),
    "sgd": lambda parameters, **o: torch.optim.SGD(parameters, **o),
    "sparse_adam": lambda parameters, **o: torch.optim.SparseAdam(parameters, **o),
}
SETTINGS = {
    "teacher.dim": 6, "student.dim": 3, "teacher.lr": 0.05, "student.lr": 0.05, "train.batch_size": 128, "train.loss": MINE,
    "train.pretrain_epochs": 3, "train.epochs": 2, "eval.ks": (5,), "train.monitor": "ndcg@5", "run.progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 60, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def settings(optimizer, **more):
    both = {"teacher.optimizer": optimizer, "student.optimizer": optimizer}
    return Config().with_overrides(SETTINGS | both | {name.replace("__", "."): value for name, value in more.items()})


def by_hand(parts, engine, optimizer, steps):
    """The teacher's pretraining in everyday PyTorch: embeddings, the loss written out, torch.optim."""
    sparse = optimizer == "sparse_adam"
    user_table, item_table, item_bias = (t.clone() for t in engine.learners["teacher"].model.tables())
    tables = [
        torch.nn.Embedding.from_pretrained(t, freeze=False, sparse=sparse)
        for t in (user_table, item_table, item_bias[:, None])
    ]
    peer = OPTIMIZERS[optimizer]([t.weight for t in tables], lr=0.05)
    losses = []
    for users, positives, negatives in steps:
        items = torch.cat([positives[:, None], negatives], 1)
        scores = (tables[0](users)[:, None] * tables[1](items)).sum(2) + tables[2](items)[:, :, 0]
        loss = torch.nn.functional.cross_entropy(scores, torch.zeros(len(users), dtype=torch.int64))
        peer.zero_grad()
        loss.backward()
        peer.step()
        losses.append(loss.item())
    return losses, [t.weight.detach() for t in tables]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch.optim.Adagrad's own
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_torch_by_hand(outside, parts, optimizer):
    outside(MINE)
    engine = Engine(settings(optimizer), parts)
    batches = []
    for step in range(5):
        at = torch.arange(128 * step, 128 * (step + 1)) % len(engine.users)
        users, positives = engine.users[at], engine.items[at]
        generator = engine._generator("pretrain_teacher", "step", step)
        drawn = engine.objective.batches(("teacher",), users, positives, step, generator, joint=False)[
            "teacher"
        ].negatives
        assert drawn.mask.all()
        batches.append((users, positives, drawn.ids))
    wanted, tables = by_hand(parts, engine, optimizer, batches)
    found = [
        engine.step("pretrain_teacher", users, positives, step)["teacher/loss_cf"].item()
        for step, (users, positives, _) in enumerate(batches)
    ]
    assert found == pytest.approx(wanted, rel=1e-5)
    assert wanted[-1] < wanted[0]
    got = engine.learners["teacher"].model.tables()  # type: ignore[attr-defined]
    for mine, theirs in zip(got, (*tables[:2], tables[2][:, 0]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:.*epoch 0 is kept")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_trains_and_goes_on(outside, parts, optimizer, tmp_path):
    outside(MINE)
    config = settings(optimizer)
    whole = Trainer(config, parts)
    assert all(isinstance(each.update, EagerUpdate) for each in whole.engine.learners.values())
    result = whole.fit()
    rows = [row for row in result.history if row["phase"] == "joint"]
    assert all(name in rows[-1] for name in ("teacher/loss_cf", "student/loss_distill"))
    assert rows[-1]["teacher/loss_cf"] < torch.tensor(1.0 + config.train.negatives).log()

    short = config.with_overrides({"run.out": str(tmp_path / "run"), "train.epochs": 1})
    Trainer(short, parts).fit()
    resumed = Trainer.resume(tmp_path / "run", config=short.with_overrides({"train.epochs": 2})).fit()
    assert resumed.metrics == result.metrics


def test_plan_and_engine_say_why(outside, parts):
    outside(MINE)
    one = "teacher and student train without the fused step: the loss 'sampled_softmax' has no fused form"
    engine = Engine(settings("sparse_adam"), parts)
    assert engine.unfused() == [one]
    sizes = Sizes.of(1000, 500, 20_000, settings("sparse_adam"))
    assert make_plan(settings("sparse_adam"), sizes, replace(COSTS, unfused=engine.unfused())).remarks == [one]


def test_other_reasons(parts):
    usual = {"train__loss": "bpr"}
    fused = Engine(settings("sparse_adam", **usual), parts)
    assert fused.unfused() == [] and isinstance(fused.learners["teacher"].update, FusedUpdate)
    assert Engine(settings("sgd", teacher__weight_decay=0.1, **usual), parts).unfused() == []
    mixed = Engine(settings("sgd", teacher__clip_norm=0.1, **usual), parts)
    assert mixed.unfused() == ["teacher trains without the fused step: clip_norm needs the gradient of a whole step"]
    adam = Engine(settings("adam", **usual), parts)
    assert adam.unfused() == told(dict.fromkeys(("teacher", "student"), "the optimizer 'adam' has no fused form"))
    samples = Engine(settings("sparse_adam", distill__negatives_from_samples=True, **usual), parts)
    assert "distill.negatives_from_samples" in samples.unfused()[0]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda positive, negatives, mask: positive, r".*found torch.float32 of shape \(2,\)"),
        (lambda positive, negatives, mask: 1.0, ".*found 1.0"),
        (lambda positive, negatives, mask: positive.detach().sum(), "finite scalar with a gradient"),
        (lambda positive, negatives, mask: (negatives.sum(1) / mask.sum(1)).mean(), ".*rows without a negative too, found"),
        (lambda p, n, mask: torch.sqrt((n.exp() * mask).sum(1)).mean() + p.sum(), "gradient of the loss 'wrong' is not finite"),
    ],
)  # fmt: skip
def test_a_loss_that_cannot_be_trained_by_is_refused_before_the_run(loss, words, parts):
    LOSSES.register("wrong", loss)
    with pytest.raises(UserError, match=f"the (loss 'wrong' must give a )?{words}"):
        Trainer(settings("adam", train__loss="wrong"), parts)
