"""Every launch of a Triton kernel, in each configuration, compiled for GPUs: it fits, spills nothing, and uses what it shall.

By default tables of 64 fp32 factors, everything for sm_90 and the large kernels for sm_80 and sm_100 as well;
BDKERNELS_PROOF=1 (`make gpu-proof`) takes all sites, other widths and dtypes, and long lists for each.
"""

import importlib.util
import os
import re
from itertools import product

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

import derive
import triton
from call_sites import call_sites
from chains import address, chains, in_order
from compiled import call, compiling, loops, width
from gpus import GPUS, blocks_of_sm
from triton.runtime.jit import JITFunction

import bdkernels as bd
from bdkernels.backends.triton import rank

PROOF = os.environ.get("BDKERNELS_PROOF") == "1"
LARGE = ("rank ieee", "rank tf32", "rank biased, seen, live", "round", "topk 100", "loss bce masked")
LARGE += ("loss softmax, listwise masked",)
LONG = (20, 100, 256, 512)
# Of scores, ranks, draws and lists. In the losses the logarithm of a number from 1 to 2 is made of instructions that flush.
DECIDING = ("score_pairs", "count_tiles", "count_seen", "best_of_run", "propose_block", "accept_block")
DECIDING += ("propose_and_score", "count_seen_of_both", "accept_in_order", "list_keys")
NAMES = [name for name, _ in call_sites()]
CASES = [(cc, 64, torch.float32, name) for cc in GPUS for name in NAMES if PROOF or cc == 90 or name in LARGE]
if PROOF:
    for d, dtype in (
        (16, torch.float32),
        (50, torch.float32),
        (128, torch.float32),
        (64, torch.bfloat16),
        (64, torch.float16),
    ):
        CASES += [(cc, d, dtype, name) for cc in GPUS for name, _ in call_sites(d, dtype, LONG)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"sm_{c[0]}, {c[1]} {str(c[2])[6:]}, {c[3]}")
def test_compiled(case):
    cc, d, dtype, name = case
    with compiling(cc) as kernels:
        dict(call_sites(d, dtype, LONG))[name]()
    assert kernels
    for kernel in kernels:
        where = f"{kernel.name} {kernel.config}"
        assert kernel.spills() == 0, f"{where}: {kernel.stack} bytes of stack"
        assert blocks_of_sm(cc, kernel.warps, kernel.registers, kernel.shared) > 0, f"{where} does not fit"
        if kernel.name in DECIDING:
            assert not kernel.flushing(), f"{where} flushes subnormals to 0: {kernel.flushing()}"
        meant = kernel.name == "count_tiles" and kernel.config["PRECISION"] != "ieee" and not kernel.config["SCORED"]
        assert (kernel.tensor_cores() > 0) == meant, where
        large = kernel.name in ("count_tiles", "best_of_run", "step_rows") and kernel.config.get("COLUMNS") != 8
        if large and d % 64 == 0 and dtype == torch.float32:
            assert kernel.widest() == 128, where


@pytest.mark.parametrize("cc", GPUS)
@pytest.mark.parametrize("name", ["rank ieee", "rank biased, seen, live", "topk 20"])
def test_an_exact_score_is_one_chain_in_order(name, cc):
    """Each sum goes from one step of the factors to the next by fused multiply-adds alone, factor after factor.

    Which factor lies where: rows of users [USERS, D] and columns of items [D, ITEMS] are one run in shared memory, not swizzled.
    """
    with compiling(cc) as kernels:
        dict(call_sites())[name]()
    for kernel in (k for k in kernels if k.name in ("count_tiles", "best_of_run")):
        layouts = re.findall(r"swizzled_shared<\{.*maxPhase = (\d+), order = \[(.*)\]\}>", kernel.layouts)
        assert layouts == [("1", "1, 0"), ("1", "0, 1")]
        sums = chains(kernel.ptx)
        tile = kernel.config["USERS"] * kernel.config.get("ITEMS", kernel.config.get("K"))
        assert len(sums) == tile // (32 * kernel.warps)
        for chain, goes_on in sums:
            assert goes_on and len(chain.left) == kernel.config["D"]
            assert in_order(chain.left) and in_order(chain.right)


@pytest.mark.parametrize("cc", GPUS)
@pytest.mark.parametrize("name", ["rank ieee", "rank tf32", "rank biased, seen, live", "rank of a block"])
def test_a_thread_counts_alone(name, cc):
    """All of a tile's scores against its own threshold: no shuffle, an instruction to compare a score and at most one to add.

    The loop's others are 5 for each score in a branch that ties in the tile take, and not 64 that all scores share. Triton 3.6
    shuffles integers for the largest tie of a turn, and takes their maximum.
    """
    with compiling(cc) as kernels:
        dict(call_sites())[name]()
    for kernel in (k for k in kernels if k.name == "count_tiles"):
        items = kernel.config["ITEMS"]
        (loop,) = (found for found in loops(kernel.sass, innermost=True) if found["RED"] + found["REDG"])
        assert loop["SHFL"] <= loop["IMNMX"] + loop["VIMNMX"], kernel.config
        assert loop["FSET"] >= items and loop.total() < 8 * items, kernel.config


@pytest.mark.parametrize("cc", GPUS if PROOF else [90])
def test_nothing_is_worse_than_in_the_table(cc):
    """In derived.md. Here, since this process has compiled most of its kernels already."""
    of = re.search(r"triton ([\d.]+),", derive.TABLE.read_text())[1]
    if triton.__version__ != of:
        pytest.skip(f"derived.md is of triton {of}, this is {triton.__version__}")
    found = list(derive.triton_rows(cc))
    assert {r.key for r in found} == {
        key for key in derive.read() if key[0].startswith("triton") and key[2] == f"sm_{cc}"
    }
    derive.hold(found)


def test_reading_chains():
    ptx = """
        mov.b32 %r1, 0;
        ld.shared.v2.b32 {%r2, %r3}, [%r9+8];
        add.s32 %r8, %r9, 4;
        ld.shared.b32 %r4, [%r8];
        ld.shared.b32 %r5, [%r9];
        fma.rn.f32 %r6, %r2, %r5, %r1;
        fma.rn.f32 %r1, %r3, %r4, %r6;
        fma.rn.f32 %r7, %r3, %r4, %r7;
        fma.rn.f32 %r12, %r3, %r4, %r11;
        fma.rn.f32 %r13, %r2, %r5, %r12;
        ld.shared.b64 %rd1, [%r9+16];
        mov.b64 {_, %r14}, %rd1;
        cvt.u32.u64 %r15, %rd1;
        fma.rn.f32 %r17, %r15, %r5, %r16;
        fma.rn.f32 %r18, %r14, %r4, %r17;
"""
    found = {chain.start: (goes_on, chain) for chain, goes_on in chains(ptx)}
    good, alone, backwards, halves = (found[name] for name in ("%r1", "%r7", "%r11", "%r16"))
    assert good[0] and good[1].left == (("%r9", 8), ("%r9", 12)) and in_order(good[1].left) and in_order(good[1].right)
    assert alone[0] and len(alone[1].left) == 1
    assert not backwards[0] and not in_order(backwards[1].left)
    assert halves[1].left == (("%r9", 16), ("%r9", 20)) and in_order(halves[1].right)


def test_reading_addresses():
    """As the compilers of several releases write them; a load without a register is of a variable or of a number."""
    for written, base, offset in (
        ("[%r9]", "%r9", 0), ("[%r9+8]", "%r9", 8), ("[%r9+-8]", "%r9", -8), ("[ %r9 + 0 ]", "%r9", 0),
        ("[global_smem]", "global_smem", 0), ("[global_smem+16]", "global_smem", 16), ("[16]", "", 16), ("[-4]", "", -4),
    ):  # fmt: skip
        assert address(f"%r1, {written}") == (base, offset), written
    with pytest.raises(AssertionError, match="no address"):
        address("%r1, %r2")
    ptx = """
        ld.shared.v2.b32 {%r2, %r3}, [global_smem+8];
        @%p1 ld.shared.b32 %r4, [ %r9 + 4 ];
        ld.shared.b32 %r5, [16];
        ld.shared.b32 %r6, [20];
        fma.rn.f32 %r7, %r2, %r5, %r1;
        fma.rn.f32 %r1, %r3, %r6, %r7;
        fma.rn.f32 %r8, %r2, %r5, %r10;
        fma.rn.f32 %r10, %r4, %r6, %r8;
"""
    found = {chain.start: chain for chain, _ in chains(ptx)}
    assert in_order(found["%r1"].left) and found["%r1"].left[0] == ("global_smem", 8)
    assert in_order(found["%r1"].right) and found["%r1"].right[0] == ("", 16)
    assert not in_order(found["%r10"].left)  # of two bases


@pytest.fixture
def tunes(monkeypatch):
    """What each run of `count_tiles` was given, those that choose a tile and the one after them: (trial, live, out, nan_at)."""
    runs, trial = [], []

    def bench(run, quantiles):
        trial.append(True)
        run()
        trial.clear()
        return [1.0] * len(quantiles)

    def run(self, *args, **_):
        given = dict(zip(self.arg_names, args, strict=False))
        out, nan_at, live = given["out"], given["nan_at"], given["live"]
        runs.append((bool(trial), live if live is None else int(live), int(out.abs().sum()), int(nan_at)))
        out.add_(1)
        nan_at.fill_(7)

    monkeypatch.setattr(JITFunction, "run", run)
    for name, value in {"do_bench": bench, "cache": {}}.items():
        monkeypatch.setitem(vars(rank.count_tiles), name, value)
    return runs


def test_tiles_are_chosen_for_each_size(tunes):
    """A call with few users does not choose for one with many; and the sizes are few."""

    def trials(b, c):
        tunes.clear()
        factors = bd.Factors(torch.zeros(b, 4), torch.zeros(100, 4))
        call(rank.count_above, factors, torch.zeros(b, c), torch.zeros(b, c, dtype=torch.int64), None, 0)
        assert tunes[-1][0] is False
        return len(tunes) - 1

    assert trials(5, 64) == len(rank.EXACT) == trials(1024, 64)
    assert trials(7, 64) == trials(1000, 200) == trials(4000, 512) == trials(1024, 64) == 0
    assert trials(1024, 20) == len(rank.EXACT)
    for b, c in product((1, 17, 64, 65, 256, 257, 2000), (1, 32, 33, 512)):
        trials(b, c)
    assert len(rank.count_tiles.cache) == 8
    assert {rank.size_class(b, c) for b in range(2000) for c in range(0, 600, 8)} == set(range(8))


def test_tiles_are_chosen_with_all_rows(tunes):
    """Where nobody is live all tiles are equally fast. The run after the trials is as if there had been none."""
    live, out, nan_at = torch.tensor(0), torch.zeros(9, 33, dtype=torch.int32), torch.tensor(-1)
    factors, ties = bd.Factors(torch.zeros(9, 4), torch.zeros(100, 4)), torch.zeros(9, 33, dtype=torch.int64)
    rank.count(out, nan_at, 100, factors, None, torch.zeros(9, 33), ties, live=live)
    assert tunes == [(True, 9, 0, -1)] * len(rank.EXACT) + [(False, 0, 0, -1)]
    assert live == 0


def test_a_spill_is_seen():
    """Of a tile too large for its warps; and what fits on no multiprocessor."""
    sizes = {"users": 64, "items": 128, "warps": 2, "registers": 255}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "EXACT", [rank.tile_config(**sizes)])
        with compiling(90) as kernels:
            dict(call_sites())["rank ieee"]()
    assert kernels[0].spills() > 0
    assert (
        blocks_of_sm(90, 8, 255, 0) == 1 and blocks_of_sm(90, 16, 255, 0) == 0 and blocks_of_sm(80, 4, 32, 1 << 18) == 0
    )


def test_reading_assembly():
    sass = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.U16.CONSTANT R4, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/                   FFMA R0, R1, R2, R0 ;
        /*0030*/              @P0 BRA `(.L_x_0) ;
        /*0040*/                   BRA `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0060*/                   EXIT ;
"""
    assert [dict(loop) for loop in loops(sass, innermost=True)] == [{"FFMA": 1, "BRA": 1}]
    assert [loop.total() for loop in loops(sass)] == [2, 4]
    assert [width(m) for m in (".E.128", ".E.64.CONSTANT", ".E", ".E.U16.CONSTANT", ".E.S8")] == [128, 64, 32, 16, 8]
