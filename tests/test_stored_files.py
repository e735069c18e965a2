"""Files of tables: what is wrong with one is named, writing is refused, and a change of the file is an error, not a crash."""

import io
import json

import numpy as np
import pytest
import torch
from draws import numbered
from safetensors.torch import save_file
from test_stored import on_disk

import bdkernels as bd

# ---- read-only ----


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.add_(1),
        lambda t: t[3:].zero_(),
        lambda t: t.detach().copy_(t + 1),
        lambda t: t.__setitem__(torch.tensor([2]), 1.0),
        lambda t: torch.add(t, t, out=t),
        lambda t: torch._foreach_add_([t], 1.0),
        lambda t: t.numpy(),
    ],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_writing_is_refused(write, context, tmp_path):
    """Before anything is written: the pages themselves are read-only, and the process would die."""
    items = torch.randn(6, 4)
    table = on_disk(tmp_path / "t", items)
    with context(), pytest.raises(RuntimeError):
        write(table)
    assert torch.equal(table, items)


@pytest.mark.filterwarnings("error")
def test_training_steps_refuse_it(tmp_path):
    users, items = torch.zeros(3, 4), on_disk(tmp_path / "t", torch.randn(6, 4))
    ids = torch.zeros(2, dtype=torch.int64)
    batch = ids, ids, ids[:, None], bd.Draws(ids[:, None], ids[:, None] >= 0), torch.zeros(2, 1)
    expected = "item_table: expected a table in memory, to be trained, got one mapped read-only from .*/t"
    with pytest.raises(ValueError, match=expected):
        bd.fused_loss(users, items, None, *batch)
    with pytest.raises(ValueError, match=expected):
        bd.fused_step(bd.SGD([users, items]), *batch)


# ---- files that are no tables ----


def npy(array, **changes) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **changes)
    return file.getvalue()


def safetensors(entries: dict, data: int, pad: int = 0) -> bytes:
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8 + pad)
    return len(header).to_bytes(8, "little") + header + bytes(data)


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = npy(np.zeros((2, 3), np.float32))
BAD = {
    "empty": (b"", "a .npy or .safetensors file, got neither, or one cut short, of 0 bytes"),
    "text": (b"user,item\n1,2\n", "a .npy or .safetensors file, got neither"),
    "cut in the magic": (GOOD[:4], "a .npy or .safetensors file, got neither"),
    "cut in the header": (GOOD[:40], "a .npy file of version 1 or 2, got"),
    "cut in the data": (GOOD[:-1], r"24 bytes for shape \[2, 3\], got 23"),
    "too long": (GOOD + b"\0", r"24 bytes for shape \[2, 3\], got 25"),
    "version 3": (GOOD[:6] + b"\x03" + GOOD[7:], "a .npy file of version 1 or 2, got version"),
    "header of nonsense": (GOOD[:10] + b"(" * 118 + GOOD[128:], "a .npy file of version 1 or 2, got"),
    "float64": (npy(np.zeros((2, 3))), "float32 or float16, little-endian, got float64"),
    "big-endian": (npy(np.zeros((2, 3), ">f4")), "float32 or float16, little-endian, got >f4"),
    "objects": (npy(np.array([[{}]], object)), "float32 or float16, little-endian, got object"),
    "Fortran": (npy(np.asfortranarray(np.zeros((2, 3), np.float32))), "C order, got Fortran order"),
    "3-D": (npy(np.zeros((2, 3, 4), np.float32)), r"1 or 2 dimensions, got \[2, 3, 4\]"),
    "0-D": (npy(np.zeros((), np.float32)), r"1 or 2 dimensions, got \[\]"),
    "header too long": ((1 << 40).to_bytes(8, "little") + b"{}", "a .npy or .safetensors file, got neither"),
    "no JSON": ((2).to_bytes(8, "little") + b"{]", "a .npy or .safetensors file, got a header that is neither's"),
    "deep JSON": (
        (99999).to_bytes(8, "little") + b"[" * 99999,
        "a .npy or .safetensors file, got a header that is neither's",
    ),
    "no object": ((2).to_bytes(8, "little") + b"[]", "a .npy or .safetensors file, got a header that is neither's"),
    "no offsets": (
        safetensors({"a": {"dtype": "F32", "shape": [2, 3]}}, 24),
        "a .npy or .safetensors file, got a header that is neither's",
    ),
    "negative": (
        safetensors({"a": entry(shape=(-2, -3))}, 24),
        "a .npy or .safetensors file, got a header that is neither's",
    ),
    "ends before it starts": (
        safetensors({"a": entry(offsets=(24, 0))}, 24),
        "a .npy or .safetensors file, got a header that is neither's",
    ),
    "data cut": (safetensors({"a": entry()}, 23), "a file of .* bytes, as its header says, got"),
    "data too long": (safetensors({"a": entry()}, 25), "a file of .* bytes, as its header says, got"),
    "extent": (safetensors({"a": entry(offsets=(0, 20))}, 20), r"24 bytes for shape \[2, 3\], got 20"),
    "F64": (safetensors({"a": entry("F64", (1, 3))}, 24), "one of F32, F16, BF16, got F64"),
    "dimensions": (safetensors({"a": entry(shape=(2, 3, 1))}, 24), r"1 or 2 dimensions, got \[2, 3, 1\]"),
    "odd place": (safetensors({"a": entry()}, 24, pad=1), "data at a multiple of 4 bytes, got at byte"),
}


@pytest.mark.parametrize("what", BAD)
def test_files_that_are_no_tables(what, tmp_path):
    content, message = BAD[what]
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/table.*: expected {message}"):
        bd.open_memmap(tmp_path / "table")


def test_names(tmp_path):
    with pytest.raises(ValueError, match="none: expected a readable file, got No such file"):
        bd.open_memmap(tmp_path / "none")
    with pytest.raises(ValueError, match=f"{tmp_path}: expected a file, got a folder"):
        bd.open_memmap(tmp_path)
    path = tmp_path / "t.npy"
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"name: expected None for the .npy file .*t.npy, got 'a'"):
        bd.open_memmap(path, "a")
    path = tmp_path / "t.safetensors"
    save_file({"b": torch.zeros(2), "a": torch.ones(3, 1)}, path, {"of": "no matter"})
    assert torch.equal(bd.open_memmap(str(path), "a"), torch.ones(3, 1))
    for name in (None, "c"):
        with pytest.raises(ValueError, match=rf"name: expected one of the tensors of .* \(a, b\), got {name!r}"):
            bd.open_memmap(path, name)
    save_file({"b": torch.zeros(2)}, path)
    assert torch.equal(bd.open_memmap(path), torch.zeros(2))


def test_versions_and_orders_that_are_fine(tmp_path):
    table = np.arange(6, dtype=np.float32)
    for array in (table, table[:, None], np.asfortranarray(table[None])):
        (tmp_path / "t").write_bytes(npy(array))
        assert torch.equal(bd.open_memmap(tmp_path / "t"), torch.from_numpy(array.copy()))
    with (tmp_path / "t").open("wb") as file:
        np.lib.format.write_array(file, table, version=(2, 0))
    assert torch.equal(bd.open_memmap(tmp_path / "t"), torch.from_numpy(table))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changes_its_size_is_an_error_not_a_crash(change, tmp_path, backend):
    table = on_disk(tmp_path / "t", torch.randn(5000, 4))
    f, size = bd.Factors(torch.randn(2, 4), table), (tmp_path / "t").stat().st_size
    with (tmp_path / "t").open("r+b") as file:
        file.truncate(size + change * 40_000)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    for run in (
        lambda: bd.rank(f, ids, backend=backend),
        lambda: bd.topk(f, 2, backend=backend),
        lambda: bd.score(f, ids, backend=backend),
        lambda: bd.sample(f, f, 2, subset=10, **numbered(f), backend=backend),
    ):
        with pytest.raises(ValueError, match=f"t: expected a file of {size} bytes, as it was opened, got"):
            run()


def test_a_file_replaced_by_name_is_read_on(tmp_path):
    items = torch.randn(9, 4)
    table = on_disk(tmp_path / "t", items)
    (tmp_path / "new").write_bytes(b"")
    (tmp_path / "new").rename(tmp_path / "t")
    f = bd.Factors(torch.randn(2, 4), items)
    assert torch.equal(bd.topk(f, 5).ids, bd.topk(f._replace(item_factors=table), 5).ids)
