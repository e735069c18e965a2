"""The kernels are what derived.md says, or better: no spill, no less occupancy, no narrower access, tensor cores where meant."""

import importlib.util
import os
import re

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

import derive
from compiled import in_library
from sass import Flow, count


def test_cuda(cuda_library):
    found = list(derive.cuda_rows(cuda_library))
    targets = {r.target for r in found}
    assert {r.key for r in found} == {key for key in derive.read() if key[0].startswith("cuda") and key[2] in targets}
    derive.hold(found)
    assert all((r.tensor > 0) == ("Mma" in r.variant) for r in found)
    assert len(in_library(cuda_library)) > len(found)  # there is Half beside it


def test_a_step_of_the_search_is_four_instructions(cuda_library):
    """Load, comparison, place and threshold; and for all scores of a thread together, whether another step follows."""
    seen = 0
    for kernel in in_library(cuda_library):
        if tile := re.match(r"count_above_kernel<Fma<\w+, (\d+), (\d+)>>", kernel.name):
            scores = int(tile[1]) * int(tile[2]) // (32 * kernel.warps)
            each = {"LDS": scores, "FSETP": scores, "ATOMS": 0}
            blocks = [b for b in Flow(kernel.sass).blocks if all(count(b, kind) == n for kind, n in each.items())]
            assert len(blocks) >= 5 and all(b.total() <= 4 * scores + 4 for b in blocks), kernel.name
            seen += 1
    assert seen >= 12


def test_the_table_is_clean():
    """What stands in the page itself, on any machine."""
    table = derive.read().values()
    assert {r.target for r in table} == {"sm_80", "sm_90", "sm_100"} and len(table) > 100
    assert all(r.spilled == 0 and r.blocks > 0 for r in table)
    text = derive.TABLE.read_text()
    assert "Derived, not measured" in text and all(line in text for line in derive.floors())


def test_a_loss_is_seen():
    row = next(iter(derive.read().values()))
    assert row.worse_than(row) == []
    for change in ({"occupancy": row.occupancy - 0.1}, {"widest": 16}, {"spilled": 8}):
        assert row._replace(**change).worse_than(row) == list(change)
    assert row._replace(tensor=0).worse_than(row._replace(tensor=4)) == ["tensor"]
