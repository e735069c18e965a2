"""Methods of other papers, and the deterministic ablation: what they draw and minimise, by dense float64 oracles written from the
formulas in their docstrings; they train, and go on bit for bit."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from bidistill import MF, Config, Distiller, Trainer, UserError, generate, split
from bidistill.data.sizes import Sizes
from bidistill.distill.cd import CollaborativeDistillation
from bidistill.distill.dcd import DualCorrection
from bidistill.distill.lists import distinct, of_ids
from bidistill.distill.method import make_method
from bidistill.distill.rce import RejuvenatedCrossEntropy
from bidistill.distill.rd import RankingDistillation
from bidistill.distill.rrd import RelaxedRankingDistillation
from bidistill.distill.top_discrepancy import TopDiscrepancy
from bidistill.training.memory import memory
from runs import StopAt, same
from scipy.stats import chisquare

from bdkernels import Draws, Seen

pytestmark = [
    pytest.mark.usefixtures("heard_signals"),
    pytest.mark.filterwarnings("ignore:.*epoch 0 is kept"),
]

N_USERS, N_ITEMS = 30, 60
SMALL = {
    "rd": RankingDistillation(top=6, counted=20, scale=3.0, mu=0.3),
    "cd": CollaborativeDistillation(mu=5.0),
    "rrd": RelaxedRankingDistillation(interesting=8, uninteresting=9, scale=6.0),
    "dcd": DualCorrection(interesting=8, uninteresting=9, scale=6.0, under=5, over=7, eps=0.1, correction=0.5),
    "rce_kd": RejuvenatedCrossEntropy(top=10, drawn=6, tau=0.7, beta=2.0, eps=0.1),
    "top_discrepancy": TopDiscrepancy(),
}
ARGS = {
    "rd": {"top": 6, "counted": 20},
    "cd": {"guided": "student"},
    "rrd": {"interesting": 8, "uninteresting": 9},
    "dcd": {"interesting": 8, "uninteresting": 9, "under": 5, "over": 7, "eps": 0.1},
    "rce_kd": {"top": 10, "drawn": 6, "eps": 0.1},
    "top_discrepancy": {},
}


def spread(n_users, n_items, dim, seed, scale=1.0):
    """A model whose scores differ: its initial values are small."""
    model = MF(n_users, n_items, dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def world():
    """A teacher and a student, CSR rows of what users have seen, and the same as a mask [users, items]."""
    rng = np.random.default_rng(3)
    hidden = np.zeros((N_USERS, N_ITEMS), bool)
    for user in range(N_USERS):
        hidden[user, rng.choice(N_ITEMS, rng.integers(0, 20), replace=False)] = True
    hidden[1] = True
    hidden[1, [4, 11, 40]] = False  # hardly anything is left
    users, items = (torch.from_numpy(each) for each in np.nonzero(hidden))
    models = spread(N_USERS, N_ITEMS, 6, 1), spread(N_USERS, N_ITEMS, 2, 2)
    return *models, Seen.from_pairs(users, items, N_USERS), hidden


def dense(model, hidden):
    """[users, items] float64 scores, and ranks among the unseen (1 = best, ties by id; 0 where seen)."""
    n_users, n_items = hidden.shape
    scores = model.score(torch.arange(n_users), torch.arange(n_items).expand(n_users, -1)).detach().double().numpy()
    ranks = np.zeros(hidden.shape, np.int64)
    for user in range(n_users):
        order = [i for i in np.argsort(-scores[user], kind="stable") if not hidden[user, i]]
        ranks[user, order] = np.arange(1, len(order) + 1)
    return scores, ranks


def lists(method, world, step=0, samples=0, pool=40):
    """The method's draws for every user, as it is asked for them by a Distiller."""
    teacher, student, seen, _ = world
    distiller = Distiller(
        method, seen, N_ITEMS, learners=["student"], samples=samples, pool=pool, resample_every=1, seed=5
    )
    distiller.resample(teacher, student, step)
    return distiller.draw(teacher, student, torch.arange(N_USERS), step, torch.Generator())["student"]


def best(ranks, user, k):
    """The ids of the k best unseen items, in order."""
    return [int(i) for i in np.argsort(ranks[user], kind="stable") if ranks[user, i]][:k]


def live(row):
    return [i for i in row.tolist() if i >= 0]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def relaxed(ordered, others):
    """By hand: scores of a list in the guide's order, and of the others."""
    total = 0.0
    for k, own in enumerate(ordered):
        total -= math.log(math.exp(own) / (sum(map(math.exp, ordered[k:])) + sum(map(math.exp, others))))
    return total


@pytest.fixture
def rows():
    """Scores of both models for any list size, with holes and a row of nothing."""

    def made(size, seed=0):
        rng = np.random.default_rng(seed)
        scores, guide = (torch.from_numpy(rng.normal(0, 1.5, (5, size)).astype(np.float32)) for _ in range(2))
        mask = torch.from_numpy(rng.random((5, size)) < 0.75)
        mask[0], mask[3] = True, False
        return scores, guide, mask

    return made


def minimised(method, scores, guide, mask):
    """The method's loss, with `prepare` done, and its gradient."""
    nothing = torch.zeros(0, dtype=torch.int64)
    Distiller(method, Seen.from_pairs(nothing, nothing, 3), N_ITEMS, learners=["student"])
    own = scores.clone().requires_grad_()
    loss = method.loss("student", own, guide, Draws(torch.arange(mask.shape[1]).expand_as(mask).where(mask, -1), mask))
    loss.backward()
    assert own.grad.isfinite().all() and not own.grad[~mask].any() and not own.grad[3].any()
    return loss.item()


def test_rd(world, rows):
    method = SMALL["rd"]
    scores, guide, mask = rows(26)
    expected = []
    for own, there in zip(scores.double().numpy(), mask.numpy(), strict=True):
        counted = [s for s, here in zip(own[6:], there[6:], strict=True) if here]
        weights = []
        for r in range(1, 7):
            n = sum(s > own[r - 1] for s in counted)
            rank = math.floor(n * (N_ITEMS - 1) / max(1, len(counted))) + 1
            weights.append(math.exp(-r / 3.0) * math.tanh(max(0.3 * (rank - r), 0)) if there[r - 1] else 0.0)
        total = sum(weights)
        expected.append(-sum(w / total * log_sigmoid(s) for w, s in zip(weights, own, strict=False)) if total else 0.0)
    assert sum(each > 0 for each in expected) >= 3
    assert minimised(method, scores, guide, mask) == pytest.approx(np.mean(expected), rel=1e-5)
    drawn, (_, ranks) = lists(method, world), dense(world[0], world[3])
    for user in range(N_USERS):
        wanted = best(ranks, user, 6)
        assert live(drawn.ids[user, :6]) == wanted and drawn.mask[user, :6].sum() == len(wanted)
        assert not world[3][user, drawn.ids[user, 6:]].any() and drawn.mask[user, 6:].all()


def test_rrd(world, rows):
    method = SMALL["rrd"]
    scores, guide, mask = rows(17)
    expected = []
    for own, theirs, there in zip(scores.double().numpy(), guide.numpy(), mask.numpy(), strict=True):
        order = [k for k in np.argsort(-theirs[:8], kind="stable") if there[k]]
        expected.append(relaxed([own[k] for k in order], [own[j] for j in range(8, 17) if there[j]]))
    assert minimised(method, scores, guide, mask) == pytest.approx(np.mean(expected), rel=1e-5)
    firsts = []
    _, ranks = dense(world[0], world[3])
    for step in range(60):
        drawn = lists(method, world, step)
        for user in range(N_USERS):
            ids = live(drawn.ids[user])
            assert len({*ids}) == len(ids) and not world[3][user, ids].any()
        firsts.append(drawn.ids[0, 0].item())  # of a user with many unseen items
    n = ranks[0].max()
    chances = np.exp(-np.arange(n) / 6.0) / np.exp(-np.arange(n) / 6.0).sum()
    edges = [0, 2, 5, 10, n]
    found = np.histogram(ranks[0, firsts] - 1, edges)[0]
    wanted = [60 * chances[a:b].sum() for a, b in itertools.pairwise(edges)]
    assert chisquare(found, wanted).pvalue > 1e-3


def test_dcd(world, rows):
    method = SMALL["dcd"]
    scores, guide, mask = rows(29)
    expected = []
    for own, theirs, there in zip(scores.double().numpy(), guide.numpy(), mask.numpy(), strict=True):
        total = 0.0
        for start, k, stop, weight in ((0, 8, 17, 1.0), (17, 22, 29, 0.5)):
            order = [start + at for at in np.argsort(-theirs[start:k], kind="stable") if there[start + at]]
            total += weight * relaxed([own[i] for i in order], [own[j] for j in range(k, stop) if there[j]])
        expected.append(total)
    assert minimised(method, scores, guide, mask) == pytest.approx(np.mean(expected), rel=1e-5)
    drawn = lists(method, world)
    _, of_teacher = dense(world[0], world[3])
    _, of_student = dense(world[1], world[3])
    errors = of_student - of_teacher  # above 0: the student underestimates it
    some = 0
    for user in range(N_USERS):
        under, over = live(drawn.ids[user, 17:22]), live(drawn.ids[user, 22:])
        assert (errors[user, under] > 0).all() and (errors[user, over] < 0).all()
        assert len({*under}) == len(under) and len({*over}) == len(over)
        some += len(under) * len(over)
    assert some > 20 * N_USERS


def test_rce_kd(world, rows):
    method = SMALL["rce_kd"]
    scores, guide, mask = rows(26)
    mask[:, :10] = torch.tensor([True] * 5 + [False] * 5).logical_or(mask[:, :10]) & mask.any(1, keepdim=True)
    expected = []
    for own, theirs, there in zip(scores.double().numpy(), guide.double().numpy(), mask.numpy(), strict=True):

        def entropy(places, own=own, theirs=theirs, there=there):
            items = [i for i in places if there[i]]
            p = np.exp(theirs[items] / 0.7) / np.exp(theirs[items] / 0.7).sum()
            q = np.exp(own[items]) / np.exp(own[items]).sum()
            return -(p * np.log(q)).sum()

        both = max(0, int(there[:10].sum()) - int(there[10:20].sum()))
        g = math.exp(-2.0 * both / 10)
        expected.append((1 - g) * entropy(range(10)) + g * entropy(range(10, 26)))
    assert minimised(method, scores, guide, mask) == pytest.approx(np.mean(expected), rel=1e-5)
    drawn = lists(method, world)
    _, of_teacher = dense(world[0], world[3])
    _, of_student = dense(world[1], world[3])
    for user in range(N_USERS):
        own, theirs = best(of_student, user, 10), best(of_teacher, user, 10)
        others, rest = live(drawn.ids[user, 10:20]), live(drawn.ids[user, 20:])
        assert live(drawn.ids[user, :10]) == own and others == [i for i in theirs if i not in own]
        assert not {*rest} & {*others} and len({*rest}) == len(rest)
        assert (of_student[user, rest] < of_teacher[user, rest]).all()
        assert drawn.mask[user, :10].sum() - drawn.mask[user, 10:20].sum() == len({*own} & {*theirs})
    kept = sum(len({*live(drawn.ids[user, 20:])} & {*live(drawn.ids[user, :10])}) for user in range(N_USERS))
    assert kept > N_USERS  # the student's own best items are in the second set too


@pytest.mark.parametrize("guided", ["teacher", "student"])
def test_cd(world, guided):
    """Draws by the ranks of one model; the loss is that of `distill_loss`, which a fused step knows."""
    method = CollaborativeDistillation(mu=5.0, guided=guided)
    assert not method.own_loss
    _, ranks = dense(world[0 if guided == "teacher" else 1], world[3])
    drawn = np.concatenate([lists(method, world, step, pool=50).ids[0].numpy() for step in range(20)])
    n = ranks[0].max()
    chances = np.exp(-np.arange(n) / 5.0)
    found = np.bincount(ranks[0, drawn] - 1, minlength=n)
    wanted = 1000 * chances / chances.sum()
    few = 15  # the last ones together, so that each count is large enough
    found, wanted = (np.append(each[:few], each[few:].sum()) for each in (found, wanted))
    assert found.sum() == 1000 and chisquare(found, wanted).pvalue > 1e-3


@pytest.mark.parametrize("side", ["over", "under"])
@pytest.mark.parametrize("k", [3, 40, 80])
def test_top_discrepancy(world, monkeypatch, side, k):
    """By sorting dense ranks, for both learners; as many users at a time as one likes."""
    monkeypatch.setattr("bidistill.distill.top_discrepancy.RANKED", 7 * N_ITEMS)
    teacher, student, seen, hidden = world
    distiller = Distiller(TopDiscrepancy(side), seen, N_ITEMS, samples=k)
    found = distiller.draw(teacher, student, torch.arange(N_USERS), 0, torch.Generator())
    ranks = {name: dense(model, hidden)[1] for name, model in (("teacher", teacher), ("student", student))}
    for learner, guide in (("student", "teacher"), ("teacher", "student")):
        gaps = (ranks[guide] - ranks[learner]) * (1 if side == "over" else -1)
        for user in range(N_USERS):
            order = [int(i) for i in np.argsort(-gaps[user], kind="stable") if gaps[user, i] > 0][:k]
            assert found[learner].ids[user].tolist() == order + [-1] * (k - len(order))


def test_distinct():
    ids = torch.tensor([[3, 5, 3, -1, 5, 2], [-1, -1, 7, 7, 7, 0]])
    wanted = [[3, 5, -1, -1, -1, 2], [-1, -1, 7, -1, -1, 0]]
    assert distinct(of_ids(ids)).ids.tolist() == wanted
    assert torch.equal(distinct(of_ids(ids)).mask, torch.tensor(wanted) >= 0)


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_of_the_student_falls(world, name):
    """In a loop by hand."""
    teacher, _, seen, _ = world
    student = spread(N_USERS, N_ITEMS, 6, 9, scale=0.3)
    users = torch.arange(N_USERS).repeat(4)
    distiller = Distiller(SMALL[name], seen, N_ITEMS, learners=["student"], samples=0, pool=20, resample_every=1000)
    optimizer, losses = torch.optim.Adam(student.parameters(), lr=0.05), []
    for _ in range(25):
        loss = distiller(users, teacher, student)["student"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0 and losses[-1] < 0.9 * losses[0] and all(map(math.isfinite, losses))


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(folder=None, **values):
    base = {
        "teacher.dim": 6, "student.dim": 3, "train.batch_size": 256, "train.pretrain_epochs": 1, "train.epochs": 2,
        "train.patience": 0, "eval.ks": (5,), "train.monitor": "ndcg@5", "run.progress": False,
        "distill.lambda_teacher": 0.0, "train.joint": "student", "run.out": None if folder is None else str(folder),
    }  # fmt: skip
    return Config().with_overrides(base | {name.replace("__", "."): value for name, value in values.items()})


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", ARGS)
def test_a_run_goes_on_bit_for_bit(parts, tmp_path, name, every):
    given = {"distill__method": name, "distill__args": ARGS[name], "distill__resample_every": every}
    whole = Trainer(config(**given), parts).fit()
    rows = [row for row in whole.history if row["phase"] == "joint" and row["epoch"]]
    assert len(rows) == 2 and all(row["student/loss_distill"] > 0 for row in rows)
    trainer = Trainer(config(tmp_path, **given), parts, callbacks=[StopAt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.save()
    assert same(Trainer.resume(tmp_path).fit(), whole)


def test_lists_are_what_a_run_holds(parts):
    settings = config(distill__method="rrd", distill__args=ARGS["rrd"])
    held = {part.name: part for part in memory(settings, Sizes.of_split(parts, settings))}
    assert held["pool of draws"].bytes == 4 * parts.n_users * 17 and held["pool of draws"].lower == "distill.args"
    trainer = Trainer(settings, parts)
    trainer.engine.objective.resample(0, 3)
    assert trainer.distiller.pool.shape == (parts.n_users, 17)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"distill__lambda_teacher": 0.1, "train__joint": "both"}, "only the student learns, but distill.lambda_teacher is 0.1"),
        ({"distill__pool": 5}, "distill.pool is set, but the method 'rrd' does not know it"),
        ({"distill__samples": 0}, "distill.samples is set"),
        ({"distill__pool_top": 5}, "distill.pool_top is set"),
        ({"distill__tau_guide": 2.0}, "distill.tau_guide is set"),
        ({"distill__args": {"interesting": 0}}, "interesting must be a whole number above 0, found 0"),
        ({"distill__args": {"uninteresting": 2.5}}, "uninteresting must be a whole number above 0, found 2.5"),
        ({"distill__args": {"scale": -1.0}}, "scale must be a number above 0, found -1.0"),
        ({"distill__args": {"scales": 1.0}}, "distill.args.scales is no setting"),
        ({"distill__method": "cd", "distill__args": {"guided": "both"}}, "guided must be teacher or student"),
        ({"distill__method": "top_discrepancy", "distill__args": {"side": "both"}}, "side must be over or under"),
        ({"distill__method": "top_discrepancy", "distill__side": "under"}, "distill.side is set"),
    ],
)  # fmt: skip
def test_what_is_refused(parts, values, words):
    with pytest.raises(UserError, match=re.escape(words)):
        make_method(config(**({"distill__method": "rrd"} | values)).distill)


def test_who_may_learn_in_a_loop_by_hand(world):
    with pytest.raises(ValueError, match=r"learners: expected \['student'\] with RelaxedRankingDistillation"):
        Distiller(SMALL["rrd"], world[2], N_ITEMS)
