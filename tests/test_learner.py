"""Updates: what the eager one minimises, and that the fused one is the same formula wherever it is chosen."""

import pytest
import torch
from bidistill import MF, Config
from bidistill.config import ModelConfig
from bidistill.distributed.partition import Partition
from bidistill.training.batches import Objective
from bidistill.training.learner import Learner
from bidistill.training.strategy import Whole
from bidistill.training.types import Terms
from bidistill.training.updates import EagerUpdate, FusedUpdate

from bdkernels import Seen

N_USERS, N_ITEMS, STEPS = 30, 50, 6
SEEN = Seen.from_pairs(torch.arange(N_USERS).repeat(2), torch.arange(2 * N_USERS) % N_ITEMS, N_USERS)
BASE = {"teacher.dim": 6, "student.dim": 3, "distill.resample_every": 0, "distill.samples": 2, "distill.tau_guide": 2.0}


def config(**overrides):
    return Config().with_overrides(BASE | {name.replace("__", "."): value for name, value in overrides.items()})


def both(settings, seen=SEEN, fuse=None):
    """An objective and two learners; `fuse` overrides what the objective allows."""
    models = {
        name: MF(seen.indptr.shape[0] - 1, N_ITEMS, settings[name].dim, seed=seed, sparse="sparse" in settings[name].optimizer)
        for seed, name in enumerate(("teacher", "student"))
    }  # fmt: skip
    whole, strategy = Partition.whole(seen.indptr.shape[0] - 1, N_ITEMS), Whole()
    objective = Objective(settings, models, seen, strategy, whole)
    allowed = objective.fuse if fuse is None else fuse
    return objective, {
        name: Learner(model, settings[name], objective.terms(name), strategy, fuse=allowed)
        for name, model in models.items()
    }


def train(settings, fuse):
    """Losses of some joint steps, and the parameters after them."""
    objective, learners = both(settings, fuse=fuse)
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        users = torch.randint(N_USERS, (40,), generator=generator)
        batches = objective.batches(
            ("teacher", "student"), users, SEEN.indices[SEEN.indptr[users]], step, generator, joint=True
        )
        losses.append({name: learners[name].step(batch) for name, batch in batches.items()})
    return learners, losses


@pytest.mark.parametrize("off", ["nothing", "distill.lambda_teacher", "distill.lambda_student"])
@pytest.mark.parametrize(("cf", "kind"), [("bce", "bce"), ("bpr", "bce"), ("softmax", "listwise")])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "sparse_adam"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_fused_steps_are_the_eager_ones(optimizer, cf, kind, off, decay):
    settings = config(train__loss=cf, distill__loss=kind, teacher__optimizer=optimizer, student__optimizer=optimizer)
    settings = settings.with_overrides({"teacher.weight_decay": decay, "student.weight_decay": 2 * decay})
    settings = settings.with_overrides({} if off == "nothing" else {off: 0.0})
    fused, losses = train(settings, fuse=True)
    eager, wanted = train(settings, fuse=False)
    for name in ("teacher", "student"):
        assert isinstance(fused[name].update, FusedUpdate)
        assert isinstance(eager[name].update, EagerUpdate)
        for found, expected in zip(losses, wanted, strict=True):
            assert found[name].keys() == expected[name].keys()
            assert ("distill" in found[name]) == (off != f"distill.lambda_{name}")
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        # Adam makes a full step of a gradient that is rounding alone, as where a bpr pair is one item twice.
        torch.testing.assert_close(fused[name].model.state_dict(), eager[name].model.state_dict(), rtol=1e-4, atol=2e-4)


def test_one_fused_beside_one_eager_model():
    settings = config(teacher__optimizer="adam", student__optimizer="sparse_adam")
    mixed, losses = train(settings, fuse=True)
    assert [type(each.update) for each in mixed.values()] == [EagerUpdate, FusedUpdate]
    _, wanted = train(settings, fuse=False)
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-6)


class Scaled(MF):
    """Another score, so no tables."""

    def score(self, users, items):
        return 2 * super().score(users, items)

    def tables(self):
        return None


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"optimizer": "sparse_adam"}, True),
        ({"optimizer": "sgd"}, True),
        ({"optimizer": "adagrad"}, True),
        ({"optimizer": "adagrad", "weight_decay": 0.1, "optimizer_args": {"eps": 1e-6}}, True),
        ({"optimizer": "sparse_adam", "weight_decay": 0.1, "optimizer_args": {"betas": [0.8, 0.9]}}, True),
        ({"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}}, False),
        ({"optimizer": "sgd", "clip_norm": 1.0}, False),
        ({"optimizer": "Adagrad"}, False),  # torch's own, whose weight decay is for all rows
        ({"optimizer": "adam"}, False),
    ],
)
def test_the_update_fits_the_optimizer(options, fused):
    terms = Terms("bce", "bce", 1.0, 1.0, 1.0)
    made = Learner(MF(3, 4, 2), ModelConfig(**options), terms, Whole(), fuse=True)
    assert isinstance(made.update, FusedUpdate if fused else EagerUpdate)
    assert isinstance(Learner(MF(3, 4, 2), made.config, terms, Whole(), fuse=False).update, EagerUpdate)
    assert isinstance(Learner(Scaled(3, 4, 2), made.config, terms, Whole(), fuse=True).update, EagerUpdate)
    assert isinstance(Learner(MF(3, 4, 2).double(), made.config, terms, Whole(), fuse=True).update, EagerUpdate)


def test_negatives_that_may_be_missing_are_left_to_the_eager_update():
    assert both(config())[0].fuse
    assert not both(config(distill__negatives_from_samples=True))[0].fuse
    full = Seen.from_pairs(torch.zeros(N_ITEMS, dtype=torch.int64), torch.arange(N_ITEMS), 2)
    assert not both(config(), full)[0].fuse


@pytest.mark.parametrize("fuse", [True, False])
def test_losses_skip_the_mask_and_leave_the_guide_alone(fuse):
    settings = config(teacher__optimizer="sgd", student__optimizer="sgd", distill__tau_learner=2.0)
    objective, learners = both(settings, fuse=fuse)
    users = torch.arange(6)
    batch = objective.batches(tuple(learners), users, users, 0, torch.Generator(), joint=True)["student"]
    mask = torch.ones_like(batch.distill.mask)
    mask[0] = False
    batch = batch._replace(distill=batch.distill._replace(mask=mask))
    student, guide = (learners[name].model for name in ("student", "teacher"))
    chance, target = (
        torch.sigmoid(model.score(users, batch.distill.ids).detach()[1:] / 2) for model in (student, guide)
    )
    before = [parameter.clone() for parameter in guide.parameters()]
    found = learners["student"].step(batch)["distill"]
    wanted = torch.nn.functional.binary_cross_entropy(chance, target)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(before, guide.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "sparse_adam", "adam"])
def test_a_learner_goes_on_from_its_state(optimizer):
    settings = config(teacher__optimizer=optimizer, student__optimizer=optimizer)
    undisturbed, _ = train(settings, fuse=True)
    learner = undisturbed["teacher"]
    tensors, numbers = learner.state()
    again = both(settings)[1]["teacher"]
    again.load_state({name: value.clone() for name, value in tensors.items()}, numbers)
    objective, _ = both(settings)
    users = torch.arange(8)
    batch = objective.batches(("teacher", "student"), users, users, 9, torch.Generator(), joint=True)["teacher"]
    losses = [each.step(batch) for each in (learner, again)]
    assert losses[0] == losses[1]
    pairs = zip(learner.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
