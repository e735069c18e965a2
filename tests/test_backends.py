"""Which backend runs: explicit choices are honoured or refused with the reason; the report tells what is there and what not."""

import os
import re
import subprocess
import sys

import pytest
import torch

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import choice, cpu

CPU = torch.device("cpu")


def run(*code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_best_is_chosen_and_explained(monkeypatch):
    monkeypatch.delenv("BDKERNELS_BACKEND", raising=False)
    assert backends.choose(CPU) == ("cpu" if backends.missing("cpu") is None else "reference")
    assert backends.choose(torch.device("meta")) == "reference"


def test_environment_then_argument(monkeypatch):
    monkeypatch.setenv("BDKERNELS_BACKEND", "reference")
    assert backends.choose(CPU) == "reference"
    if backends.missing("cpu") is None:
        assert backends.choose(CPU, "cpu") == "cpu"


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_absent_backends_say_why(monkeypatch, name):
    if backends.missing(name) is None:
        pytest.skip(f"backend {name} is here")
    why = re.escape(f"={name}: {backends.missing(name)}")
    f = bd.Factors(torch.randn(1, 2), torch.randn(3, 2))
    with pytest.raises(bd.BackendError, match="backend" + why):
        bd.topk(f, 1, backend=name)
    monkeypatch.setenv("BDKERNELS_BACKEND", name)
    with pytest.raises(bd.BackendError, match="BDKERNELS_BACKEND" + why):
        bd.topk(f, 1)


def test_unknown_backend():
    f = bd.Factors(torch.randn(1, 2), torch.randn(3, 2))
    with pytest.raises(bd.BackendError, match="backend: expected one of reference, cpu, triton, cuda, got 'gpu'"):
        bd.score(f, torch.zeros(1, 1, dtype=torch.int64), backend="gpu")


def test_cpu_backend_refuses_other_devices():
    if backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    with pytest.raises(bd.BackendError, match="backend=cpu: expected tensors on the CPU, got meta"):
        backends.choose(torch.device("meta"), "cpu")


def test_report():
    out = run("-m", "bdkernels.env_report")
    assert out.returncode == 0
    for word in ("bdkernels", "torch", "reference", "cpu", "triton", "cuda", "threads", "nvcc", "BDKERNELS_BACKEND"):
        assert word in out.stdout


def test_without_the_library_everything_still_works(tmp_path):
    """The first tier of an installation: no compiler, so no library; the reference serves, the report says why."""
    code = (
        "import bdkernels.backends.cpu as c; from pathlib import Path; c.LIBRARY = Path('nowhere.so');"
        "import importlib, bdkernels, torch;"
        "import bdkernels.backends.choice as b; importlib.reload(b); f = bdkernels.Factors(torch.ones(1, 2), torch.ones(3, 2));"
        "print(b.missing('cpu')); print(b.choose(torch.device('cpu')))"
    )
    out = run("-c", code)
    assert out.returncode == 0, out.stderr
    assert "not built" in out.stdout
    assert out.stdout.strip().endswith("reference")


CALLS = {
    "topk": lambda f: bd.topk(f, 3),
    "rank": lambda f: bd.rank(f, torch.zeros(len(f.user_factors), 1, dtype=torch.int64)),
    "sample": lambda f: bd.sample(f, f, 2, user_ids=torch.arange(len(f.user_factors)), step=0),
}


@pytest.fixture
def no_library(monkeypatch):
    """As where none was built."""
    monkeypatch.delenv("BDKERNELS_BACKEND", raising=False)
    monkeypatch.setitem(choice._missing, "cpu", "not built: no compiler")
    monkeypatch.setattr(choice, "LARGE", 5 * 70 * 3)
    choice._warn_of_reference.cache_clear()
    yield monkeypatch
    choice._warn_of_reference.cache_clear()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_reference_says_once_that_it_serves_a_large_call(no_library, recwarn, call):
    call(bd.Factors(torch.randn(5, 3), torch.randn(69, 3)))
    bd.score(bd.Factors(torch.randn(5, 3), torch.randn(70, 3)), torch.zeros(5, 69, dtype=torch.int64))
    assert not recwarn.list
    large = bd.Factors(torch.randn(5, 3), torch.randn(70, 3))
    with pytest.warns(RuntimeWarning, match=r"reference backend .* missing \(not built: no compiler\)") as told:
        call(large)
    assert len(told) == 1
    recwarn.clear()
    call(large)
    assert not recwarn.list


def test_a_reference_that_was_chosen_says_nothing(no_library, recwarn):
    large = bd.Factors(torch.randn(5, 3), torch.randn(70, 3))
    bd.topk(large, 3, backend="reference")
    backends.steps(CPU, dtype=torch.float64, work=10**9)  # which no other backend has
    backends.steps(torch.device("meta"), work=10**9)  # nor this device
    no_library.setenv("BDKERNELS_BACKEND", "reference")
    bd.topk(large, 3)
    no_library.delenv("BDKERNELS_BACKEND")
    no_library.setitem(choice._missing, "cpu", None)
    backends.steps(CPU, work=10**9)
    assert not recwarn.list


def test_a_broken_library_is_a_reason_not_a_crash(tmp_path):
    (tmp_path / "lib.so").write_bytes(b"not a library")
    original, cpu.LIBRARY = cpu.LIBRARY, tmp_path / "lib.so"
    try:
        assert "does not load" in cpu.load()
    finally:
        cpu.LIBRARY = original


@pytest.mark.parametrize("isa", cpu.ISAS)
def test_every_instruction_set_has_the_same_bits(isa):
    """Forced by BDKERNELS_ISA in processes of their own, against the reference in this one."""
    if backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    code = (
        "import torch, bdkernels as bd; from bdkernels.backends import cpu; torch.manual_seed(3);"
        "f = bd.Factors(torch.randn(29, 11), torch.randn(1237, 11), torch.randn(1237)); ids = torch.randint(0, 1237, (29, 70));"
        "g = bd.Factors(torch.randn(29, 3), torch.randn(1237, 3));"
        "seen = bd.Seen.from_pairs(torch.arange(29), torch.arange(29), 29);"
        "out = [bd.score(f, ids), bd.rank(f, ids, seen), bd.rank(f, ids[:, :2]), bd.topk(f, 20).ids];"
        "out.append(bd.sample(f, g, 9, user_ids=torch.arange(len(f.user_factors)), step=0).to_student.ids);"
        "print(cpu.isa(), hash(tuple(b''.join(t.numpy().tobytes() for t in out))))"
    )
    out = run("-c", code, BDKERNELS_ISA=isa, PYTHONHASHSEED="0")
    if "one that this CPU has" in out.stderr + out.stdout:
        pytest.skip(f"this CPU has no {isa}")
    want = run("-c", code.replace("cpu.isa()", "'reference'"), BDKERNELS_BACKEND="reference", PYTHONHASHSEED="0")
    assert out.returncode == want.returncode == 0, out.stderr + want.stderr
    assert out.stdout.split() == [isa, want.stdout.split()[1]]


CALL = """
import torch, bdkernels as bd
from bdkernels.tools import env_report
f = bd.Factors(torch.ones(1, 2), torch.ones(3, 2))
bd.topk(f, 1, backend="reference")
report = env_report.report()
try:
    bd.topk(f, 1)
except bd.BackendError as error:
    print(error)
    assert str(error) in report
"""


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BDKERNELS_LIBRARY", "/nonexistent", "BDKERNELS_LIBRARY: expected the file of the library, got /nonexistent"),
        ("BDKERNELS_LIBRARY", __file__, "BDKERNELS_LIBRARY=.*does not load"),
        ("BDKERNELS_ISA", "sse9", "BDKERNELS_ISA=sse9: .*BDKERNELS_ISA: expected avx512, avx2 or portable"),
    ],
)
def test_what_the_environment_asks_for_is_honoured_or_refused(variable, value, message):
    """Nothing falls back to the reference without a word; who chooses it by its name gets it."""
    if variable == "BDKERNELS_ISA" and backends.missing("cpu") is not None:
        pytest.skip(f"backend cpu: {backends.missing('cpu')}")
    out = run("-c", CALL, **{"BDKERNELS_BACKEND": "", variable: value})
    assert out.returncode == 0, out.stderr
    assert re.search(message, out.stdout), out.stdout


@pytest.mark.parametrize("error", [bd.BackendError, ValueError])
def test_unknown_names_in_the_environment(monkeypatch, error):
    variable = "BDKERNELS_BACKEND" if error is bd.BackendError else "BDKERNELS_PRECISION"
    monkeypatch.setenv(variable, "fp8")
    with pytest.raises(error, match=f"{variable}: expected one of .*, got 'fp8'"):
        bd.topk(bd.Factors(torch.ones(1, 2), torch.ones(3, 2)), 1)


def test_a_cuda_library_that_is_not_there_is_refused(monkeypatch):
    reason = "BDKERNELS_CUDA_LIBRARY: expected the file of the library, got /nonexistent, which is none"
    monkeypatch.setenv("BDKERNELS_CUDA_LIBRARY", "/nonexistent")
    monkeypatch.setitem(choice._missing, "cuda", reason)
    with pytest.raises(
        bd.BackendError, match=f"BDKERNELS_CUDA_LIBRARY=/nonexistent: the backend 'cuda' is not there: {reason}"
    ):
        backends.choose(torch.device("cuda"))
    assert backends.choose(torch.device("cuda"), "reference") == "reference"
