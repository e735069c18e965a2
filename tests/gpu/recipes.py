"""What each CUDA kernel does for a workload: its loops, as compiled, times the rounds that its launch gives them.

The shapes of launches are those of csrc/cuda, which sets them on the host: `Split` in product.h, `topk_shape` in topk.cu.
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

    def rows_of_warp(self, warp: int) -> list[int]:
        """The first row of users of each lane."""
        return [t // self.columns for t in range(32 * warp, 32 * warp + 32)]

    def reads(self) -> float:
        """Wavefronts of a warp for a piece: it reads rows of 16 floats and 4 more, four at a time."""

        def of(warp: int) -> int:
            lanes = range(32 * warp, 32 * warp + 32)
            users = [[t // self.columns + i * self.rows for t in lanes] for i in range(4)]
            items = [[t % self.columns + j * self.columns for t in lanes] for j in range(self.items // self.columns)]
            return sum(banks((80 * r for r in rows), 16) for rows in users + items) * DEPTH // 4

        return fmean(map(of, range(WARPS)))


def tile_of(kernel: str) -> Tile:
    found = re.search(r"Fma<\w+, (\d+), (\d+)>", kernel)
    assert found, kernel
    return Tile(int(found[1]), int(found[2]))


def between(way: Callable[[int], Work], n: float) -> Work:
    """For `n` on average, from what one and two take."""
    one, two = way(1), way(2)
    return one + (two - one) * (n - 1)


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
        return between(lambda n: work_of(main.round(wanted | {"LDGSTS.128": n}).instructions, reads), tile.copies)

    piece = work(plain)
    return Product(piece, work(last) - piece, main.round(last | {"LDGSTS.128": 1}).loops)


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

CHUNK, MOST_KEYS, PLACES = 512, 1 << 15, 264  # kChunk, kMostKeys and kBlocks in topk.cu


class TopK(NamedTuple):
    """`topk_shape` in topk.cu."""

    ranges: int
    items: int  # of a range
    capacity: int  # keys in a list

    @staticmethod
    def shape(users: int, items: int, k: int) -> "TopK":
        capacity = 2 * CHUNK
        while capacity < k + k // 2 + CHUNK:
            capacity *= 2
        chunks = div_up(items, CHUNK)
        ranges = min(div_up(PLACES, max(1, div_up(users, 64))), chunks, MOST_KEYS // capacity)
        ranges = div_up(chunks, div_up(chunks, ranges))
        return TopK(ranges, div_up(chunks, ranges) * CHUNK, capacity)

    def sorts(self, k: int) -> int:
        """Of one list, the last included: a chunk adds what passes the bar, which was set by the best k of what was seen."""
        sorts, size, bar_at = 1, 0.0, 0
        for seen in range(CHUNK, self.items + 1, CHUNK):
            size += CHUNK * min(1, k / bar_at) if bar_at else CHUNK
            if size > self.capacity - CHUNK:
                sorts, size, bar_at = sorts + 1, k, seen
        return sorts


def topk(kernels: Kernels, users: int, items: int, d: int, k: int) -> Launch:
    kernel, tile, shape = kernels["topk_kernel<float>"], Tile(64, 128), TopK.shape(users, items, k)
    flow = flow_of(kernel.sass)
    made = product(kernel.sass, tile, (("FSETP", tile.sums), ("ATOMS", 0), ("loop", 0)))
    user_tiles = div_up(users, tile.users)
    tiles, pieces = user_tiles * div_up(items, tile.items) * WARPS, max(1, div_up(d, DEPTH))
    pairs = shape.capacity // 2 // (32 * WARPS)  # of a thread, in each stage of the bitonic network
    stage = min(
        (p for p in flow.loops if count(p.all(), "BAR") and count(p.all(), "LDS.64")), key=lambda p: p.all().total()
    )
    depth = int(math.log2(shape.capacity))
    once = work_of(stage.round({"LDS.64": 2 * pairs, "loop": 0}).instructions) * (WARPS * depth * (depth + 1) // 2)
    return Launch(
        f"topk, {users:,} users, k = {k}",
        (
            Phase(f"{DEPTH} factors of {tile.sums} scores", made.piece, tiles * pieces),
            Phase("bar of a score", made.last * (1 / tile.sums), tiles * tile.sums),
            Phase(
                f"sort of {shape.capacity:,} keys, by a block",
                once,
                user_tiles * tile.users * shape.ranges * shape.sorts(k),
            ),
        ),
        user_tiles * shape.ranges,
        places(kernel),
        4 * d * (items + users),
    )
