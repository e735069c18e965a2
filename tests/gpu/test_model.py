"""The cost model: its reading of loops on a small kernel, its arithmetic on round numbers, and the page that it has written."""

import os

import costs
import model
import operations
import pytest
import recipes
import shapes
import torch
from calls import calls, rows
from costs import Gpu, Launch, Phase, Work, banks, together, work_of
from gpus import Peak
from sass import Flow, count

# A loop that copies, multiplies in one of two ways (four FFMA, or as many with a look at the depth before each), searches in a
# loop of its own, counts where a score is in its place, and reports a NaN; what is not taken stands before what is.
KERNEL = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
.L_x_1:
        /*0020*/              @!P1 BRA `(.L_x_2) ;
        /*0030*/              @!PT LDS RZ, [RZ] ;
        /*0040*/                   LDGSTS.E.BYPASS.128.ZFILL [R22], desc[UR12][R20.64], P0 ;
.L_x_2:
        /*0050*/               @P2 BRA P3, `(.L_x_4) ;
        /*0060*/                   ISETP.GE.AND P4, PT, R1, R2, PT ;
        /*0070*/                   FFMA R1, R2, R3, R1 ;
        /*0080*/                   ISETP.GE.AND P4, PT, R1, R2, PT ;
        /*0090*/               @P4 BRA `(.L_x_5) ;
        /*00a0*/                   FFMA R1, R2, R3, R1 ;
        /*00b0*/                   ISETP.GE.AND P4, PT, R1, R2, PT ;
        /*00c0*/                   FFMA R1, R2, R3, R1 ;
        /*00d0*/                   FFMA R1, R2, R3, R1 ;
        /*00e0*/                   BRA `(.L_x_5) ;
.L_x_4:
        /*00f0*/                   LDS.128 R4, [R5] ;
        /*0100*/                   FFMA R1, R2, R3, R1 ;
        /*0110*/                   FFMA R1, R2, R3, R1 ;
        /*0120*/                   FFMA R1, R2, R3, R1 ;
        /*0130*/                   FFMA R1, R2, R3, R1 ;
.L_x_5:
        /*0140*/               @P0 BRA `(.L_x_8) ;
.L_x_6:
        /*0150*/                   LDS R4, [R5] ;
        /*0160*/                   FSETP.GEU.AND P2, PT, R36, R109, PT ;
        /*0170*/               @P2 BRA `(.L_x_6) ;
        /*0180*/               @P3 BRA `(.L_x_7) ;
        /*0190*/                   REDG.E.MIN.64.STRONG.GPU desc[UR12][R20.64], R22 ;
        /*01a0*/                   BRA `(.L_x_8) ;
.L_x_7:
        /*01b0*/                   ATOMS.POPC.INC.32 RZ, [R36+URZ+0x4ffc] ;
.L_x_8:
        /*01c0*/               @P0 BRA `(.L_x_1) ;
        /*01d0*/                   EXIT ;
.L_x_9:
        /*01e0*/                   BRA `(.L_x_9);
"""
CHIP = Gpu(Peak("chip", {"fp32": 1e-9}, 1e-9), sms=2, ghz=1e-6, l2=10)  # a clock is a millisecond


def test_loops_and_what_is_inside():
    flow = Flow(KERNEL)
    outer, inner = flow.loops
    assert inner.blocks < outer.blocks and flow.within(outer.blocks) == [inner]
    assert count(inner.all(), "LDS") == count(inner.all(), "FSETP") == 1 and inner.all().total() == 3
    assert flow.loop(FFMA=4) is outer and flow.loop(FSETP=1) is inner
    assert len(flow.blocks) - len(flow.order) == 1  # nothing leads to the last one
    with pytest.raises(LookupError, match="no loop"):
        flow.loop(MUFU=1)


def test_the_shortest_way_that_does_what_is_wanted():
    outer, inner = Flow(KERNEL).loops
    plain = outer.round({"FFMA": 4, "LDGSTS.128": 0, "loop": 0})
    assert plain.issued == 1 + 1 + 5 + 1 + 1 and plain.count("LDS") == 1 and plain.loops == ()
    copying = outer.round({"FFMA": 4, "LDGSTS.128": 1, "loop": 0})
    assert copying.issued == plain.issued + 2 and copying.count("NOP") == 1  # a guard that is never true
    counting = outer.round({"FFMA": 4, "LDGSTS": 0, "loop.FSETP": 1, "ATOMS": 1})
    assert counting.issued == plain.issued + 2 and counting.loops == (inner,) and counting.count("REDG") == 0
    assert outer.round({"FFMA": 1, "loop": 0, "LDGSTS": 0}).count("ISETP") == 2  # by the way that ends early
    assert outer.round({"REDG": 1, "ATOMS": 0}).count("LDGSTS") == 0
    for impossible in ({"FFMA": 3}, {"ATOMS": 1, "REDG": 1}, {"ATOMS": 1, "loop": 0}):
        with pytest.raises(LookupError, match="no way"):
            outer.round(impossible)


def test_work_of_instructions():
    way = (
        Flow(KERNEL).loop(FFMA=4).round({"FFMA": 4, "LDGSTS": 1, "LDS.128": 1, "loop.LDS": 1, "ATOMS": 1}).instructions
    )
    assert work_of(way) == Work(issue=13, fp32=4, alu=0, shared=4 + 4 + 1, l2=512)
    assert work_of(way, {"LDS.128": 2.5}).shared == 2.5 + 4 + 1
    assert work_of(Flow(KERNEL).loop(FSETP=1).all()) == Work(issue=3, alu=1, shared=1)


def test_bounds_of_a_launch():
    work = (Phase("product", Work(issue=8, fp32=8), 10), Phase("search", Work(issue=4, alu=1, shared=3), 20))
    launch = Launch("both", work, blocks=5, places=2, read_bytes=3)
    assert launch.bounds(CHIP) == {"issue": 20, "fp32": 10, "alu": 5, "shared": 30, "l2": 0, "memory": 3}
    assert launch.waves(CHIP) == 1.25
    assert launch.tails(CHIP) == (6 / 5, 8 / 5)  # a multiprocessor has three of the five; two waves have eight places
    assert launch.ms(CHIP) == pytest.approx((30 * 6 / 5, (10 + 30) * 8 / 5))
    assert Launch("one", work, blocks=1, places=2).tails(CHIP) == (2, 4)
    assert Launch("bytes", work, blocks=4, places=2, read_bytes=100).ms(CHIP) == (100, 100)
    host = costs.OPERATION * 1e3
    assert together([launch, launch], 3, CHIP) == pytest.approx((72, 128 + 3 * host))
    assert together([], 3, CHIP) == pytest.approx((3 * host, 3 * host))
    assert CHIP.floor(flop=4, read_bytes=3) == pytest.approx(4)


def test_bank_conflicts():
    assert banks([4 * lane for lane in range(32)]) == 1
    assert banks([64] * 32) == 1
    assert banks([8 * lane for lane in range(32)]) == 2
    assert banks([128 * lane for lane in range(32)]) == 32


def test_reads_of_16_bytes():
    """A register of each lane a wavefront; two where neighbours, or those beside them, read the same."""
    assert banks([16 * lane for lane in range(32)], 16) == 4
    assert banks([0] * 32, 16) == 2
    assert banks([80 * (lane // 2 % 8) for lane in range(32)], 16) == 2  # rows of 20 floats: all banks
    assert banks([64 * (lane // 2 % 8) for lane in range(32)], 16) == 8  # rows of 16: four of eight on one bank
    assert banks([80 * (lane % 2 + lane // 16 * 2) for lane in range(32)], 16) == 2
    assert banks([80 * (lane % 16) for lane in range(32)], 16) == 4
    assert banks([8 * lane for lane in range(32)], 8) == 2 and banks([8 * (lane // 2) for lane in range(32)], 8) == 1


def test_tiles_are_those_of_the_kernels():
    for of in (*recipes.RANK_TILES, recipes.TOPK_TILE):
        tile = shapes.tile(*of)
        pairs = {
            (user[thread], item[thread])
            for thread in range(shapes.THREADS)
            for user in tile.user_rows
            for item in tile.item_rows
        }
        assert tile.sums * shapes.THREADS == tile.users * tile.items == len(pairs)
        assert max(max(user) for user in tile.user_rows) == tile.users - 1


def test_launches_go_through_the_whole_catalog():
    assert shapes.ranges(640, 64, 1, 264) == 10 and shapes.ranges(640, 64, 1, 1) == 1
    for users, items, k in ((64, 10**6, 100), (1024, 10**6, 100), (1, 100, 5)):
        parts = shapes.parts(users, items, k, 264)
        assert [part.first for part in parts] == [0, *(part.last for part in parts[:-1])]
        assert parts[-1].last == items and all(part.ranges > 0 for part in parts)


def test_operations_are_counted(cuda_device):
    found = operations.counted(cuda_device)
    assert {call.operations for call in calls()} <= found.keys() and all(n > 0 for n in found.values())
    plan = torch.ops.bdkernels_cuda.topk_launches(
        torch.empty(0), operations.USERS, operations.MANY, operations.BEST, 264, operations.FIRST_PART
    )
    assert len(plan) == len(shapes.parts(64, 10**6, 100, 264)) == len(shapes.parts(1024, 10**6, 100, 264)) == 3


def test_the_page():
    """It has every call, and a prediction for each where neither a compiler nor a library is."""
    names = [call.name for call in calls()]
    assert list(model.predict()) == names and len(set(names)) == len(names)
    assert all(0 < best <= worst for best, worst in model.committed().values())
    assert "Derived, not measured" in model.PAGE.read_text()


def test_a_slower_call_is_seen():
    page = model.committed()
    model.hold(page)
    name, (best, worst) = next(iter(page.items()))
    for slower in ((best, 1.1 * worst), (1.1 * best, 1.1 * worst)):
        with pytest.raises(AssertionError, match=f"slower than model.md: .*{name}"):
            model.hold(page | {name: slower})
    with pytest.raises(AssertionError, match="another"):
        model.hold(page | {"another": (1.0, 1.0)})


@pytest.mark.skipif(
    os.environ.get("BDKERNELS_PROOF") != "1", reason="`make gpu-proof` compiles for the target of the page"
)
def test_no_call_is_slower_than_the_page_says(cuda_library, cuda_device):
    from compiled import in_library  # needs triton

    kernels = {kernel.name: kernel for kernel in in_library(cuda_library) if kernel.cc == model.TARGET}
    model.hold(
        {
            r.call.name: (r.best, r.worst)
            for r, _ in rows(kernels, operations.counted(cuda_device), costs.GPUS[model.TARGET])
        }
    )
