"""What each CUDA kernel does for a workload: its loops, as compiled, times the rounds that its launch gives them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import ceil, floor
from statistics import fmean
from typing import Protocol

import shapes
from costs import GPUS, Launch, Phase, Work, banks, div_up, work_of
from gpus import WARP, blocks_of_sm
from sass import Flow, Loop, count
from shapes import THREADS, Part, Tile
from wavefronts import NOBODY, of_accesses, recorded

WARPS = THREADS // WARP  # of a block
DEPTH = 16  # factors of a piece of the product


class Kernel(Protocol):
    """What is read of `compiled.Kernel`."""

    cc: int
    warps: int
    registers: int
    shared: int
    sass: str


Kernels = Mapping[str, Kernel]  # by their names in the library


def places(kernel: Kernel) -> int:
    """Blocks that a multiprocessor holds at once."""
    return blocks_of_sm(kernel.cc, kernel.warps, kernel.registers, kernel.shared)


@cache
def reads(tile: Tile) -> float:
    """Wavefronts of a warp that reads a piece of both tables, four factors at a time."""

    def of(warp: int) -> int:
        rows = [rows[WARP * warp : WARP * (warp + 1)] for rows in tile.user_rows + tile.item_rows]
        return sum(banks([4 * tile.pitch * r for r in lanes], 16) for lanes in rows)

    return DEPTH // 4 * fmean(map(of, range(WARPS)))


@cache
def flow_of(sass: str) -> Flow:
    return Flow(sass)


@cache
def round_of(sass: str, tile: Tile, **wanted: int) -> Work:
    """Of the product's loop (product.h), by a warp: the copies for a piece, its multiplications, and what else is wanted.

    The copies of a piece may be fewer than threads, so that a warp has one more or less.
    """
    main = flow_of(sass).loop(FFMA=tile.sums * DEPTH)
    copies = (tile.users + tile.items) * DEPTH // 4 / THREADS
    low, high = (
        work_of(
            main.round({"FFMA": tile.sums * DEPTH, "LDGSTS": n, "LDGSTS.128": n, "loop": 0} | wanted).instructions,
            {"LDS.128": reads(tile)},
        )
        for n in (floor(copies), ceil(copies))
    )
    return low + (high - low) * (copies - floor(copies))


def pieces(tile: Tile, users: int, items: int, d: int) -> tuple[int, int]:
    """How many tiles the warps of a launch go through, and how many pieces of them."""
    tiles = div_up(users, tile.users) * div_up(items, tile.items) * WARPS
    return tiles, tiles * max(1, div_up(d, DEPTH))


# ---- rank ----

RANK_TILES = ((64, 64), (32, 128), (16, 256), (8, 128))  # `count_exactly` in rank.cu: the first with levels enough


@cache
def searched(thresholds: int) -> float:
    """Wavefronts of a warp for the search of 32 scores. Lanes that count in one word share it, as when they read it: the
    compiled increment is ATOMS.POPC.INC, which adds how many they are.
    """
    addresses = recorded(thresholds)
    counting = (addresses & 1).bool() & (addresses != NOBODY)
    return float(of_accesses(addresses.where(~counting, addresses - 1)).sum() / counting.any(1).sum())


def rank(kernels: Kernels, users: int, items: int, d: int, thresholds: int) -> Launch:
    """The last round of a tile also searches: besides two loads for each user of a thread, one for each score and level from
    the second on, and an addition to a bin of shared memory.
    """
    levels = max(1, (thresholds - 1).bit_length())
    tile = next(t for t in (shapes.tile(*of) for of in RANK_TILES) if t.levels >= levels)
    kernel = kernels[f"count_above_kernel<Fma<float, {tile.users}, {tile.items}>>"]
    vectors = DEPTH // 4 * (tile.thread_users + tile.thread_items)
    piece = round_of(kernel.sass, tile, ATOMS=0, LDS=vectors)
    last = round_of(kernel.sass, tile, ATOMS=tile.sums, LDS=vectors + 2 * tile.thread_users + tile.sums * (levels - 1))
    search = replace((last - piece) * (1 / tile.sums), shared=searched(thresholds))
    tiles, all_pieces = pieces(tile, users, items, d)
    others, at_once = div_up(users, tile.users), places(kernel)
    return Launch(
        f"rank, d = {d}, {named(thresholds)}",
        (
            Phase(f"{DEPTH} factors of {tile.sums} scores", piece, all_pieces),
            Phase("search of a score", search, tiles * tile.sums),
        ),
        others * shapes.ranges(items, tile.items, others, at_once * GPUS[kernel.cc].sms),
        at_once,
        4 * d * (items + users),
    )


def named(thresholds: int) -> str:
    return f"{thresholds} threshold{'s' if thresholds > 1 else ''}"


BLOCK_LEVELS, BLOCK_SCORES = 12, 4  # `Given` in rank.cu: levels of a search at most, scores of a thread


def rank_of_block(kernels: Kernels, users: int, items: int, thresholds: int) -> Launch:
    """The same search of scores that are read from memory; at levels that are not needed no load is made."""
    kernel, levels = kernels["count_above_block_kernel"], max(1, (thresholds - 1).bit_length())
    loop = flow_of(kernel.sass).loop(ATOMS=BLOCK_SCORES)
    loads = count(loop.all(), "LDS") - BLOCK_SCORES * (BLOCK_LEVELS - levels)
    wanted = {"ATOMS": BLOCK_SCORES, "LDG": BLOCK_SCORES, "LDS": loads, "loop": 0}
    search = replace(work_of(loop.round(wanted).instructions) * (1 / BLOCK_SCORES), shared=searched(thresholds))
    tile, at_once = BLOCK_SCORES * THREADS, places(kernel)
    return Launch(
        f"search, {named(thresholds)}",
        (Phase("search of a score", search, users * div_up(items, tile) * tile / WARP),),
        users * shapes.ranges(items, tile, users, at_once * GPUS[kernel.cc].sms),
        at_once,
        4 * items * users,
    )


# ---- topk ----

TOPK_TILE = (64, 128)
HALVINGS = 20  # of the key space, about, until a bound is found that k keys and few more reach (select.h)


def topk(kernels: Kernels, users: int, items: int, d: int, k: int) -> list[Launch]:
    """Of each part of the catalog: the product and what passes, and the merge of its lists."""
    at_once = places(kernels["topk_kernel<float>"]) * GPUS[kernels["topk_kernel<float>"].cc].sms
    return [
        launch
        for part in shapes.parts(users, items, k, at_once)
        for launch in (select(kernels, users, d, k, part), merge(kernels, users, k, part))
    ]


def passing(k: int, part: Part) -> float:
    """Items that pass the bar of a user: of the first part all, later those among the k best of what came before."""
    return k * (part.last - part.first) / part.first if part.first else part.last


def select(kernels: Kernels, users: int, d: int, k: int, part: Part) -> Launch:
    kernel, tile, n = kernels["topk_kernel<float>"], shapes.tile(*TOPK_TILE), part.last - part.first
    piece = round_of(kernel.sass, tile, FSETP=0)
    none, one = (round_of(kernel.sass, tile, FSETP=tile.sums, ATOMS=passing) for passing in (0, 1))
    tiles, all_pieces = pieces(tile, users, n, d)
    # Later than in the first part, scarcely two lanes of a warp have one that passes at the same time.
    inserts = users * passing(k, part) / (1 if part.first else WARP)
    return Launch(
        f"topk, {users:,} users, k = {k}, items to {part.last:,}",
        (
            Phase(f"{DEPTH} factors of {tile.sums} scores", piece, all_pieces),
            Phase("bar of a score", (none - piece) * (1 / tile.sums), tiles * tile.sums),
            Phase("score that passes", one - none, inserts),
        ),
        div_up(users, tile.users) * part.ranges,
        places(kernel),
        4 * d * (n + users),
    )


def each(loop: Loop, kind: str) -> Work:
    """A round's share of one such instruction: loops are unrolled."""
    return work_of(loop.all()) * (1 / count(loop.all(), kind))


def merge(kernels: Kernels, users: int, k: int, part: Part) -> Launch:
    kernel = kernels["merge_kernel"]
    flow = flow_of(kernel.sass)
    lanes = THREADS  # that read a list
    while lanes > 8 and lanes * part.ranges > THREADS:
        lanes //= 2
    read = flow.loop(**{"BAR.RED": 2}).round({"BAR.RED": 2, "LDG.64": 1, "ATOMS": 1, "loop": 0})
    rounds = div_up(part.ranges * lanes, THREADS) * (div_up(ceil(passing(k, part) / part.ranges), lanes) + 1)
    keys, sorted_keys = min(passing(k, part) + k, 2048), 1 << (k + k // 8 - 1).bit_length()
    halving = flow.loop(REDUX=1).round({"REDUX": 1, "BAR": 2, "loop": 1, "loop.LDS": 1})
    half = work_of(halving.instructions) * WARPS + each(halving.loops[0], "LDS.64") * (keys / WARP)
    steps = [p for p in flow.loops if count(p.all(), "BAR") == 1 and count(p.all(), "STS.64") > count(p.all(), "ATOMS")]
    step = min(steps, key=lambda p: p.all().total()).round({"BAR": 1, "LDS.64": 0, "loop": 1, "loop.LDS": 1})
    sort = work_of(step.instructions) * WARPS + each(step.loops[0], "LDS.64") * (sorted_keys / WARP)
    depth = sorted_keys.bit_length() - 1
    return Launch(
        f"merge, {users:,} users, k = {k}, items to {part.last:,}",
        (
            Phase("round of reading lists", work_of(read.instructions), users * rounds * WARPS),
            Phase("half of the key space, by a block", half, users * HALVINGS * (keys > sorted_keys)),
            Phase("step of a sort, by a block", sort, users * depth * (depth + 1) // 2),
        ),
        users,
        places(kernel),
    )
