"""Item tables on disk: the bits of tables in memory, whatever the slices, and the resident memory of a slice."""

import json
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from draws import numbered
from safetensors.torch import save_file

import bdkernels as bd
from bdkernels import backends
from bdkernels.backends import streamed
from bdkernels.ops.define import stages
from bdkernels.storage import mapped


def on_disk(path, t: torch.Tensor) -> torch.Tensor:
    """The same table, mapped: bfloat16, which NumPy lacks, from .safetensors, the others from .npy."""
    if t.dtype == torch.bfloat16:
        save_file({"other": torch.zeros(3), "table": t.contiguous()}, path)
        return bd.open_memmap(path, "table")
    with path.open("wb") as file:
        np.save(file, t.numpy())
    return bd.open_memmap(path)


def pair(tmp_path, f: bd.Factors, name: str = "items", bias: bool = True) -> bd.Factors:
    """The factors with their item table, and their bias, on disk."""
    items = on_disk(tmp_path / name, f.item_factors)
    mapped = bias and f.item_bias is not None
    return f._replace(
        item_factors=items, item_bias=on_disk(tmp_path / f"{name}_bias", f.item_bias) if mapped else f.item_bias
    )


@pytest.fixture(params=[1, 700, 1 << 20], ids=lambda n: f"slices of {n} bytes")
def slices(request, monkeypatch):
    """Sizes that may not change a result: of one item, of a few, of all; blocks and pieces of scattered reads too."""
    monkeypatch.setattr(streamed, "SLICE_BYTES", request.param)
    monkeypatch.setattr(streamed, "PAIR_BYTES", 20 * request.param)
    monkeypatch.setattr(mapped, "BLOCK", 64 + request.param)
    monkeypatch.setattr(mapped, "BLOCKS", 1 + request.param % 3)
    monkeypatch.setattr(mapped, "DENSE", 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", ["none", "memory", "disk"])
def test_same_bits_as_from_memory(backend, dtype, bias, slices, tmp_path, rng):
    """Scores that are no round numbers, and many ties: every item is there twice, far apart."""
    n, b = 74, 5
    f = bd.Factors(torch.randn(b, 7), torch.randn(n // 2, 7).repeat(2, 1), torch.randn(n // 2).repeat(2))
    f = bd.Factors(*(t.to(dtype) for t in f))._replace(**({"item_bias": None} if bias == "none" else {}))
    g = pair(tmp_path, f, bias=bias == "disk")
    seen, ids = oracle.random_seen(rng, b, n, 30), torch.from_numpy(rng.integers(0, n, (b, 9)))
    offset = bd.Seen(seen.indptr, seen.indices + 1000)
    for run in (
        lambda f: [bd.score(f, ids, backend=backend)],
        lambda f: [bd.rank(f, ids, seen, backend=backend), bd.rank(f, ids, backend=backend)],
        lambda f: [bd.count_above(f, bd.score(f, ids), ids + 1000, offset, 1000, backend=backend)],
        lambda f: [*bd.topk(f, 11, seen, backend=backend), *bd.topk(f, n, seen, backend=backend)],
    ):
        for want, got in zip(run(f), run(g), strict=True):
            assert torch.equal(want, got)


@pytest.mark.parametrize("catalog", [None, 40])
@pytest.mark.parametrize("weight", [bd.Tanh(30.0), bd.Exp(900.0), bd.Linear()], ids=lambda w: w.kind)
@pytest.mark.parametrize("slices", [700], indirect=True)
def test_same_draws_as_from_memory(backend, weight, catalog, slices, tmp_path, rng):
    """Both models on disk, or one; with rounds and, for peaked weights, with full rows."""
    n, b = 150, 6
    teacher, student = (bd.Factors(torch.randn(b, d), torch.randn(n, d), torch.randn(n)) for d in (7, 3))
    seen = oracle.random_seen(rng, b, n, 30)
    on = {"to_student": weight, "to_teacher": weight, **numbered(teacher, seed=3, step=2), "subset": catalog}
    want = bd.sample(teacher, student, 20, seen, **on)
    t, s = pair(tmp_path, teacher, "t"), pair(tmp_path, student, "s")
    for models in ((t, s), (teacher, s)):
        got = bd.sample(*models, 20, seen, **on, backend=backend)
        assert torch.equal(got.to_student.ids, want.to_student.ids)
        assert torch.equal(got.to_teacher.ids, want.to_teacher.ids)


def test_draws_need_few_readings(tmp_path, monkeypatch):
    """A group of users reads the tables once a round, and rounds are few: not one of 256 proposals after the other."""
    teacher, student = (bd.Factors(torch.randn(64, d), torch.randn(500, d)) for d in (7, 3))
    readings, count_above = [], streamed.count_above

    def counted(steps, f, *rest):
        readings.append(len(f.user_factors))
        return count_above(steps, f, *rest)

    monkeypatch.setattr(streamed, "count_above", counted)
    bd.sample(
        pair(tmp_path, teacher, "t"), pair(tmp_path, student, "s"), 100, to_student=bd.Tanh(2.0), **numbered(teacher)
    )
    assert readings[:2] == [64, 64] and len(readings) <= 4


def test_views_are_mapped_too(backend, tmp_path, monkeypatch):
    """A shard of the rows, some of the columns, columns for rows, every other row."""
    monkeypatch.setattr(streamed, "SLICE_BYTES", 500)
    table, square = torch.randn(90, 12), torch.randn(12, 90)
    disk, disk_square = on_disk(tmp_path / "a", table), on_disk(tmp_path / "b", square)
    ids = torch.tensor([[3, 0, 19]])
    for view in (lambda t: t[31:77], lambda t: t[:, 3:8], lambda t: t[::3], lambda t: t[5:6].expand(40, -1)):
        assert mapped.mapping_of(view(disk)) is not None
        users = torch.randn(1, view(table).shape[1])
        f, g = (bd.Factors(users, view(t)) for t in (table, disk))
        assert torch.equal(bd.rank(f, ids), bd.rank(g, ids, backend=backend))
        assert all(map(torch.equal, bd.topk(f, 30), bd.topk(g, 30, backend=backend)))
    f, g = (bd.Factors(torch.randn(1, 12).fill_(0.5), t.T) for t in (square, disk_square))
    assert torch.equal(bd.rank(f, ids), bd.rank(g, ids, backend=backend))


def test_rows_by_id(tmp_path, slices):
    table = torch.randn(200, 5)
    disk, ids = on_disk(tmp_path / "t", table), torch.randint(0, 200, (333,))
    assert torch.equal(mapped.take(disk, ids), table[ids]) and torch.equal(mapped.take(table, ids), table[ids])
    assert mapped.take(disk, ids[:0]).shape == (0, 5)
    assert torch.equal(mapped.take(disk[7:, 1:4], ids % 190), table[7:, 1:4][ids % 190])


def test_no_users_no_ids_no_items(backend, tmp_path):
    f = bd.Factors(torch.randn(3, 4), on_disk(tmp_path / "t", torch.randn(6, 4)))
    assert bd.rank(f, torch.zeros(3, 0, dtype=torch.int64), backend=backend).shape == (3, 0)
    assert bd.score(f, torch.zeros(3, 0, dtype=torch.int64), backend=backend).shape == (3, 0)
    assert bd.topk(f._replace(user_factors=f.user_factors[:0]), 2, backend=backend).ids.shape == (0, 2)
    assert bd.open_memmap(tmp_path / "t").shape == (6, 4)
    assert on_disk(tmp_path / "e", torch.zeros(0, 4)).shape == (0, 4)


def test_a_score_that_is_no_number_is_named(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "SLICE_BYTES", 10 * 16)
    items = torch.randn(50, 4)
    items[37, 1] = torch.nan
    f = bd.Factors(torch.randn(2, 4), on_disk(tmp_path / "t", items))
    for run in (bd.topk, lambda f, k, **on: bd.rank(f, torch.full((2, k), 3), **on)):
        with pytest.raises(ValueError, match="got NaN for user row 0, item 37"):
            run(f, 5, backend=backend)


def test_a_mapping_ends_with_its_last_tensor(tmp_path):
    before = len(mapped._live)
    table = on_disk(tmp_path / "t", torch.randn(9, 4))
    view = table.detach()[3:]
    del table
    assert len(mapped._live) == before + 1 and mapped.mapping_of(view) is not None
    del view
    assert len(mapped._live) == before


def test_what_reads_in_order_is_given_back(tmp_path, monkeypatch):
    """Slice by slice: the next one is asked for, the last one released."""
    asked = []
    monkeypatch.setattr(
        mapped.Mapping, "_advise", lambda self, advice, first, last: asked.append((advice, first, last))
    )
    monkeypatch.setattr(streamed, "SLICE_BYTES", 40 * 16)
    f = bd.Factors(torch.randn(2, 4), on_disk(tmp_path / "t", torch.randn(100, 4)))
    bd.topk(f, 3)
    given = [(first, last) for advice, first, last in asked if advice == "MADV_DONTNEED"]
    ahead = [(first, last) for advice, first, last in asked if advice == "MADV_WILLNEED"]
    assert given == ahead == [(128 + 16 * i, 128 + 16 * min(100, i + 40)) for i in (0, 40, 80)]
    assert asked[0][0] == "MADV_SEQUENTIAL"


# ---- what it costs ----


def test_tables_in_memory_know_nothing_of_it(tmp_path):
    """Nothing is streamed while the operator's tables are in memory, also where another table is mapped."""
    f = bd.Factors(torch.randn(2, 4), torch.randn(9, 4))
    table = on_disk(tmp_path / "t", torch.randn(9, 4))
    assert not stages("reference", f).few_rounds
    assert stages("reference", f._replace(item_factors=table)).few_rounds
    assert stages("reference", f, f._replace(item_bias=table[:, 0])).few_rounds


LIMIT_MB = 100
CHILD = """
import json, sys, torch
import bdkernels as bd
from bdkernels.storage import mapped

def high_water():  # KB
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

def rows(b):
    return {"user_ids": torch.arange(b), "step": 0}

b, n = 32, 1_000_000
here = [bd.Factors(torch.randn(2, d), torch.randn(5000, d)) for d in (64, 2)]
bd.sample(*here, 8, **rows(2)), bd.topk(here[0], 10)  # libraries, thread pools
ids = torch.randint(0, n, (b, 500))
runs = {
    "rank": lambda: bd.rank(t, ids[:, :64]),
    "topk": lambda: bd.topk(t, 100),
    "score": lambda: bd.score(t, ids),
    "sample": lambda: bd.sample(t, s, 8, to_teacher=None, **rows(b)),
    "sample of a subset": lambda: bd.sample(t, s, 8, subset=10_000, **rows(b)),
}
extra = {}
for name in sys.argv[3:]:
    t, s = (bd.Factors(torch.randn(b, d), bd.open_memmap(path)) for d, path in zip((64, 2), sys.argv[1:3]))
    if name.startswith("plain "):
        mapped._live.clear()  # an ordinary mapping
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again from here
    before = high_water()
    runs[name.removeprefix("plain ")]()
    extra[name] = (high_water() - before) / 1024
    del t, s
print(json.dumps(extra))
"""


def test_resident_memory_is_a_slice(tmp_path):
    """Of tables of a million items, 256 MB and 8 MB. The measurement itself: that of an ordinary mapping is seen to be more."""
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc, which this system does not have")
    for name, d in (("t", 64), ("s", 2)):
        table = np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, (1_000_000, d))
        some = torch.randn(10_000, d).numpy()
        for i in range(0, len(table), len(some)):
            table[i : i + len(some)] = some
    runs = ["rank", "topk", "score", "sample", "sample of a subset", "plain rank", "plain score"]
    command = [sys.executable, "-c", CHILD, str(tmp_path / "t"), str(tmp_path / "s"), *runs]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    for name, more in json.loads(out.stdout).items():
        print(f"{name}: {more:.1f} MB above the start; the table has 256 MB")
        assert more > LIMIT_MB if name.startswith("plain") else more < LIMIT_MB, name
