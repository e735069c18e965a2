"""A backend from outside the package: it is chosen, listed, held to what it says, and gives the bits of the reference."""

import pytest
import torch
from draws import numbered
from stages import STAGES, problem, same

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import Backend, Steps, choice
from bdkernels.tools import env_report, profile

USED = {
    "score": {"score"},
    "rank": {"score", "count_above"},
    "topk": {"topk"},
    "sample": {"score", "count_above", "propose", "accept"},
    "fused_step": {"fused_step"},
}


@pytest.fixture
def counted(outside):
    module = outside("counted_backend")
    module.CALLS.clear()
    return module


@pytest.mark.parametrize("name", USED)
def test_it_serves_by_its_name_with_the_same_bits(counted, monkeypatch, name):
    results = []
    for chosen in ("reference", "counted"):
        monkeypatch.setenv("BDKERNELS_BACKEND", chosen)
        results.append(STAGES[name](problem()))
    assert USED[name] <= set(counted.CALLS)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_argument_chooses_it(counted):
    p = problem()
    for call in (
        lambda **chosen: bd.score(p.teacher, p.ids, **chosen),
        lambda **chosen: bd.rank(p.teacher, p.ids, p.seen, **chosen),
        lambda **chosen: bd.topk(p.teacher, 9, p.seen, **chosen).ids,
        lambda **chosen: bd.sample(p.teacher, p.student, 9, p.seen, **numbered(p.teacher), **chosen).to_teacher.ids,
        lambda **chosen: (
            bd.fused_step(bd.SGD([t.clone() for t in p.tables]), *p.batch, p.draws, p.guide, **chosen).loss
        ),
    ):
        counted.CALLS.clear()
        assert torch.equal(call(backend="counted"), call(backend="reference"))
        assert counted.CALLS


def test_nothing_else_chooses_it(counted):
    STAGES["topk"](problem())
    assert not counted.CALLS


def test_it_can_be_the_default_of_a_device(counted):
    backends.register(Backend("first", counted.STAGES, default_on=("cpu",)))
    for stage in ("topk", "fused_step"):
        same(STAGES[stage], STAGES[stage](problem()), STAGES[stage](problem()))
        assert counted.CALLS[stage]


def test_it_is_listed(counted, capsys):
    assert "counted" in backends.names() and backends.missing("counted") is None
    assert "backend counted    ready" in env_report.report()
    with pytest.raises(
        bd.BackendError, match="backend: expected one of reference, cpu, triton, cuda, counted, scores_only,"
    ):
        bd.topk(problem().teacher, 1, backend="nope")
    with pytest.raises(SystemExit):
        profile.main(["rank", "--help"])
    assert "counted" in capsys.readouterr().out


def test_what_it_refuses(counted):
    f = problem().teacher
    half = bd.Factors(*(t.bfloat16() for t in f))
    for call, message in (
        (lambda: bd.topk(half, 1, backend="counted"), "backend=counted: expected float32 or float16, got bfloat16"),
        (lambda: backends.choose(torch.device("meta"), "counted"), "counted: expected tensors on the CPU, got meta"),
        (
            lambda: backends.choose(torch.device("cpu"), "counted", torch.float64),
            "counted: expected float32, got float64",
        ),
    ):
        with pytest.raises(bd.BackendError, match=message):
            call()


def test_a_stage_that_it_lacks(counted, monkeypatch):
    p = problem()
    assert torch.equal(
        bd.score(p.teacher, p.ids, backend="scores_only"), bd.score(p.teacher, p.ids, backend="reference")
    )
    lacks = "backend=scores_only: it has no {}, which this call needs; it has score: choose another backend"
    monkeypatch.setenv("BDKERNELS_BACKEND", "scores_only")
    for operator, stage in (
        ("rank", "count_above"),
        ("topk", "topk"),
        ("sample", "propose"),
        ("fused_step", "fused_step"),
    ):
        with pytest.raises(bd.BackendError, match=lacks.format(stage)):
            STAGES[operator](p)


def test_a_name_is_taken_once(counted):
    backends.register(choice.BACKENDS["counted"])
    with pytest.raises(ValueError, match="name: expected one that no backend has, got 'cpu'"):
        backends.register(Backend("cpu", Steps()))
    with pytest.raises(ValueError, match="name: expected a Python identifier, got 'a b'"):
        backends.register(Backend("a b", Steps()))


def test_one_that_cannot_be_had(counted, monkeypatch):
    backends.register(
        Backend("absent", Steps, default_on=("cpu",), load=lambda: "no driver", variables=("ABSENT_LIBRARY",))
    )
    assert "backend absent     no driver" in env_report.report()
    with pytest.raises(bd.BackendError, match="backend=absent: no driver"):
        bd.topk(problem().teacher, 1, backend="absent")
    bd.topk(problem().teacher, 1)
    monkeypatch.setenv("ABSENT_LIBRARY", "/there")
    monkeypatch.delenv("BDKERNELS_BACKEND", raising=False)
    with pytest.raises(bd.BackendError, match="ABSENT_LIBRARY=/there: the backend 'absent' is not there: no driver"):
        bd.topk(problem().teacher, 1)


def test_an_entry_point_of_another_package(counted, monkeypatch):
    class Point:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def load(self):
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    theirs = Backend("theirs", counted.STAGES)
    points = [Point("theirs", theirs), Point("broken", ImportError("no module"))]
    monkeypatch.setattr(choice, "entry_points", lambda group: points if group == "bdkernels.backends" else [])
    choice._find.cache_clear()
    monkeypatch.setenv("BDKERNELS_BACKEND", "theirs")
    bd.topk(problem().teacher, 1)
    assert counted.CALLS == {"topk": 1}
    with pytest.raises(bd.BackendError, match="backend=broken: its entry point cannot be loaded: no module"):
        bd.topk(problem().teacher, 1, backend="broken")
    choice._find.cache_clear()
