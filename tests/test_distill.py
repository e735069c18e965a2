"""Bidirectional in a Distiller: what is drawn for a batch, and when the pool is drawn anew."""

import itertools

import pytest
import torch
from bidistill import MF, Config, generate, split
from bidistill.distill import Distiller, make_weight
from bidistill.distill import distiller as distilling
from bidistill.distributed.partition import Partition
from bidistill.evaluation.ranks import seen_items

import bdkernels


@pytest.fixture(scope="module")
def parts():
    interactions, _, _ = generate(60, 80, 1200, dim=4, seed=1)
    return split(interactions, "leave_one", seed=1)


def config(**overrides):
    return Config().with_overrides({name.replace("__", "."): value for name, value in overrides.items()})


def made(settings, parts, seed=4):
    """The distiller of a run."""
    seen = seen_items(parts, "val")
    return Distiller.from_config(settings.distill, seen, seed, Partition.whole(parts.n_users, parts.n_items))


@pytest.fixture
def models(parts):
    return MF(parts.n_users, parts.n_items, 6, seed=1), MF(parts.n_users, parts.n_items, 2, seed=2)


def test_repeated_users_get_draws_of_their_own(parts, models):
    distiller, seen = made(config(distill__samples=3), parts), seen_items(parts, "val")
    users = torch.tensor([5, 2, 5, 5, 9])
    drawn = distiller.draw(*models, users, step=7, generator=torch.Generator())
    assert all(draws.ids.shape == draws.mask.shape == (5, 3) for draws in drawn.values())
    wanted = bdkernels.sample(
        models[0].factors(users),
        models[1].factors(users),
        3,
        seen.rows(users),
        to_student=bdkernels.Tanh(),
        to_teacher=bdkernels.Exp(),
        seed=4,
        step=7,
        user_ids=users,
        occurrence=torch.tensor([0, 0, 1, 2, 0]),
    )
    for name, draws in (("student", wanted.to_student), ("teacher", wanted.to_teacher)):
        assert torch.equal(drawn[name].ids, draws.ids)
        assert len({tuple(row) for row in draws.ids[users == 5].tolist()}) == 3
    other = distiller.draw(*models, users, step=8, generator=torch.Generator())
    assert not torch.equal(drawn["student"].ids, other["student"].ids)
    for user, row in zip(users.tolist(), torch.cat([each.ids for each in drawn.values()], 1).tolist(), strict=True):
        assert not set(row) & set(parts.train_items[parts.train_users == user].tolist())


def test_the_pool_is_drawn_anew_when_due(parts, models, monkeypatch):
    distiller = made(config(distill__resample_every=3, distill__pool=4), parts)
    pools = []
    monkeypatch.setattr(distilling, "CHUNK", 17)
    for step in range(14):
        distiller.resample(*models, step, 2)
        pools.append(distiller.pool.clone())
        assert distiller.pool.shape == (parts.n_users, 8)
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(pools)]
    assert [at + 1 for at, change in enumerate(changes) if change] == [6, 12]
    users = torch.arange(parts.n_users)
    drawn = distiller.draw(*models, users, 0, torch.Generator().manual_seed(1))
    for name, pool in (("student", pools[-1][:, :4]), ("teacher", pools[-1][:, 4:])):
        assert (drawn[name].ids == pool).any(1).all()
    fresh = made(config(distill__resample_every=3, distill__pool=4), parts)
    monkeypatch.undo()
    fresh.resample(*models, 12, 2)  # in one chunk, the same draws
    assert torch.equal(fresh.pool, pools[-1])


@pytest.mark.parametrize(("chunk", "every", "steps"), [(7, 2, 5), (60, 1, 3), (1, 1, 200), (11, 3, 1)])
def test_gradual_resampling(parts, models, monkeypatch, chunk, every, steps):
    """Each user's turn comes once in a cycle, never far more users in one step than in another, and the draws are those of
    resampling at once: the models do not change here."""
    monkeypatch.setattr(distilling, "CHUNK", chunk)
    at_once, gradual = (
        made(config(distill__resample_every=every, distill__pool=4, distill__resample=resample), parts)
        for resample in ("at_once", "gradual")
    )
    turns, cycle = [], every * steps
    original = gradual.method.draw
    monkeypatch.setattr(gradual.method, "draw", lambda *given: (turns.append(given[2].users), original(*given))[1])
    sizes = []
    for step in range(2 * cycle):
        before = len(turns)
        gradual.resample(*models, step, steps)
        sizes.append(sum(len(users) for users in turns[before:]))
        at_once.resample(*models, step, steps)
        done = sum(sizes[step // cycle * cycle :])
        assert torch.equal(gradual.pool[:done], at_once.pool[:done])
        if step < cycle:
            assert (gradual.pool[done:] == -1).all()
            drawn = gradual.draw(*models, torch.arange(parts.n_users), step, torch.Generator())
            assert not any(draws.mask[done:].any() for draws in drawn.values())
    assert torch.cat(turns).tolist() == 2 * list(range(parts.n_users))
    assert max(sizes) <= chunk * -(-parts.n_users // (chunk * cycle))


def test_a_direction_that_is_off(parts, models):
    for off, on in (("teacher", "student"), ("student", "teacher")):
        settings = config(**{f"distill__lambda_{off}": 0.0})
        distiller = made(settings, parts, seed=0)
        drawn = distiller.draw(*models, torch.arange(4), 0, torch.Generator())
        assert {name: draws.ids.shape for name, draws in drawn.items()} == {on: (4, 1)}


def test_weights_from_settings():
    def weight(**options):
        settings = config().with_overrides({f"distill.to_student.{k}": v for k, v in options.items()})
        return make_weight(settings.distill.to_student, "under")

    assert weight() == bdkernels.Tanh(side="under")
    assert weight(alpha=3) == bdkernels.Tanh(3.0, side="under")
    assert weight(kind="exp", eps=0.5) == bdkernels.Exp(eps=0.5, side="under")
    assert weight(kind="linear") == bdkernels.Linear(side="under")
    assert weight(kind="uniform") == bdkernels.Uniform()
    assert weight(kind="rank_only", mu=4) == bdkernels.RankOnly(4.0)


def test_directions_with_uniform_weights_draw_the_same_items_unless_they_are_independent(parts, models):
    uniform = {f"distill.to_{name}.kind": "uniform" for name in ("student", "teacher")}
    settings = config(distill__resample_every=0, distill__samples=4).with_overrides(uniform)
    users, same = torch.arange(parts.n_users), []
    for independent in (False, True):
        options = settings.with_overrides({"distill.independent_directions": independent})
        drawn = made(options, parts).draw(*models, users, 0, torch.Generator())
        same.append((drawn["student"].ids == drawn["teacher"].ids).float().mean().item())
    assert same[0] == 1 and same[1] < 0.3
