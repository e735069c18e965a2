"""Random arguments, good and bad, for every operator on every backend: an exact answer or a clear error, and inputs left alone.

An example is one `Case` of plain values, and its repr all that it takes to run it again: `python tests/test_fuzz.py "test_rank
Case(...)"`. `make test` takes the same few examples each time; `make fuzz` takes many new ones in a process that may crash.
"""

import dataclasses
import faulthandler
import os
import re
import sys
import tempfile
from pathlib import Path

import fuzz_data as data
import numpy as np
import oracle
import pytest
import torch
from chosen import BACKENDS
from draws import numbered
from fuzz_data import Case, Numbers
from hypothesis import HealthCheck, given, settings
from made import Made, WithListed, WithTake

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import blocks, cpu, reference, streamed

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))  # 0: a short run, the same every time
LAST = os.environ.get("FUZZ_LAST")  # a file that tells of the example under way, for the one who finds the process dead
HANG = 120  # seconds
NAMED = re.compile(
    r"^(number of |backend=)?[a-z_][\w.]*(: (ids|grads))?: expected .*(got|a row)|^alpha, eps: expected", re.S
)
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def fuzz(check):
    """A test of `check` on many cases."""

    def test(case: Case) -> None:
        if LAST:
            Path(LAST).write_text(f"{check.__name__} {case!r}\n")
            faulthandler.dump_traceback_later(HANG, exit=True)
        check(case)
        faulthandler.cancel_dump_traceback_later()

    test.__name__ = test.__qualname__ = check.__name__
    test.__doc__ = check.__doc__
    count = {"max_examples": EXAMPLES} if EXAMPLES else {"max_examples": 300, "derandomize": True}
    return settings(**count, **QUIET)(given(case=data.cases())(test))


def outcome(run, *tensors):
    """What a backend answers, or the message of its error; anything but the documented errors is a failure."""
    before = [data.memory(t) for t in tensors]
    try:
        answer = run()
    except (ValueError, TypeError, bd.BackendError) as error:
        answer = str(error)
    if isinstance(answer, str):
        assert NAMED.match(answer), f"an error that names no argument: {answer}"
    for t, bits in zip(tensors, before, strict=True):
        assert torch.equal(data.memory(t), bits), "an input was written to"
    return answer


def present() -> list[str]:
    return [name for name in BACKENDS if backends.missing(name) is None]


def everywhere(case: Case, run, *tensors) -> list:
    """The outcome in each backend, with the case's tiles."""
    old = cpu.TILE, reference.TILE_ELEMENTS, blocks.ELEMENTS
    cpu.TILE, reference.TILE_ELEMENTS = case.tile, max(40 * case.tile or 1 << 18, case.b * case.n // 50)
    blocks.ELEMENTS = max(40 * case.tile or 1 << 18, case.b * case.n // 5)
    try:
        return [outcome(lambda name=name: run(name), *tensors) for name in present()]
    finally:
        cpu.TILE, reference.TILE_ELEMENTS, blocks.ELEMENTS = old


def refused(outcomes: list, why: str) -> None:
    for o in outcomes:
        assert isinstance(o, str), f"accepted, though {why}"


def same(outcomes: list, want: np.ndarray) -> None:
    for o in outcomes:
        assert isinstance(o, torch.Tensor), o
        np.testing.assert_array_equal(o.numpy(), want)


@fuzz
def test_score(case):
    f, ids = data.factors(case), data.ids(case)
    got = everywhere(case, lambda name: bd.score(f, ids, backend=name), *data.given(f, ids))
    if f.user_factors.dtype == torch.float64 and not data.bad_ids(ids, case.b, case.n):
        return scores_in_float64(f, ids, dict(zip(present(), got, strict=True)))
    if why := data.bad_factors(f) or data.bad_ids(ids, case.b, case.n):
        return refused(got, why)
    want = np.take_along_axis(data.dense(f), ids.numpy(), 1)
    if np.isnan(want).any():
        return refused(got, "a score is NaN")
    same([o if isinstance(o, str) else o.view(torch.int32) for o in got], want.view(np.int32))  # the sign of 0 too


def scores_in_float64(f, ids, got):
    """The reference alone has them."""
    found = got.pop("reference", None)
    refused(list(got.values()), "does not take; the reference does")
    if found is None:  # it is not among the backends of this run
        return
    users, items, bias = (None if t is None else t.resolve_neg().numpy() for t in f)
    with np.errstate(all="ignore"):
        want = np.take_along_axis(users @ items.T + (0 if bias is None else bias), ids.numpy(), 1)
        size = np.abs(users) @ np.abs(items).T
    if np.isnan(want).any():
        return refused([found], "a score is NaN")
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-12, atol=1e-12 * (1 + size.max(initial=0)))


@fuzz
def test_rank(case):
    f, ids, seen = data.factors(case), data.ids(case), data.seen(case)
    got = everywhere(case, lambda name: bd.rank(f, ids, seen, backend=name), *data.given(f, ids, seen))
    if why := data.bad_factors(f) or data.bad_ids(ids, case.b, case.n) or data.bad_seen(seen, case.b, case.n):
        return refused(got, why)
    scores = data.dense(f)
    if np.isnan(scores).any():
        return refused(got, "a score is NaN")
    same(got, np.take_along_axis(data.ranks(scores, seen), ids.numpy(), 1))


def counts(scores, thresholds, ties, seen, offset):
    """Count item by item in integers of any size."""
    b, n = scores.shape
    items = np.arange(n) + offset
    out = np.zeros(ties.shape, np.int64)
    for row in range(b):
        unseen = ~np.isin(items, oracle.seen_row(seen, row))
        for j, (t, tie) in enumerate(zip(thresholds[row], ties[row], strict=True)):
            out[row, j] = (unseen & ((scores[row] > t) | ((scores[row] == t) & (items < tie)))).sum()
    return out


def check_count(case, run, scores, bad, *tensors):
    """`scores` is called where the arguments are good."""
    thresholds, ties, seen, offset = data.thresholds(case), data.ties(case), data.seen(case), Numbers(case).offset()
    got = everywhere(case, lambda name: run(thresholds, ties, seen, offset, name), *tensors, thresholds, ties)
    if why := bad or data.bad_seen(seen, case.b, 2**31) or (offset not in range(2**31 - case.n + 1) and "the offset"):
        return refused(got, why)
    if thresholds.isnan().any() or np.isnan(s := scores()).any():
        return refused(got, "something is NaN")
    same(got, counts(s, thresholds.resolve_neg().numpy(), ties.numpy(), seen, offset))


@fuzz
def test_count_above(case):
    f = data.factors(case)
    check_count(
        case,
        lambda t, ties, seen, offset, name: bd.count_above(f, t, ties, seen, offset, backend=name),
        lambda: data.dense(f),
        data.bad_factors(f),
        *data.given(f),
    )


@fuzz
def test_count_above_block(case):
    block = data.floats(case, 7, case.b, case.n, dtype="float32")
    check_count(
        case,
        lambda t, ties, seen, offset, name: bd.count_above_block(block, t, ties, seen, offset, backend=name),
        lambda: block.resolve_neg().numpy(),
        None,
        block,
    )


@fuzz
def test_topk(case):
    f, seen, k = data.factors(case), data.seen(case), Numbers(case).topk()
    got = everywhere(case, lambda name: bd.topk(f, k, seen, backend=name), *data.given(f, seen))
    bad_k = k not in range(1, case.n + 1) and "k"
    if why := data.bad_factors(f) or bad_k or data.bad_seen(seen, case.b, case.n):
        return refused(got, why)
    scores = data.dense(f)
    if np.isnan(scores).any():
        return refused(got, "a score is NaN")
    ranks = data.ranks(scores, seen)
    check_best(got, scores, ranks, seen, k)


def check_best(got, scores, ranks, seen, k):
    for o in got:
        assert not isinstance(o, str), o
        for row in range(len(scores)):
            unseen = np.setdiff1d(np.arange(scores.shape[1]), oracle.seen_row(seen, row))
            best = unseen[np.argsort(ranks[row, unseen])][:k]
            missing = k - len(best)
            assert o.ids[row].tolist() == [*best, *[-1] * missing]
            assert o.scores[row].tolist() == [*scores[row, best], *[-np.inf] * missing]


@fuzz
def test_scorers(case):
    """rank, topk and sample on scores that are no `Factors`."""
    scores, ids, seen, number = (
        data.floats(case, 7, case.b, case.n, dtype="float32"),
        data.ids(case),
        data.seen(case),
        Numbers(case),
    )
    one, two = (case.rng(21).permutation([0, 1, 2, 3])[:2]).tolist()
    sorts = bd.Scores, Made, WithTake, WithListed
    scorer, other = sorts[one](scores), sorts[two](scores.flip(1))
    given = data.given(bd.Factors(scores, scores), ids, seen)
    ranked = everywhere(case, lambda name: bd.rank(scorer, ids, seen, backend=name), *given)
    bad, dense = data.bad_seen(seen, case.b, case.n), scores.resolve_neg().numpy()
    nan = np.isnan(dense).any() and "a score is NaN"
    if why := bad or nan or data.bad_ids(ids, case.b, case.n):
        refused(ranked, why)
    else:
        same(ranked, np.take_along_axis(data.ranks(dense, seen), ids.numpy(), 1))
    k = number.topk()
    best = everywhere(case, lambda name: bd.topk(scorer, k, seen, backend=name), *given)
    if why := bad or nan or (k not in range(1, case.n + 1) and "k"):
        refused(best, why)
    else:
        check_best(best, dense, data.ranks(dense, seen), seen, k)
    settings = {"user_ids": torch.arange(case.b), "step": 3, "independent_directions": bool(case.seed % 2)}
    drawn = everywhere(case, lambda name: bd.sample(scorer, other, 5, seen, **settings, backend=name), *given)
    if bad or case.n < 1:
        return refused(drawn, bad or "N")
    alive = [case.n > len(oracle.seen_row(seen, row)) for row in range(case.b)]
    if np.isnan(dense[alive]).any():
        return refused(drawn, "a score is NaN")
    plain = bd.sample(bd.Scores(scores), bd.Scores(scores.flip(1)), 5, seen, **settings)
    for o in drawn:
        for a, b in zip(o, plain, strict=True):
            assert torch.equal(a.ids, b.ids)
            for row in range(case.b):
                assert not np.isin(a.ids[row][a.mask[row]], oracle.seen_row(seen, row)).any()
    return None


@fuzz
def test_sample(case):
    t, s, seen, number = data.factors(case), data.factors(case, student=True), data.seen(case), Numbers(case)
    users, k, seed, step, weight = data.user_ids(case), number.draws(), number.seed(), number.step(), number.weight()
    bad_weight = isinstance(weight, str) and "a weight was refused"
    if bad_weight:
        assert NAMED.match(weight)
        return None
    settings = {"to_student": weight, "to_teacher": weight, "seed": seed, "step": step, "user_ids": users}
    occurrence = data.occurrences(case)
    settings |= {"occurrence": occurrence, "independent_directions": bool(case.rng(19).integers(2))}  # type: ignore[dict-item]
    given = data.given(t, s, seen, users, occurrence)
    got = everywhere(case, lambda name: bd.sample(t, s, k, seen, **settings, backend=name), *given)
    bad = data.bad_factors(t) or data.bad_factors(s) or data.bad_seen(seen, case.b, case.n) or (case.n < 1 and "N")
    bad = bad or data.bad_ids(users[:, None], case.b, 2**32) or (k not in range(1, 2**31) and "k")
    bad = bad or (occurrence is not None and data.bad_ids(occurrence[:, None], case.b, 2**24))
    bad = bad or (step not in range(2**32) and "step") or (seed not in range(-(2**63), 2**63) and "seed")
    if bad:
        return refused(got, bad)
    scores = data.dense(t), data.dense(s)
    alive = [case.n > len(oracle.seen_row(seen, row)) for row in range(case.b)]
    if any(np.isnan(x[alive]).any() for x in scores):
        return refused(got, "a score is NaN")
    for o in got:
        assert not isinstance(o, str), o
        for a, b in zip(o, got[0], strict=True):
            assert torch.equal(a.ids, b.ids)
        check_draws(o, weight, [data.ranks(x, seen) for x in scores], seen, k)
    some = everywhere(
        case, lambda name: bd.sample(t, s, k, seen, **settings, subset=max(1, case.n // 2), backend=name), *given
    )
    for o in some:
        for a, b in zip(o, some[0], strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.mask, a.ids >= 0)
            for row in range(case.b):
                assert not np.isin(a.ids[row][a.mask[row]], oracle.seen_row(seen, row)).any()
    return None


def check_draws(samples, weight, ranks, seen, k):
    for draws, (guide, learner) in ((samples.to_student, ranks), (samples.to_teacher, ranks[::-1])):
        assert draws.ids.shape[1] == k
        assert torch.equal(draws.mask, draws.ids >= 0)
        for row, ids in enumerate(draws.ids.numpy()):
            unseen = np.ones(guide.shape[1], bool)
            unseen[oracle.seen_row(seen, row)] = False
            if not unseen.any():
                assert (ids == -1).all()
                continue
            side = "under" if weight.flipped else "over"
            p = oracle.probabilities(weight.kind, weight.parameter(len(unseen)), side, guide[row], learner[row], unseen)
            assert (p[ids] > 0).all() if p.sum() > 0 else (ids == -1).all()
            assert (ids >= 0).all() or p.sum() == 0


@fuzz
def test_distill_loss(case):
    """Against long doubles, in every backend; what is masked out has gradient 0, NaN or not."""
    number, shape = Numbers(case), data.shape(case)
    z, g = (data.floats(case, i, *shape, dtype=name) for i, name in enumerate(number.loss_dtypes()))
    mask, taus, kind = data.mask(case, shape), (number.tau(0), number.tau(1)), number.distill_kind()
    z.requires_grad_()
    given = z, g, *([] if mask is None else [mask])
    got = everywhere(case, lambda name: bd.distill_loss(z, g, *taus, mask, kind=kind, backend=name), *given)
    tiny, most = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    if not all(tiny <= tau <= most for tau in taus) or not data.takes(kind, shape):
        return refused(got, "a temperature or a kind")
    for name, loss in zip(present(), got, strict=True):
        if z.dtype == torch.float64 and name != "reference":
            refused([loss], "does not take; the reference does")
        elif kind == "bce":
            data.check_distill(loss, z, g, *taus, mask)
        else:
            data.check_listwise(loss, z, g, *taus, mask, case.kind in ("exact", "ties", "normal"))
    return None


@fuzz
def test_softmax_loss(case):
    """Against float64, in every backend: all take the same products."""
    f, rows, positives = (
        data.factors(case),
        *(data.some_ids(case, 40 + i, n, case.c) for i, n in enumerate((case.b, case.n))),
    )
    dtype, given = f.user_factors.dtype, data.given(f, rows, positives)
    got = everywhere(case, lambda name: bd.softmax_loss(f, rows, positives, backend=name), *given)
    if dtype not in (torch.float32, torch.float64):
        return refused(got, f"the factors are {dtype}")
    if why := data.bad_ids(rows, case.b, case.b) or data.bad_ids(positives, case.b, case.n):
        return refused(got, why)
    for name, loss in zip(present(), got, strict=True):
        if dtype == torch.float64 and name != "reference":
            refused([loss], "does not take; the reference does")
        elif case.kind in ("exact", "ties", "normal"):
            want, size = data.softmax_oracle(f, rows, positives)
            assert abs(loss.item() - want) <= (1e-12 if dtype == torch.float64 else 2e-6) * (1 + size)
        elif isinstance(loss, str):
            assert loss.startswith("losses: expected finite numbers"), loss
        else:
            assert all(t.isfinite().all() for t in f if t is not None)
    return None


@fuzz
def test_fused_loss(case):
    """Against float64 sums over the listed ids, and the gradient against finite sums of the same."""
    step = data.step(case)
    leaves = [t for t in (step.user_table, step.item_table, step.item_bias) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point())
    got = outcome(lambda: bd.fused_loss(**step._asdict()), *data.given(step))
    if why := data.bad_step(step):
        return refused([got], why)
    if isinstance(got, str):
        assert got.startswith("losses: expected finite numbers") and case.kind not in ("exact", "ties", "normal"), got
        return None
    assert got.loss.isfinite() or abs(step.distill_weight) > 1e30
    got.loss.backward()
    assert all(leaf.grad.is_sparse == step.sparse and leaf.grad.shape == leaf.shape for leaf in leaves)
    if case.kind in ("exact", "ties", "normal"):
        want, gradients = data.step_oracle(step)
        tolerance = (
            {"rtol": 1e-9, "atol": 1e-9} if step.user_table.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        )
        torch.testing.assert_close(got.loss.double(), want, **tolerance)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            torch.testing.assert_close(leaf.grad.to_dense().double(), gradient, **tolerance)
    return None


@fuzz
def test_mapped(case):
    """Item tables on disk: every operator answers as for the same tables in memory, an error where that is one."""
    t, s, seen, number = data.factors(case), data.factors(case, student=True), data.seen(case), Numbers(case)
    if t.item_factors.dtype not in (torch.float32, torch.float16):
        return  # .npy has no bfloat16, and open_memmap no other dtypes
    ids, ties, thresholds = data.ids(case), data.ties(case), data.thresholds(case)
    k, draws = number.topk(), number.draws()
    calls = (
        lambda t, s: bd.score(t, ids),
        lambda t, s: bd.rank(t, ids, seen),
        lambda t, s: bd.count_above(t, thresholds, ties, seen),
        lambda t, s: torch.cat([part.double() for part in bd.topk(t, k, seen)]),
        lambda t, s: torch.cat([each.ids for each in bd.sample(t, s, draws, seen, **numbered(t, seed=3))]),
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "SLICE_BYTES", max(1, case.tile * 8))
        mapped = []
        for name, f in (("t", t), ("s", s)):
            np.save(f"{folder}/{name}.npy", np.ascontiguousarray(f.item_factors.resolve_neg().numpy()))
            mapped.append(f._replace(item_factors=bd.open_memmap(f"{folder}/{name}.npy")))
        for call in calls:
            want, got = outcome(lambda c=call: c(t, s)), outcome(lambda c=call: c(*mapped))
            assert isinstance(want, str) == isinstance(got, str), (want, got)
            assert isinstance(got, str) or torch.equal(got, want)


@fuzz
def test_apply_rows(case):
    """Against the formulas in float64, row by row; other rows, and everything after an error, stay as they were."""
    step, number = data.step(case), Numbers(case)
    kind = number.one(40, (bd.SGD, bd.Adagrad, bd.SparseAdam))
    tables = [t for t in (step.user_table, step.item_table, step.item_bias) if t is not None]
    optimizer = outcome(lambda: kind(step[:3], lr=0.5, weight_decay=0.25))
    if isinstance(optimizer, str):
        return
    rows = {}
    for salt, (name, table) in enumerate(optimizer.tables().items()):
        if number.one(41 + salt, (True, True, False)):
            ids = data.some_ids(case, 50 + salt, len(table), case.c if len(table) else 0)
            rows[name] = ids, data.floats(case, 60 + salt, len(ids), *table.shape[1:], dtype=str(table.dtype)[6:])
    before = [t.clone() for t in (*tables, *optimizer.row_state())]
    error = outcome(lambda: bd.sparse_step(optimizer, **rows), *data.given(*rows.values()))
    after = [*tables, *optimizer.row_state()]
    if why := next(
        (why for n, (ids, _) in rows.items() if (why := data.bad_ids(ids, 0, len(optimizer.tables()[n])))), ""
    ):
        assert isinstance(error, str) and optimizer.step_count == 0, f"accepted, though {why}"
        assert all(map(same_bits, after, before))
        return
    assert error is None and optimizer.step_count == 1, error
    touched = [rows[n][0].unique() if n in rows else torch.empty(0, dtype=torch.int64) for n in optimizer.tables()]
    each = len(optimizer.names)
    for at, name in enumerate(optimizer.tables()):
        places = at, *range(len(tables) + at * each, len(tables) + (at + 1) * each)
        untouched = torch.ones(len(tables[at]), dtype=torch.bool)
        untouched[touched[at]] = False
        assert all(same_bits(after[i][untouched], before[i][untouched]) for i in places)
        if name in rows and case.kind in ("exact", "ties", "normal"):
            want = updated(optimizer, before[at].double(), *rows[name])
            torch.testing.assert_close(tables[at].double(), want, rtol=1e-4, atol=1e-5)


def same_bits(a, b):
    whole = {4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.resolve_neg().contiguous().view(whole), b.resolve_neg().contiguous().view(whole))


def updated(optimizer, table, ids, grads):
    """After the first step, in float64: state was 0, and Adam's corrections make of its moments g and g^2."""
    group = optimizer.param_groups[0]
    for row in ids.unique().tolist():
        g = grads[ids == row].double().sum(0) + group["weight_decay"] * table[row]
        if optimizer.kind == "adagrad":
            g = g / (g.abs() + group["eps"])
        if optimizer.kind == "adam":
            scale = (1 - group["betas"][1]) ** 0.5  # eps is added to the root before it is corrected
            g = g * scale / (g.abs() * scale + group["eps"])
        table[row] -= group["lr"] * g
    return table


def _off_by_one(counts, scores, *rest):
    return counts(scores, *rest) + (scores.shape[1] > 4)


def _careless(counts, scores, *rest):
    out = counts(scores, *rest)
    scores.add_(1)
    return out


@pytest.mark.parametrize("fault", [_off_by_one, _careless])
def test_planted_faults_are_found(monkeypatch, fault):
    """A wrong count, and a kernel that writes to what it was given."""
    honest = reference.count_above_block
    broken = reference.STEPS._replace(count_above_block=lambda *a: fault(honest, *a))
    monkeypatch.setattr("bdkernels.ops.rank.steps", lambda *_, **__: broken)
    with pytest.raises(AssertionError, match="Arrays are not equal|an input was written to"):
        test_count_above_block()


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Case)])
def test_cases_are_what_their_repr_says(field):
    """The repr that a failure prints is the example: Python reads it back."""
    example = Case(b=1, n=2, d=3, c=4)
    assert getattr(eval(repr(example)), field) == getattr(example, field)


if __name__ == "__main__":
    name, example = sys.argv[1].split(" ", 1)
    globals()[name].hypothesis.inner_test(eval(example))
