"""train.negative_source shared and batch: which items a row has, what is masked, the log-q correction, and what a step does."""

import math

import pytest
import torch
from bidistill import Config, Trainer, UserError, evaluate
from bidistill.data import split
from bidistill.data.synthetic import generate
from bidistill.distributed.partition import Partition
from bidistill.models.base import tables_of
from bidistill.models.mf import MF
from bidistill.optimizers import make_optimizer
from bidistill.registry import LOSSES
from bidistill.training.negatives import SharedSampler
from bidistill.training.sharded import Sharded
from bidistill.training.types import SharedNegatives
from bidistill.training.updates import EagerUpdate, SharedUpdate, shared_scores
from scipy.stats import chisquare
from test_full_softmax import WithoutFactors
from test_trainer import StopAfter, same

from bdkernels import Seen

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch.optim.Adagrad's own
SOURCES = ("shared", "batch")
BASE = {
    "teacher.dim": 8,
    "student.dim": 3,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.batch_size": 100,
    "train.loss": "softmax",
    "train.negatives": 7,
    "train.pretrain_epochs": 3,
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


def config(source, **overrides):
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(BASE | {"train.negative_source": source} | changed)


def drawn(source, rows, negatives, n_users=30, n_items=40, seed=3):
    """A batch of `rows` interactions, its negatives, and who has what: users, positives, negatives, sets of items."""
    torch.manual_seed(seed)
    owners, items = torch.randint(n_users, (300,)), torch.randint(n_items, (300,))
    seen = Seen.from_pairs(owners, items, n_users)
    some = torch.randint(300, (rows,))
    users, positives = owners[some], items[some]
    sampler = SharedSampler(seen, items.bincount(minlength=n_items), source, negatives)
    had = [set(seen.indices[seen.indptr[u] : seen.indptr[u + 1]].tolist()) for u in range(n_users)]
    return users, positives, sampler.draw(users, positives, torch.Generator().manual_seed(seed)), had


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("rows", "negatives"), [(64, 7), (63, 9), (8, 7), (5, 30), (1, 1), (50, 1), (40, 39)])
def test_the_mask_drops_what_the_user_has_and_nothing_else(source, rows, negatives):
    users, positives, found, had = drawn(source, rows, negatives)
    assert math.ceil(rows / found.size) == len(found.ids)
    dropped = 0
    for row, (user, positive) in enumerate(zip(users.tolist(), positives.tolist(), strict=True)):
        listed = found.ids[row // found.size].tolist()
        want = [item not in had[user] for item in listed]
        assert found.mask[row].tolist() == want
        assert positive in had[user]
        dropped += want.count(False)
    assert dropped or source == "shared"
    of_rows = found.of_rows()
    assert of_rows.ids.shape == of_rows.mask.shape == (rows, found.ids.shape[1])
    assert all(torch.equal(ids, found.ids[row // found.size]) for row, ids in enumerate(of_rows.ids))


@pytest.mark.parametrize(("rows", "negatives"), [(64, 7), (63, 9), (8, 7), (5, 30), (1, 1), (40, 39)])
def test_a_batch_lends_each_row_the_positives_of_others(rows, negatives):
    _, positives, found, _ = drawn("batch", rows, negatives)
    size = min(negatives + 1, rows)
    assert found.size == found.ids.shape[1] == size
    for row in range(rows):
        others = [(row - row % size + j) % rows for j in range(size)]
        assert row in others and len(set(others)) == size  # itself, which is masked, and `negatives` others
        assert found.ids[row // size].tolist() == positives[others].tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shared_draws_are_uniform_and_repeatable(seed):
    seen = Seen.from_pairs(torch.arange(5), torch.arange(5), 5)
    sampler = SharedSampler(seen, torch.ones(11, dtype=torch.int64), "shared", 50)
    users = torch.arange(5).repeat(400)
    ids, size, mask, log_q = sampler.draw(users, users, torch.Generator().manual_seed(seed))
    again = sampler.draw(users, users, torch.Generator().manual_seed(seed))
    assert (ids.shape, size, mask.shape, log_q) == ((40, 50), 50, (2000, 50), None)
    assert torch.equal(ids, again.ids) and torch.equal(mask, again.mask)
    assert chisquare(ids.flatten().bincount(minlength=11).numpy()).pvalue > 1e-4


def dense(tables, users, positives, found, had, log_q=None):
    """The softmax loss row by row, item by item, of tables [U, d], [N, d], [N] of any dtype."""
    terms = []
    for row, (user, positive) in enumerate(zip(users.tolist(), positives.tolist(), strict=True)):
        listed = [i for i in found.ids[row // found.size].tolist() if i not in had[user]]
        scores = torch.stack([tables[0][user] @ tables[1][i] + tables[2][i] for i in [positive, *listed]])
        if log_q is not None:
            scores = scores - log_q[[positive, *listed]]
        terms.append(-scores.log_softmax(0)[0])
    return torch.stack(terms).mean()


def products(tables, users, positives, found, loss="softmax"):
    """The same by `shared_scores`."""
    ids = found.with_positives(positives)
    scores = shared_scores(tables[0][users], tables[1][ids], tables[2][ids], positives, found)
    return LOSSES[loss](*scores, found.mask)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("rows", "negatives"), [(64, 7), (63, 9), (5, 30), (1, 1)])
def test_loss_and_gradients_are_those_of_a_dense_reference(source, rows, negatives):
    users, positives, found, had = drawn(source, rows, negatives)
    tables = [torch.randn(30, 6), torch.randn(40, 6), torch.randn(40)]
    tables = [t.double().requires_grad_() for t in tables]
    log_q = None
    if source == "batch":
        assert found.log_q is not None
        log_q = found.log_q.double()
        found = found._replace(log_q=log_q)
    losses = [products(tables, users, positives, found), dense(tables, users, positives, found, had, log_q)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-14)
    grads = [torch.autograd.grad(loss, tables) for loss in losses]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_gradcheck(source, loss):
    users, positives, found, _ = drawn(source, 11, 4)
    tables = [torch.randn(30, 3), torch.randn(40, 3), torch.randn(40)]
    tables = [t.double().requires_grad_() for t in tables]
    assert torch.autograd.gradcheck(lambda *t: products(t, users, positives, found, loss), tables)


def test_log_q_is_the_log_of_the_share_of_the_interactions():
    """And it is subtracted from every score, of the positive too: Yi et al. 2019, equation 3."""
    popularity = torch.tensor([4, 1, 0, 3])
    seen = Seen.from_pairs(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3]), 3)
    sampler = SharedSampler(seen, popularity, "batch", 2)
    users, positives = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3])
    found = sampler.draw(users, positives)
    for item in (0, 1, 3):
        assert found.log_q[item].item() == pytest.approx(math.log(popularity[item] / 8), rel=1e-6)
    assert found.log_q.isfinite().all()
    tables = [torch.randn(3, 2).double(), torch.randn(4, 2).double(), torch.randn(4).double()]
    want = 0.0
    for row, positive in enumerate(positives.tolist()):
        corrected = {
            i: float(tables[0][row] @ tables[1][i] + tables[2][i]) - math.log(popularity[i] / 8) for i in (0, 1, 3)
        }
        want -= math.log(math.exp(corrected[positive]) / sum(map(math.exp, corrected.values()))) / 3
    assert products(tables, users, positives, found).item() == pytest.approx(want, rel=1e-6)


def test_with_the_correction_scores_become_those_of_the_full_softmax():
    """Users without tastes of their own: the best scores are log popularity, which an uncorrected loss does not find."""
    torch.manual_seed(0)
    n = 5
    popularity = torch.tensor([400, 200, 100, 50, 25])
    items = torch.arange(n).repeat_interleave(popularity)[torch.randperm(int(popularity.sum()))]
    users = torch.zeros_like(items)
    nobody = Seen(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    ends = []
    for corrected in (True, False):
        sampler = SharedSampler(nobody, popularity, "batch", 30)
        bias = torch.zeros(n, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([bias], lr=0.05)
        for _ in range(300):
            found = sampler.draw(users, items)
            found = found if corrected else found._replace(log_q=None)
            own = torch.arange(len(users)) % found.size  # nothing is seen here, so the positive is masked by hand
            found.mask[torch.arange(len(users)), own] = False
            ids = found.with_positives(items)
            flat = torch.zeros(len(ids), 1, dtype=torch.float64)
            loss = LOSSES["softmax"](*shared_scores(flat[: len(users)], flat, bias[ids], items, found), found.mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(bias.detach() - bias.detach().mean())
    want = popularity.double().log()
    torch.testing.assert_close(ends[0], want - want.mean(), rtol=0, atol=0.15)
    assert ends[1].abs().max() < 0.15


STEPS = {  # optimizer settings, and the update that takes them
    "adam": ({"optimizer": "adam"}, EagerUpdate),
    "adam, decay": ({"optimizer": "adam", "weight_decay": 0.01}, EagerUpdate),
    "sparse_adam": ({"optimizer": "sparse_adam"}, SharedUpdate),
    "adagrad": ({"optimizer": "adagrad"}, SharedUpdate),
    "sgd, decay": ({"optimizer": "sgd", "weight_decay": 0.01}, SharedUpdate),
    "sparse_adam, clipped": ({"optimizer": "sparse_adam", "clip_norm": 1e6}, EagerUpdate),
    "adagrad, clipped": ({"optimizer": "adagrad", "clip_norm": 1e6}, EagerUpdate),
    "sgd, momentum": ({"optimizer": "sgd", "optimizer_args": {"momentum": 0.5}}, EagerUpdate),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_every_optimizer_is_that_of_dense_scores(parts, source, name):
    """Two steps beside torch's optimizer on the dense reference, without its rows that no row of the batch names."""
    settings, update = STEPS[name]
    settings = settings | {"lr": 0.02}
    overrides = {f"teacher__{key}": value for key, value in settings.items()}
    engine = Trainer(config(source, **overrides), parts).engine
    learner = engine.learners["teacher"]
    assert type(learner.update) is update
    had = [set(engine.seen.indices[a:b].tolist()) for a, b in engine.seen.indptr.unfold(0, 2, 1).tolist()]
    torch.manual_seed(2)
    for table in learner.model.parameters():
        table.detach().normal_(0, 0.5)
    tables = [t.clone().requires_grad_() for t in tables_of(learner.model)]
    optimizer = make_optimizer(
        settings["optimizer"], tables, 0.02, settings.get("weight_decay", 0.0), settings.get("optimizer_args", {})
    )
    for step in range(2):
        some = torch.randperm(len(engine.users))[:90]
        users, positives = engine.users[some], engine.items[some]
        generator = engine._generator("pretrain_teacher", "step", step)
        found = engine.objective.negatives.draw(users, positives, generator)
        loss = dense(tables, users, positives, found, had, found.log_q)
        grads = torch.autograd.grad(loss, tables)
        places = users, found.with_positives(positives), found.with_positives(positives)
        for table, grad, ids in zip(tables, grads, places, strict=True):
            rows = ids.unique()
            table.grad = (
                torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape) if name.startswith("sparse") else grad
            )
        optimizer.step()
        losses = engine.step("pretrain_teacher", users, positives, step)
        assert losses["teacher/loss_cf"].item() == pytest.approx(loss.item(), rel=1e-5)
        for got, want in zip(tables_of(learner.model), tables, strict=True):
            torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-4)


class ByRows(MF):
    """Factors that are not said to be trained: scored item by item."""

    trained_factors = None


@pytest.mark.parametrize("source", SOURCES)
def test_models_without_trained_factors_take_the_same_steps(parts, source):
    """And any module does."""
    found = []
    for kind in (MF, ByRows):
        settings = config(source, distill__method="none")
        teacher = kind(parts.n_users, parts.n_items, 8, seed=1)
        engine = Trainer(settings, parts, teacher=teacher).engine
        users, positives = (torch.from_numpy(t[:90]) for t in parts.part("train"))
        losses = engine.step("pretrain_teacher", users, positives, 0)
        found.append([losses["teacher/loss_cf"], *(t.clone() for t in tables_of(engine.learners["teacher"].model))])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    module = WithoutFactors(parts.n_users, parts.n_items)
    result = Trainer(config(source), parts, teacher=module).fit()
    assert any("teacher/loss_distill" in row for row in result.history)


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam"])
@pytest.mark.parametrize("source", SOURCES)
def test_it_learns_distils_and_resumes_bit_for_bit(parts, tmp_path, source, optimizer):
    overrides = {f"{name}__optimizer": optimizer for name in ("teacher", "student")}
    settings = config(source, **overrides, distill__loss="listwise", distill__samples=3, run__out=str(tmp_path))
    trainer = Trainer(settings.with_overrides({"run.out": None}), parts)
    assert not trainer.engine.unfused() or optimizer == "adam"
    untrained = evaluate(trainer.engine.learners["student"].model, parts, "val", (10,))["ndcg@10"]
    whole = trainer.fit()
    assert whole.metrics["student"]["val"]["ndcg@10"] > 1.3 * untrained
    assert all("student/loss_distill" in row for row in whole.history if row["phase"] == "joint" and row["epoch"])
    steps = math.ceil(len(parts.train_users) / 100)
    for stop in (steps + 5, 6 * steps + 3):  # in a pretraining, in the joint phase
        begun = stop > steps + 5
        calls = [StopAfter(stop - (steps + 5) * begun)]
        interrupted = Trainer.resume(tmp_path, callbacks=calls) if begun else Trainer(settings, parts, callbacks=calls)
        with pytest.raises(KeyboardInterrupt):
            interrupted.fit()
    assert same(Trainer.resume(tmp_path).fit(), whole)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_other_losses_take_shared_negatives(parts, loss, optimizer):
    """Both updates give the loss of the items one by one."""
    settings = config("shared", train__loss=loss, teacher__optimizer=optimizer)
    engine = Trainer(settings, parts).engine
    users, positives = (torch.from_numpy(t[:90]) for t in parts.part("train"))
    found = engine.objective.negatives.draw(users, positives, engine._generator("pretrain_teacher", "step", 0))
    assert isinstance(found, SharedNegatives)
    model = engine.learners["teacher"].model
    scores = model.score(users, torch.cat([positives[:, None], found.of_rows().ids], 1)).detach()
    want = LOSSES[loss](scores[:, 0], scores[:, 1:], found.mask)
    got = engine.step("pretrain_teacher", users, positives, 0)["teacher/loss_cf"]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_what_is_refused():
    for overrides, message in (
        ({"train__loss": "bce"}, "negative_source is batch, but the log-q correction.*train.loss is bce"),
        ({"train__order": "users"}, "negative_source is batch, but train.order is users"),
        ({"train__batch_size": 7}, "negatives is 7 and a batch of train.batch_size 7 has 6 other positives"),
        ({"train__loss": "full_softmax"}, "negative_source is batch, but train.loss full_softmax takes no negatives"),
        (
            {"distill__negatives_from_samples": True},
            "negatives_from_samples is set, but train.negative_source is batch",
        ),
    ):
        with pytest.raises(UserError, match=message):
            config("batch", **overrides)
    with pytest.raises(UserError, match=r"train\.negative_source.*row.*shared.*batch"):
        config("rows")
    with pytest.raises(UserError, match=r"train\.negative_source shared works on one process only.*set it to row"):
        Sharded(Partition.whole(3, 4)).check(config("shared", distill__method="none"))
