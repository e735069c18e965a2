"""Large pages under tables: the values stay, and the system is asked for them where it has any."""

from pathlib import Path

import pytest
import torch

import bdkernels as bd
from bdkernels.storage.pages import HUGE, LEAST, large_pages

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def on_large_pages(table: torch.Tensor) -> int:
    """Bytes on large pages of the mapping that holds the table's middle."""
    middle, inside = table.data_ptr() + table.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            low, high = (int(each, 16) for each in first.split("-"))
            inside = low <= middle < high
        elif inside and first == "AnonHugePages:":
            return int(rest.split()[0]) * 1024
    return 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(LEAST // 256 * 2, 64),
        lambda: torch.randn(LEAST // 256, 128)[:, 32:96],  # strided rows
        lambda: torch.randn(LEAST),  # a bias
        lambda: torch.randn(LEAST // 256, 64, dtype=torch.float64),
        lambda: torch.randn(5, 3),
        lambda: torch.empty(0, 3),
    ],
    ids=["table", "strided", "bias", "float64", "small", "empty"],
)
def test_values_stay(make):
    table = make()
    before, place = table.clone(), table.data_ptr()
    assert large_pages(table) is table
    assert table.data_ptr() == place and torch.equal(table, before)


def test_shared_and_other_memory_is_left_alone():
    shared = torch.randn(LEAST // 128, 64).share_memory_()
    assert large_pages(shared) is shared
    meta = torch.empty(LEAST, 64, device="meta")
    assert large_pages(meta) is meta


def test_tables_and_state_of_an_optimizer_lie_on_them():
    if not SWITCH.exists() or "[never]" in SWITCH.read_text():
        pytest.skip("this system has no large pages")
    tables = [torch.randn(100, 64), torch.randn(200_000, 64)]
    before = [table.clone() for table in tables]
    optimizer = bd.SparseAdam(tables)
    assert all(torch.equal(*pair) for pair in zip(tables, before, strict=True))
    assert all(torch.equal(each, torch.zeros_like(each)) for each in optimizer.row_state())
    for moment in optimizer.row_state()[2:]:
        assert on_large_pages(moment) >= moment.nbytes - 2 * HUGE
