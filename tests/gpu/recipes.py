"""What each CUDA kernel does for a workload: its loops, as compiled, times the rounds that its launch gives them.

The shapes of launches are those of csrc/cuda, which sets them on the host: `Split` in product.h, `TopKPlan` in topk.cu.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import NamedTuple, Protocol

from costs import Launch, Phase, Work, banks, div_up, work_of
from gpus import blocks_of_sm
from sass import Flow, Loop, count

WARPS = 8  # of a block
DEPTH = 16  # factors of a piece of the product
BLOCKS = 2048  # that a launch aims at: bdkernels/backends/cuda.py


class Kernel(Protocol):
    """What is read of `compiled.Kernel`."""

    cc: int
    warps: int
    registers: int
    shared: int
    sass: str


Kernels = Mapping[str, Kernel]  # by their names in the library


def places(kernel: Kernel) -> int:
    return blocks_of_sm(kernel.cc, kernel.warps, kernel.registers, kernel.shared)


class Tile(NamedTuple):
    """Of `Fma` in product.h: users and items of a block, four users a thread."""

    users: int
    items: int

    @property
    def rows(self) -> int:
        return self.users // 4

    @property
    def columns(self) -> int:
        return 32 * WARPS // self.rows

    @property
    def sums(self) -> int:
        """Scores of a thread."""
        return self.users * self.items // (32 * WARPS)

    @property
    def copies(self) -> float:
        """16-byte copies of a thread for a piece of both tables, on average."""
        return (self.users + self.items) * DEPTH // 4 / (32 * WARPS)

    def place(self, thread: int) -> tuple[int, int]:
        """Row of users and column of items where the first of a thread's scores lies."""
        warp, lane = divmod(thread, 32)
        users = 4 if self.items // self.columns >= 8 else max(1, 32 // self.columns)  # of a warp
        columns = 32 // users
        row, column = (lane % 2 + lane // 16 * 2, lane // 2 % 8) if users == 4 else divmod(lane, columns)
        down, beside = divmod(warp, self.columns // columns)
        return down * users + row, beside * columns + column

    def rows_of_warp(self, warp: int) -> list[int]:
        """The first row of users of each lane."""
        return [self.place(t)[0] for t in range(32 * warp, 32 * warp + 32)]

    def reads(self) -> float:
        """Wavefronts of a warp for a piece: it reads rows of 16 floats and 4 more, four at a time."""

        def of(warp: int) -> int:
            lanes = [self.place(t) for t in range(32 * warp, 32 * warp + 32)]
            users = [[row + i * self.rows for row, _ in lanes] for i in range(4)]
            items = [[column + j * self.columns for _, column in lanes] for j in range(self.items // self.columns)]
            return sum(banks((80 * r for r in rows), 16) for rows in users + items) * DEPTH // 4

        return fmean(map(of, range(WARPS)))


def tile_of(kernel: str) -> Tile:
    found = re.search(r"Fma<\w+, (\d+), (\d+)>", kernel)
    assert found, kernel
    return Tile(int(found[1]), int(found[2]))


def between(way: Callable[[int], Work], n: float) -> Work:
    """For `n` on average: some warps do one more than others."""
    least, most = way(math.floor(n)), way(math.ceil(n))
    return least + (most - least) * (n - math.floor(n))


class Product(NamedTuple):
    """Of a warp: rounds of the loop in product.h, of a warp: a piece of 16 factors, and what is more in the last of a tile."""

    piece: Work
    last: Work  # without `loops`
    loops: tuple[Loop, ...]


@cache
def flow_of(sass: str) -> Flow:
    return Flow(sass)


@cache
def product(sass: str, tile: Tile, taken: tuple[tuple[str, int], ...]) -> Product:
    """`taken`: what the scores of a tile are made to do, of each kind."""
    main = flow_of(sass).loop(FFMA=tile.sums * DEPTH)
    plain = {"FFMA": tile.sums * DEPTH} | {kind: 0 for kind, _ in taken} | {"loop": 0}
    last = {"FFMA": tile.sums * DEPTH, "loop.LDGSTS": 0} | dict(taken)
    reads = {"LDS.128": tile.reads()}

    def work(wanted: dict[str, int]) -> Work:
        return between(lambda n: work_of(main.round(wanted | copies(n)).instructions, reads), tile.copies)

    piece = work(plain)
    return Product(piece, work(last) - piece, main.round(last | copies(math.ceil(tile.copies))).loops)


def copies(n: int) -> dict[str, int]:
    """Of 16 bytes, and no others: rows that are aligned to as many."""
    return {"LDGSTS": n, "LDGSTS.128": n}


# ---- rank ----


def tile_for(thresholds: int) -> Tile:
    """`count_exactly` in rank.cu."""
    return Tile(64, 64) if thresholds <= 128 else Tile(16, 128) if thresholds <= 512 else Tile(8, 128)


def ranges_of(items: int, tile: Tile, others: int) -> int:
    """Into how many ranges of items a launch is split that has so many blocks for each: `Split` in product.h."""
    parts = max(1, min(65535, BLOCKS // others))
    return div_up(items, div_up(div_up(items, tile.items), parts) * tile.items)


@cache
def search_wavefronts(tile: Tile, thresholds: int, trials: int = 200) -> list[float]:
    """Wavefronts of a warp in each step of the search of one score a lane, then of the comparison and the count at its end.

    From the addresses: thresholds in their order, rows of an odd length, random scores of the same distribution.
    """
    draw, pitch = random.Random(0), thresholds + 2 | 1
    steps: list[list[int]] = []
    for trial in range(trials):
        rows = {r: sorted(draw.random() for _ in range(thresholds)) for r in set(tile.rows_of_warp(trial % WARPS))}
        lanes = [(r, draw.random()) for r in tile.rows_of_warp(trial % WARPS)]
        half, left = half_of(thresholds), thresholds
        at, met = [half - 1] * 32, []
        while left > 0:
            met.append(banks(4 * (r * pitch + a) for (r, _), a in zip(lanes, at, strict=True)))
            left -= half
            following = half_of(left)
            at = [
                a + (following if rows[r][a] < score else following - half)
                for (r, score), a in zip(lanes, at, strict=True)
            ]
            half = following
        met += [banks(4 * (r * pitch + a + k) for (r, _), a in zip(lanes, at, strict=True)) for k in (0, -1)]
        steps.append(met)
    return [fmean(step) for step in zip(*steps, strict=True)]


def half_of(left: int) -> int:
    return (left + 1) // 2 if left > 1 else 1


def rank(kernels: Kernels, users: int, items: int, d: int, thresholds: int) -> Launch:
    tile = tile_for(thresholds)
    kernel = kernels[f"count_above_kernel<Fma<float, {tile.users}, {tile.items}>>"]
    wavefronts = search_wavefronts(tile, thresholds)
    searches = max(1, tile.sums // 8)
    made = product(kernel.sass, tile, (("ATOMS", tile.sums), ("loop.FSETP", searches)))
    user_tiles = div_up(users, tile.users)
    tiles, pieces = user_tiles * div_up(items, tile.items) * WARPS, max(1, div_up(d, DEPTH))
    steps = sum((work_of(loop.all()) for loop in made.loops), Work()) * (len(wavefronts) - 2)
    search = replace(made.last + steps, shared=tile.sums * sum(wavefronts)) * (1 / tile.sums)
    return Launch(
        f"rank, d = {d}, {thresholds} thresholds",
        (
            Phase(f"{DEPTH} factors of {tile.sums} scores", made.piece, tiles * pieces),
            Phase("search of a score", search, tiles * tile.sums),
        ),
        user_tiles * ranges_of(items, tile, user_tiles),
        places(kernel),
        4 * d * (items + users),
    )


# ---- topk ----

PLACES, TILE = 264, Tile(64, 128)


class Part(NamedTuple):
    """Of `TopKPlan` in topk.cu: items [first, end), and the ranges that they are cut into (`Split` in product.h)."""

    first: int
    end: int
    ranges: int
    tiles: int  # of a range

    def passing(self, k: int) -> float:
        """Items that pass the bar of a user: of the first part all, later those among the k best of what came before."""
        return k * (self.end - self.first) / self.first if self.first else self.end


def parts_of(users: int, items: int, k: int, places: int = PLACES) -> list[Part]:
    user_blocks = max(1, div_up(users, TILE.users))
    capacity = div_up(k + max(k // 2, 192), 32) * 32 + TILE.items
    most = max(1, 2**28 // (max(1, users) * capacity * 8))
    parts, first, end = [], 0, div_up(max(2048, 16 * k), TILE.items) * TILE.items
    while first < items:
        end = items if end > items // 8 else end
        tiles, best, least = div_up(end - first, TILE.items), (1, 1), math.inf
        for waves in range(1, 17):
            of_range = div_up(tiles, min(most, max(1, waves * places // user_blocks)))
            ranges = div_up(tiles, of_range)
            takes = div_up(ranges * user_blocks, places) * (of_range + 2)
            if takes < least:
                best, least = (ranges, of_range), takes
        parts.append(Part(first, end, *best))
        first, end = end, 32 * end
    return parts


def topk(kernels: Kernels, users: int, items: int, d: int, k: int) -> list[Launch]:
    """Of each part, the last first: the product and what passes, and the merge of its lists."""
    return [
        launch
        for part in reversed(parts_of(users, items, k))
        for launch in (select(kernels, users, d, k, part), merge(kernels, users, k, part))
    ]


def select(kernels: Kernels, users: int, d: int, k: int, part: Part) -> Launch:
    kernel, tile, user_blocks = kernels["topk_kernel<float>"], TILE, div_up(users, TILE.users)
    none, one = (
        product(kernel.sass, tile, (("FSETP", tile.sums), ("ATOMS", passing), ("loop", 0))) for passing in (0, 1)
    )
    tiles, pieces = user_blocks * div_up(part.end - part.first, tile.items) * WARPS, max(1, div_up(d, DEPTH))
    # Later than the first part, scarcely two lanes of a warp have one that passes at the same time.
    passing = users * part.passing(k) / (1 if part.first else 32)
    return Launch(
        f"topk, {users:,} users, k = {k}, items to {part.end:,}",
        (
            Phase(f"{DEPTH} factors of {tile.sums} scores", none.piece, tiles * pieces),
            Phase("bar of a score", none.last * (1 / tile.sums), tiles * tile.sums),
            Phase("score that passes", one.last - none.last, passing),
        ),
        user_blocks * part.ranges,
        places(kernel),
        4 * d * (part.end - part.first + users),
    )


def each(loop: Loop, kind: str) -> Work:
    """A round's share of one such instruction: loops are unrolled."""
    return work_of(loop.all()) * (1 / count(loop.all(), kind))


def merge(kernels: Kernels, users: int, k: int, part: Part) -> Launch:
    kernel = kernels["merge_kernel"]
    flow = flow_of(kernel.sass)
    lanes = 32 * WARPS  # that read a list
    while lanes > 8 and lanes * part.ranges > 32 * WARPS:
        lanes //= 2
    read = flow.loop(**{"BAR.RED": 2}).round({"BAR.RED": 2, "LDG.64": 1, "ATOMS": 1, "loop": 0})
    rounds = div_up(part.ranges * lanes, 32 * WARPS) * (div_up(math.ceil(part.passing(k) / part.ranges), lanes) + 1)
    keys = min(part.passing(k) + k, 2048)
    halving = flow.loop(REDUX=1).round({"REDUX": 1, "BAR": 2, "loop": 1, "loop.LDS": 1})
    half = work_of(halving.instructions) * WARPS + each(halving.loops[0], "LDS.64") * (keys / 32)
    steps = [p for p in flow.loops if count(p.all(), "BAR") == 1 and count(p.all(), "STS.64") > count(p.all(), "ATOMS")]
    step = min(steps, key=lambda p: p.all().total()).round({"BAR": 1, "LDS.64": 0, "loop": 1, "loop.LDS": 1})
    depth = math.ceil(math.log2(k + k // 8))
    sort = work_of(step.instructions) * WARPS + each(step.loops[0], "LDS.64") * (2**depth / 32)
    return Launch(
        f"merge, {users:,} users, k = {k}, items to {part.end:,}",
        (
            Phase("round of reading lists", work_of(read.instructions), users * rounds * WARPS),
            Phase("half of the key space, by a block", half, users * 20 * (keys > 2**depth)),  # some 20 times
            Phase("step of a sort, by a block", sort, users * depth * (depth + 1) // 2),
        ),
        users,
        places(kernel),
    )
