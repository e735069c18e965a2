"""sample: what the draws depend on, and on what not. Their distribution is in test_sample_distribution.py."""

import numpy as np
import oracle
import pytest
import torch
from draws import numbered

import bdkernels as bd
from bdkernels.backends import cpu, reference
from bdkernels.sampling import sampler

WEIGHTS = [
    bd.Tanh(252.0),
    bd.Tanh(2.0, side="under"),
    bd.Exp(2.5),
    bd.Exp(2.5, side="under"),
    bd.Exp(60.0),  # peaked: ends in the full row
    bd.Linear(),
    bd.Linear(side="under"),
    bd.Uniform(),
    bd.RankOnly(mu=3.0),
]
IDS = [f"{w.kind}-{'under' if w.flipped else 'over'}-{w.parameter(1)}" for w in WEIGHTS]


def models(b: int, n: int, d: int = 5) -> tuple[bd.Factors, bd.Factors]:
    """A teacher and a student that agree in part."""
    users, items = torch.randn(b, d), torch.randn(n, d)
    student = bd.Factors(
        users[:, :2] + 0.3 * torch.randn(b, 2), items[:, :2] + 0.3 * torch.randn(n, 2), torch.randn(n) / 2
    )
    return bd.Factors(users, items, torch.randn(n) / 3), student


def some_seen(b: int, n: int, most: int = 30) -> bd.Seen:
    return oracle.random_seen(np.random.default_rng(1), b, n, most)


def draw(t, s, k, seen=None, weight=None, backward=None, **kwargs):
    out = bd.sample(t, s, k, seen, to_student=weight, to_teacher=backward or weight, **numbered(t) | kwargs)
    return torch.stack([out.to_student.ids, out.to_teacher.ids])


def test_philox_known_answers():
    """Vectors of the authors' own library, Random123."""
    vectors = [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for (c0, c1, c2, c3), key, want in vectors:
        words = reference.philox(key, torch.tensor([c0]), c1, torch.tensor([c2]), c3)
        assert " ".join(f"{int(w):08x}" for w in words) == want


def test_proposals_are_the_nth_unseen(backend):
    """Every proposal is unseen, the same from both backends, and every unseen item is proposed."""
    seen, users = some_seen(6, 40), torch.tensor([0, 3, 4, 5, 2**31, 2**32 - 1])
    steps = bd.backends.steps(torch.device("cpu"), backend)
    ids = steps.propose(-7, 5, users, 100, 4100, 40, seen)
    assert torch.equal(ids, reference.propose(-7, 5, users, 100, 4100, 40, seen))
    for row in range(6):
        unseen = np.setdiff1d(np.arange(40), oracle.seen_row(seen, row))
        assert set(ids[row].tolist()) == set(unseen.tolist())


@pytest.mark.parametrize("weight", WEIGHTS, ids=IDS)
@pytest.mark.parametrize("n", [2, 13, 331])
def test_support_is_exact(rng, backend, weight, n):
    """Only items with a positive weight are drawn; users without one get -1 and False."""
    b, k = 9, 40
    t, s = oracle.factors(rng, b, n, 2), oracle.factors(rng, b, n, 1, bias=False)
    seen = oracle.random_seen(rng, b, n, 30)
    out = bd.sample(t, s, k, seen, to_student=weight, to_teacher=weight, **numbered(t), backend=backend)
    rank_t, rank_s = oracle.ranks(t, seen), oracle.ranks(s, seen)
    for row in range(b):
        unseen = np.ones(n, bool)
        unseen[oracle.seen_row(seen, row)] = False
        side = "under" if weight.flipped else "over"
        for draws, guide, learner in ((out.to_student, rank_t, rank_s), (out.to_teacher, rank_s, rank_t)):
            p = oracle.probabilities(weight.kind, weight.parameter(n), side, guide[row], learner[row], unseen)
            ids, mask = draws.ids[row].numpy(), draws.mask[row].numpy()
            assert mask.all() == (p.sum() > 0)
            assert mask.any() == mask.all()
            assert (p[ids[mask]] > 0).all()
            assert (ids[~mask] == -1).all()


@pytest.mark.parametrize("weight", [bd.RankOnly(5e-324), bd.Exp(1.7e308), bd.Tanh(1e-300), bd.Tanh(1.7e308)])
def test_extreme_parameters(backend, weight):
    """Peaked beyond float64's range, a weight still has its best item; flat to its end, it still has its support."""
    t = bd.Factors(torch.ones(1, 1), torch.tensor([[3.0], [2], [1], [0]]))
    s = bd.Factors(torch.ones(1, 1), torch.tensor([[1.0], [0], [3], [2]]))  # gaps: -2, -2, 2, 2
    drawn = bd.sample(t, s, 64, to_student=weight, to_teacher=None, **numbered(t), backend=backend).to_student.ids
    assert set(drawn[0].tolist()) == ({0} if weight.kind == "rank_only" else {2, 3})


@pytest.mark.parametrize("weight", WEIGHTS, ids=IDS)
def test_draws_depend_on_seed_step_user_and_index_only(monkeypatch, backend, weight):
    b, n, k = 7, 151, 12
    t, s = models(b, n)
    seen, users = some_seen(b, n), torch.randperm(10_000)[:b]
    whole = draw(t, s, k, seen, weight, seed=11, step=3, user_ids=users, backend=backend)

    def rows(start, stop, k=k):
        part = torch.arange(start, stop)
        return draw(
            *(f._replace(user_factors=f.user_factors[part]) for f in (t, s)), k, seen.rows(part), weight,
            seed=11, step=3, user_ids=users[part], backend=backend,
        )  # fmt: skip

    assert torch.equal(torch.cat([rows(0, 1), rows(1, 5), rows(5, 7)], 1), whole)  # batch split
    assert torch.equal(rows(0, b, k=5), whole[:, :, :5])  # how many are asked
    more = rows(0, b, k=40)
    assert torch.equal(more[:, :, :k], whole)
    monkeypatch.setattr(sampler, "ROUND", 90)  # proposals in a round
    monkeypatch.setattr(sampler, "ROWS", 3)  # users in flight
    monkeypatch.setattr(sampler, "ROW_ELEMENTS", 1)  # users ranked fully at once
    monkeypatch.setattr(cpu, "TILE", 48)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4000)
    torch.set_num_threads(2)
    assert torch.equal(rows(0, b), whole)
    torch.set_num_threads(1)
    order = torch.randperm(b)
    shuffled = draw(
        *(f._replace(user_factors=f.user_factors[order]) for f in (t, s)), k, seen.rows(order), weight,
        seed=11, step=3, user_ids=users[order], backend=backend,
    )  # fmt: skip
    assert torch.equal(shuffled, whole[:, order])
    for other in ({"seed": 12, "step": 3}, {"seed": 11, "step": 4}):
        assert not torch.equal(draw(t, s, k, seen, weight, user_ids=users, backend=backend, **other), whole)


@pytest.mark.parametrize("weight", WEIGHTS, ids=IDS)
def test_reference_and_cpp_draw_the_same(weight):
    """On random values, whose scores are rounded."""
    if bd.backends.missing("cpu"):
        pytest.skip(f"backend cpu: {bd.backends.missing('cpu')}")
    t, s = models(21, 1500)
    seen = some_seen(21, 1500)
    one, two = (draw(t, s, 50, seen, weight, seed=-5, step=2**32 - 1, backend=name) for name in ("reference", "cpu"))
    assert torch.equal(one, two)


def test_a_direction_does_not_change_the_other(backend):
    t, s = models(8, 400)
    both = bd.sample(t, s, 12, to_student=bd.Exp(60.0), to_teacher=bd.Exp(2.5), **numbered(t), backend=backend)
    alone = bd.sample(t, s, 12, to_student=None, to_teacher=bd.Exp(2.5), **numbered(t), backend=backend)
    assert alone.student is None
    with pytest.raises(ValueError, match="to_student: expected draws, got none"):
        _ = alone.to_student
    assert torch.equal(alone.to_teacher.ids, both.to_teacher.ids)
    alone = bd.sample(t, s, 12, to_student=bd.Exp(60.0), to_teacher=None, **numbered(t), backend=backend)
    assert torch.equal(alone.to_student.ids, both.to_student.ids)
    neither = bd.sample(t, s, 12, to_student=None, to_teacher=None, **numbered(t), backend=backend)
    assert neither == bd.Samples(None, None)


def test_agreeing_models_have_nothing_to_teach(backend):
    """Equal ranks: tanh and linear draw nothing, exp draws uniformly, and nothing hangs."""
    t, _ = models(5, 300)
    out = bd.sample(t, t, 6, to_student=bd.Tanh(), to_teacher=bd.Exp(), **numbered(t), backend=backend)
    assert not out.to_student.mask.any()
    assert (out.to_student.ids == -1).all()
    assert out.to_teacher.mask.all()


def test_one_item_and_everything_seen(backend):
    one = bd.Factors(torch.randn(2, 3), torch.randn(1, 3))
    out = bd.sample(one, one, 4, to_student=bd.Linear(), to_teacher=bd.Uniform(), **numbered(one), backend=backend)
    assert not out.to_student.mask.any()
    assert (out.to_teacher.ids == 0).all()
    t, s = models(2, 9)
    out = bd.sample(
        t, s, 4, oracle.seen_of([range(9), range(8)]), to_teacher=bd.Uniform(), **numbered(t), backend=backend
    )
    assert not out.to_student.mask.any()
    assert out.to_teacher.ids.tolist() == [[-1] * 4, [8] * 4]


def test_no_users(backend):
    t, s = models(0, 9)
    out = bd.sample(t, s, 4, **numbered(t), backend=backend)
    assert out.to_student.ids.shape == out.to_teacher.mask.shape == (0, 4)


def test_eps_is_alpha_over_the_catalog(backend):
    t, s = models(3, 500)
    by_eps = draw(t, s, 8, None, bd.Tanh(eps=0.01), bd.Exp(eps=0.01), backend=backend)
    assert torch.equal(by_eps, draw(t, s, 8, None, bd.Tanh(5.0), bd.Exp(5.0), backend=backend))


def test_seed_and_step_may_be_tensors(backend):
    t, s = models(3, 40)
    for seed, step in ((11, 3), (-(2**63), 2**32 - 1)):
        numbers = {"seed": torch.tensor(seed), "step": torch.tensor(step)}
        for m in (None, 20):
            want = draw(t, s, 6, None, bd.Exp(2.5), seed=seed, step=step, subset=m, backend=backend)
            assert torch.equal(draw(t, s, 6, None, bd.Exp(2.5), **numbers, subset=m, backend=backend), want)
    for wrong, message in (
        ({"step": torch.tensor(2**32)}, r"step: expected a number in \[0, 4294967296\), got"),
        ({"step": torch.tensor(-1)}, r"step: expected a number in"),
        ({"step": torch.tensor([3])}, r"step: expected shape \[\], got \[1\]"),
        ({"seed": torch.tensor(3.0)}, r"seed: expected int64, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(t, s, 6, None, bd.Exp(2.5), **{"seed": 1, "step": 1} | wrong, backend=backend)


def test_same_users_draw_the_same_and_steps_are_unrelated(backend):
    t, s = models(1, 2000)
    t, s = t._replace(user_factors=t.user_factors.expand(2, -1)), s._replace(user_factors=s.user_factors.expand(2, -1))
    same = draw(t, s, 500, None, bd.Uniform(), user_ids=torch.tensor([7, 7]), backend=backend)
    assert torch.equal(same[:, 0], same[:, 1])
    other = draw(t, s, 500, None, bd.Uniform(), user_ids=torch.tensor([7, 8]), backend=backend)
    assert (other[:, 0] == other[:, 1]).float().mean() < 0.02


@pytest.mark.parametrize(
    "weight", [bd.Exp(2.5), bd.Tanh(252.0), bd.Exp(2.5, side="under")], ids=["exp", "tanh", "under"]
)
def test_a_misleading_catalog_changes_no_draw(weight):
    """The C++ backend guesses ranks from every so many-th item; here just those lie far above or below all others."""
    if (reason := bd.backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    b, n, k = 5, 5003, 32
    t, s = models(b, n)
    t.item_factors[::4] += 50 * torch.sign(t.user_factors.sum(0))
    s.item_bias[::4] -= 1e3
    seen = some_seen(b, n)
    drawn = [draw(t, s, k, seen, weight, backend=backend) for backend in ("cpu", "reference")]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("b", "n", "k"), [(3, 97, 60), (2, 2500, 200), (65, 1100, 40)])
@pytest.mark.parametrize("weight", WEIGHTS, ids=IDS)
def test_backends_draw_the_same(weight, b, n, k):
    """Rounds that are screened, and rounds that are not; more users than a block has."""
    if (reason := bd.backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    t, s = models(b, n)
    seen = some_seen(b, n)
    drawn = [draw(t, s, k, seen, weight, seed=5, backend=backend) for backend in ("cpu", "reference")]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("n", "k"), [(65, 300), (200, 40), (3000, 64)])
@pytest.mark.parametrize(
    "weights", [(bd.Tanh(252), bd.Exp(2.5)), (bd.Uniform(), bd.Exp(8.0))], ids=["tanh-exp", "uniform-exp"]
)
def test_backends_draw_the_same_where_one_direction_is_done_first(weights, n, k):
    """A second round, with many ties, of users whose easy direction has all of its draws from the first one."""
    if (reason := bd.backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    b, generator = 40, torch.Generator().manual_seed(0)
    rounded = [
        bd.Factors(*(torch.randn(*shape, generator=generator).round() for shape in ((b, 2), (n, 2), (n,))))
        for _ in range(2)
    ]
    ours, reference = (
        bd.sample(
            *rounded,
            k,
            None,
            to_student=weights[0],
            to_teacher=weights[1],
            **numbered(rounded[0], seed=3),
            backend=backend,
        )
        for backend in ("cpu", "reference")
    )
    assert torch.equal(ours.to_student.ids, reference.to_student.ids)
    assert torch.equal(ours.to_teacher.ids, reference.to_teacher.ids)
