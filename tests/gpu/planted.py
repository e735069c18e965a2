"""Faults for the CUDA kernels: what is wrong in them, who finds it, and what the report says.

All of one sanitizer are planted in one copy of the sources, each behind a condition, and the library's variable
`bdkernels_planted` says which one is there: so the kernels are compiled once for all, and for none, which is 0.
"""

from pathlib import Path
from typing import NamedTuple

CALLS = {
    "values": "cuda.values(torch.zeros(500, dtype=int), bd.Seen(torch.tensor([0, 1, 9]), torch.tensor([4])), 9)",
    "listed": "bd.score(bd.Factors(torch.ones(3, 32), torch.ones(40, 32)), torch.zeros(3, 2, dtype=int), backend='cuda')",
    "block": "cuda.score_block(bd.Factors(torch.ones(3, 36), torch.ones(70, 36)))",
    "count": "bd.count_above_block(torch.ones(3, 40), torch.zeros(3, 3), torch.zeros(3, 3, dtype=int), backend='cuda')",
    "ties": "bd.count_above_block(torch.ones(3, 40), torch.ones(3, 3), torch.zeros(3, 3, dtype=int), backend='cuda')",
    "sample": "[cuda.propose(0, 0, torch.zeros(1, dtype=int), 0, 8, 9, None),"
    " cuda.accept(0, 0, torch.zeros(1, dtype=int), 0, *[torch.ones(1, 8, dtype=int)] * 2, torch.ones(1, dtype=int),"
    " ('uniform', 0.0, False), False)]",
    "round": "cuda.draw_round(first_round(bd.Factors(torch.randn(2, 40), torch.ones(9, 40)), bd.Factors(torch.ones(2, 3),"
    " torch.ones(9, 3)), 290, bd.Seen(torch.tensor([0, 1, 1]), torch.tensor([4])), (('exp', 9.0, False),"
    " ('uniform', 0.0, False))), 0, 300)",
    "topk": "bd.topk(bd.Factors(torch.ones(2, 1), torch.arange(600.0)[:, None] * 397 % 600), 40, backend='cuda')",
    "merge": "[setattr(cuda, 'PLACES', 32),"
    " bd.topk(bd.Factors(torch.ones(2, 1), torch.arange(4096.0)[:, None] * 397 % 4096), 90, backend='cuda')]",
    "step": "bd.fused_loss(torch.ones(1, 5), torch.ones(9, 5), None, *batch, sparse=False, backend='cuda')",
    "shares": "bd.fused_loss(torch.ones(1, 5), torch.ones(9, 5), None, *batch, cf='softmax', distill_kind='listwise',"
    " sparse=False, backend='cuda')",
    "cores": "[os.environ.update(BDKERNELS_PRECISION='bf16'),"
    " bd.rank(bd.Factors(torch.ones(3, 36), torch.ones(70, 36)), torch.zeros(3, 2, dtype=int), backend='cuda')]",
    "update": "bd.fused_step(bd.SGD((torch.ones(1, 5), torch.ones(9, 5)), lr=0.1), *batch, backend='cuda')",
    "pieces": "bd.fused_step(bd.SGD((torch.ones(1, 5), torch.ones(1, 5)), lr=0.1), *many, backend='cuda')",
}
PREPARED = """
import os, sys, torch, bdkernels as bd
sys.path.insert(0, "tests/gpu")
from by_steps import first_round
from bdkernels.backends import cuda
cuda.PLACES, cuda.FIRST_PART = 1, 4096  # lists that overflow
bd.SGD((torch.ones(1, 1), torch.ones(1, 1)), lr=0.1)  # the first optimizer imports for seconds, here once for all children
one = torch.zeros(3, dtype=int)
batch = one, one, torch.ones(3, 1, dtype=int), bd.Draws(torch.full((3, 2), 2), torch.ones(3, 2, dtype=bool)), torch.ones(3, 2)
all_one, none = torch.zeros(65, dtype=int), torch.zeros(65, 0)  # touches of a user: one more than a piece has
many = all_one, all_one, all_one[:, None], bd.Draws(none.long(), none.bool()), none
"""


class Fault(NamedTuple):
    """What in which source becomes what, where FAULT stands for a condition; the call of CALLS that meets it."""

    says: str
    source: str
    right: str
    wrong: str
    call: str

    @property
    def sanitizer(self) -> str:
        """Who finds it. The simulator's own checks are in every build."""
        return "thread" if self.says == "data race" else "address"


GLOBAL, SHARED, RACE = "heap-buffer-overflow", "use-after-poison", "data race"
RETURNED = "a barrier after some threads of the block have returned"
NEXT_PIECE = "__syncthreads();\n      if (piece == 0) {"
LAST_PIECE = "item0 += kItems;\n      }\n      __syncthreads();"
CLEARED = "bins[slot] = 0;\n    });\n    __syncthreads();"
COUNTED = "flush() const {\n    __syncthreads();"
FAULTS = {
    "values: ids past the last": Fault(GLOBAL, "values.cu", "at < n_ids &&", "(FAULT || at < n_ids) &&", "values"),
    "values: a row too many": Fault(GLOBAL, "values.cu", "if (row < rows) {", "if (FAULT || row < rows) {", "values"),
    "values: rows that are not in order": Fault(
        GLOBAL,
        "values.cu",
        "inside ? begin + threadIdx.x : end;",
        "(FAULT || inside) ? begin + threadIdx.x : end;",
        "values",
    ),
    "score: an item too many": Fault(
        GLOBAL, "score.cu", "if (pair < pairs) out[pair]", "if (FAULT || pair < pairs) out[pair]", "listed"
    ),
    "score: beyond the tile": Fault(
        SHARED,
        "listed.h",
        "tile[r * (kWarp + 1) + lane] =",
        "tile[FAULT ? (r + lane) * 129 : r * (kWarp + 1) + lane] =",
        "listed",
    ),
    "product: rows past the table": Fault(
        GLOBAL, "product.h", "from, row + r < rows)", "from, FAULT || row + r < rows)", "block"
    ),
    "product: past the stage": Fault(
        SHARED, "product.h", "r < kRows; r += kStep", "r < kRows + (FAULT ? kStep : 0); r += kStep", "block"
    ),
    "product: no wait for the copies": Fault(
        SHARED, "product.h", "copies_wait<1>()", "(FAULT ? void() : copies_wait<1>())", "block"
    ),
    "product: a wait for too few copies": Fault(
        SHARED, "product.h", "copies_wait<1>()", "(FAULT ? copies_wait<2>() : copies_wait<1>())", "block"
    ),
    "product: no barrier before the multiplication": Fault(
        RACE, "product.h", NEXT_PIECE, f"if (!FAULT) {NEXT_PIECE}", "block"
    ),
    "product: no barrier after the multiplication": Fault(
        RACE, "product.h", LAST_PIECE, LAST_PIECE.replace("__sync", "if (!FAULT) __sync"), "block"
    ),
    "product: a barrier of some": Fault(
        "threads of one block wait at different barriers",
        "product.h",
        "load_next(stages[0]);",
        "if (FAULT && threadIdx.x < 40) __syncthreads();\n    load_next(stages[0]);",
        "block",
    ),
    "mma: operands past the stages": Fault(
        SHARED, "mma.h", "(user_of(i), k + 4", "(user_of(i) + (FAULT ? 100 * kUsers : 0), k + 4", "cores"
    ),
    "mma: some lanes": Fault(
        "a barrier or warp collective is not reached by every thread",
        "mma.h",
        "mma<Operand>(a, b,",
        "if (!FAULT || threadIdx.x % 32 < 8) mma<Operand>(a, b,",
        "cores",
    ),
    "rank: no barrier before the search": Fault(
        RACE, "histogram.h", CLEARED, CLEARED.replace("__sync", "if (!FAULT) __sync"), "count"
    ),
    "rank: no barrier before the bins are read": Fault(
        RACE, "histogram.h", COUNTED, COUNTED.replace("__sync", "if (!FAULT) __sync"), "count"
    ),
    "rank: a barrier of some": Fault(
        RETURNED, "histogram.h", COUNTED, COUNTED.replace("__sync", "if (!FAULT || threadIdx.x < 40) __sync"), "count"
    ),
    "rank: a search past its row": Fault(
        SHARED, "histogram.h", "load_shared(row + 4)", "load_shared(row + (FAULT ? 4000 : 4))", "count"
    ),
    "rank: bins past the last": Fault(
        SHARED, "histogram.h", ": nowhere) + to_bins", ": nowhere) + to_bins * (FAULT ? 9 : 1)", "count"
    ),
    "rank: keys past the last": Fault(
        GLOBAL, "histogram.h", "row < rows && number < looked;", "row < rows && (FAULT || number < looked);", "count"
    ),
    "rank: ties among keys past the last": Fault(
        GLOBAL, "histogram.h", "position(keys(row), looked,", "position(keys(row), looked + (FAULT ? 9 : 0),", "ties"
    ),
    "rank: thresholds past the last": Fault(
        GLOBAL, "rank.cu", "if (at < n) keys[at] =", "if (FAULT || at < n) keys[at] =", "count"
    ),
    "rank: a sum of some lanes": Fault(
        "a barrier or warp collective is not reached by every thread",
        "rank.cu",
        "if (row >= rows) return;",
        "if (row >= rows || (FAULT && lane > 7)) return;",
        "count",
    ),
    "rank: all counts in one place": Fault(
        RACE, "rank.cu", "query.counts[row * query.c +", "query.counts[FAULT ? 0 : row * query.c +", "count"
    ),
    "sample: proposals past the last": Fault(
        GLOBAL, "sample.cu", "out[at] = n > 0 ?", "out[at + (FAULT ? 1 : 0)] = n > 0 ?", "sample"
    ),
    "sample: all accept in one place": Fault(
        RACE, "sample.cu", "out[at] = accepts(", "out[FAULT ? 0 : at] = accepts(", "sample"
    ),
    "round: a proposal too many": Fault(
        GLOBAL,
        "rounds.cu",
        "i < c; i += kThreads) {\n    scratch",
        "i < c + (FAULT ? 1 : 0); i += kThreads) {\n    scratch",
        "round",
    ),
    "round: draws past the last": Fault(GLOBAL, "rounds.cu", "if (at < k)", "if (FAULT || at < k)", "round"),
    "round: keys past the list": Fault(
        SHARED, "rounds.cu", "keys[i] = i < c", "keys[i + (FAULT ? 5000 : 0)] = i < c", "round"
    ),
    "round: bins past the row": Fault(
        SHARED, "rounds.cu", "above += bins(m)[c - i]", "above += bins(m)[c - i + (FAULT ? 9999 : 0)]", "round"
    ),
    "round: no barrier in the sort": Fault(
        RACE,
        "rounds.cu",
        "__syncthreads();\n      for (int pair",
        "if (!FAULT) __syncthreads();\n      for (int pair",
        "round",
    ),
    "round: no barrier after the bins": Fault(
        RACE,
        "rounds.cu",
        "__syncthreads();\n  }\n\n  // A NaN among",
        "if (!FAULT) __syncthreads();\n  }\n\n  // A NaN among",
        "round",
    ),
    "round: no barrier before the ranks are read": Fault(
        RACE, "rounds.cu", "__syncthreads();  // before it", "if (!FAULT) __syncthreads();  // before it", "round"
    ),
    "round: no barrier in the sum": Fault(
        RACE, "rounds.cu", "__syncthreads();\n  Sums out", "if (!FAULT) __syncthreads();\n  Sums out", "round"
    ),
    "round: all rows in one place of the list": Fault(
        RACE,
        "rounds.cu",
        "round.next_rows[atomicAdd(",
        "round.next_rows[FAULT ? 0 : atomicAdd(",
        "round",
    ),
    "round: a barrier of some": Fault(
        "threads of one block wait at different barriers",
        "rounds.cu",
        "closing.read_bins();",
        "if (FAULT && threadIdx.x < 40) __syncthreads();\n  closing.read_bins();",
        "round",
    ),
    "round: a shuffle of some": Fault(
        "a barrier or warp collective is not reached by every thread",
        "rounds.cu",
        "const int below = __shfl",
        "if (FAULT && lane > 8) continue;\n    const int below = __shfl",
        "round",
    ),
    "topk: users past the tile": Fault(
        SHARED, "topk.cu", "i < kUsers; i += kThreads", "i < kUsers + (FAULT ? 256 : 0); i += kThreads", "topk"
    ),
    "topk: lists that are never cut": Fault(GLOBAL, "topk.cu", "full |= at >=", "full |= !FAULT && at >=", "topk"),
    "topk: no barrier before the sizes are told": Fault(
        RACE, "topk.cu", "cut(0, limit);\n  __sync", "cut(0, limit);\n  if (!FAULT) __sync", "topk"
    ),
    "topk: a barrier of some": Fault(
        "threads of one block wait at different barriers",
        "topk.cu",
        "if (__syncthreads_or(full))",
        "if (FAULT && threadIdx.x < 40) __syncthreads();\n    if (__syncthreads_or(full))",
        "topk",
    ),
    "topk: no barrier before kept keys are moved": Fault(
        RACE,
        "topk.cu",
        "__syncwarp();  // all have read what",
        "if (!FAULT) __syncwarp();  // all have read what",
        "topk",
    ),
    "topk: no barrier before a size is written": Fault(
        RACE,
        "topk.cu",
        "__syncwarp();  // all have read the",
        "if (!FAULT) __syncwarp();  // all have read the",
        "topk",
    ),
    "select: a sum of some": Fault(
        "lanes of one mask meet at different collectives",
        "select.h",
        "const int reached =",
        "if (FAULT && threadIdx.x % 32 >= 16) break;\n    const int reached =",
        "topk",
    ),
    "topk: more keys of a user than there is room for": Fault(
        SHARED, "topk.cu", "return at >= room", "return !FAULT && at >= room", "merge"
    ),
    "topk: one more than k": Fault(
        GLOBAL, "topk.cu", "i < k; i += kThreads) {", "i < k + (FAULT ? 1 : 0); i += kThreads) {", "merge"
    ),
    "topk: no barrier before the chosen are read": Fault(
        RACE,
        "topk.cu",
        "__syncthreads();\n    const int kept",
        "if (!FAULT) __syncthreads();\n    const int kept",
        "merge",
    ),
    "select: no barrier in a sum of the block": Fault(
        RACE, "select.h", "__syncthreads();\n    int all", "if (!FAULT) __syncthreads();\n    int all", "merge"
    ),
    "select: no barrier between the steps of a sort": Fault(
        RACE,
        "select.h",
        "__syncthreads();\n      for (int pair",
        "if (!FAULT) __syncthreads();\n      for (int pair",
        "merge",
    ),
    "select: pairs past the keys": Fault(
        SHARED, "select.h", "pair < size / 2;", "pair < size / 2 * (FAULT ? 40 : 1);", "merge"
    ),
    "loss: a row too many": Fault(
        GLOBAL, "loss.cu", "if (row >= batch.b) return;", "if (!FAULT && row >= batch.b) return;", "step"
    ),
    "loss: no warp barrier": Fault(
        RACE,
        "terms.h",
        "__syncwarp();  // every lane has read",
        "if (!FAULT) __syncwarp();  // every lane has read",
        "step",
    ),
    "loss: no warp barrier in the softmax": Fault(
        RACE,
        "terms.h",
        "__syncwarp();  // no lane reads",
        "if (!FAULT) __syncwarp();  // no lane reads",
        "shares",
    ),
    "loss: a share too many": Fault(
        GLOBAL,
        "terms.h",
        "j < batch.k; j += kWarp) {\n    const float x = slopes[j], g",
        "j < batch.k + (FAULT ? 1 : 0); j += kWarp) {\n    const float x = slopes[j], g",
        "shares",
    ),
    "loss: a maximum of some": Fault(
        "lanes of one mask meet at different collectives",
        "terms.h",
        "of.top = warp_max(of.top);",
        "if (!FAULT || lane < 8) of.top = warp_max(of.top);",
        "shares",
    ),
    "loss: past the parts of the sum": Fault(
        SHARED, "loss.cu", "p < 2 * kWarps;", "p < 2 * kWarps + (FAULT ? 1 : 0);", "step"
    ),
    "loss: no barrier in the sum": Fault(
        RACE,
        "loss.cu",
        "__syncthreads();\n  if (threadIdx.x != 0) return;",
        "if (!FAULT) __syncthreads();\n  if (threadIdx.x != 0) return;",
        "step",
    ),
    "loss: a barrier of some in the sum": Fault(
        RETURNED,
        "loss.cu",
        "double sums[2] = {0, 0};",
        "if (FAULT && threadIdx.x >= 96) return;\n  double sums[2] = {0, 0};",
        "step",
    ),
    "keys: users past the last": Fault(
        GLOBAL, "loss.cu", "if (at < items + batch.b) {", "if (FAULT || at < items + batch.b) {", "update"
    ),
    "keys: all in one place": Fault(
        RACE,
        "loss.cu",
        "if (keys) keys[at] = static_cast<Key>(id);",
        "if (keys) keys[FAULT ? 0 : at] = static_cast<Key>(id);",
        "update",
    ),
    "update: touches past the last": Fault(
        GLOBAL, "loss.cu", "return at < n && keys", "return (FAULT || at < n) && keys", "update"
    ),
    "update: two warps change a row": Fault(
        RACE, "loss.cu", "const bool first = begin == 0 ||", "const bool first = FAULT || begin == 0 ||", "update"
    ),
    "update: a ballot of some": Fault(
        "lanes of one mask meet at different collectives",
        "loss.cu",
        "found = __popc(__ballot_sync(kAllLanes, mine));",
        "if (!FAULT || k < d) found = __popc(__ballot_sync(kAllLanes, mine));",
        "update",
    ),
    "update: a sum past the last piece": Fault(
        GLOBAL,
        "loss.cu",
        "const bool there = first + j < pieces;",
        "const bool there = FAULT || first + j < pieces;",
        "pieces",
    ),
    "update: two warps finish a row": Fault(
        RACE,
        "loss.cu",
        "if (at > 0 && update.keys[at - kPiece] == key) return;",
        "if (!FAULT && at > 0 && update.keys[at - kPiece] == key) return;",
        "pieces",
    ),
    "update: a count of pieces by some": Fault(
        "a barrier or warp collective is not reached by every thread",
        "loss.cu",
        "found = __popc(__ballot_sync(kAllLanes, update.touches(",
        "if (FAULT && threadIdx.x % 32 > 8) return;\n    found = __popc(__ballot_sync(kAllLanes, update.touches(",
        "pieces",
    ),
}
NUMBERS = {name: i for i, name in enumerate(FAULTS, 1)}


def plant(root: Path, sanitizer: str) -> tuple[str, ...]:
    """Every fault that this sanitizer finds, in the sources under `root`. Returns flags for the compiler of the kernels."""
    for name, fault in FAULTS.items():
        if fault.sanitizer != sanitizer:
            continue
        source = root / "csrc/cuda" / fault.source
        text = source.read_text()
        assert text.count(fault.right) == 1, name
        source.write_text(
            text.replace(fault.right, fault.wrong.replace("FAULT", f"(bdkernels_planted == {NUMBERS[name]})"))
        )
    (root / "planted.h").write_text(
        'extern "C" { __attribute__((visibility("default"))) inline int bdkernels_planted = 0; }\n'
    )
    return "-include", "planted.h"
