"""The products alone, as fast as library GEMM makes them in tiles that stay in cache: what no contender can beat.

Which tile is the fastest depends on sizes, machine and threads, so each floor looks for its own before it is timed: users and
items of a tile, whether users or items are the rows of the product, and whether the library's threads share each tile or every
thread has tiles of its own.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import Factors
from bdkernels.tools.measure import seconds
from benchmarks.machine import DEVICE

TILE_USERS, TILE_ITEMS = (16, 32, 64, 256), (512, 1024, 2048, 4096)
SEARCH_PAIRS = 1 << 22  # (user, item) pairs of a trial: about 5 ms
FINALISTS = 6
if DEVICE.type == "cuda":  # whose caches and launches want larger tiles
    TILE_USERS, TILE_ITEMS, SEARCH_PAIRS = (64, 256, 1024), (4096, 16384, 65536), 1 << 28


class Tile(NamedTuple):
    """A way to cut the product up."""

    users: int
    items: int
    items_first: bool  # items @ users.T instead of users @ items.T
    own_threads: bool  # tiles of its own for each thread

    def __str__(self) -> str:
        order = "items x users" if self.items_first else "users x items"
        threads = "a tile a thread" if self.own_threads else "threads share a tile"
        return f"{self.users} users x {self.items:,} items, {order}, {threads}"


class Floor:
    """The score products of these models, each in its fastest tiles; the first call finds those."""

    sets_up = True  # the search

    def __init__(self, *models: Factors) -> None:
        self.models = models
        self.tiles: list[Tile] = []

    def __call__(self) -> "Floor":
        self.tiles = self.tiles or [fastest(f) for f in self.models]
        for f, tile in zip(self.models, self.tiles, strict=True):
            product(f, tile)
        return self  # for `check`

    @property
    def note(self) -> str:
        """The tiles that won."""
        return "; ".join(
            f"d={f.user_factors.shape[1]}: {tile}" for f, tile in zip(self.models, self.tiles, strict=True)
        )

    def check(self) -> None:
        """The tiles, put together, are the product."""
        for f, tile in zip(self.models, self.tiles, strict=True):
            some = f._replace(item_factors=f.item_factors[: 2 * tile.items + 1])
            out = torch.full((some.user_factors.shape[0], some.n_items), torch.nan)
            product(some, tile, out)
            torch.testing.assert_close(
                out, (some.user_factors.double() @ some.item_factors.double().T).float(), rtol=1e-4, atol=1e-4
            )


def product(f: Factors, tile: Tile, out: Tensor | None = None) -> None:
    """users @ items.T, tile by tile; into `out` [B, N] if given, else each tile over the one before."""
    threads = torch.get_num_threads()
    if not tile.own_threads:
        _strip(f, tile, 0, f.n_items, out)
        return
    step = -(-f.n_items // (threads * tile.items)) * tile.items
    starts = range(0, f.n_items, step)
    list(_pool(threads).map(lambda start: _strip(f, tile, start, min(start + step, f.n_items), out), starts))
    torch.set_num_threads(threads)  # the pool's own setting is for its threads


def fastest(f: Factors) -> Tile:
    """The best tile on some of the items, by a quick look at all and a closer one at the finalists."""
    n_users = f.user_factors.shape[0]
    some = f._replace(item_factors=f.item_factors[: max(SEARCH_PAIRS // n_users, 2 * TILE_ITEMS[-1])])
    users = [size for size in TILE_USERS if size <= n_users] or [n_users]
    own = (False, True) if torch.get_num_threads() > 1 and DEVICE.type == "cpu" else (False,)
    tiles = [Tile(*choice) for choice in itertools.product(users, TILE_ITEMS, (False, True), own)]

    def best(tile: Tile, repeats: int) -> float:
        return min(seconds(lambda: product(some, tile)) for _ in range(repeats))

    best(tiles[0], 1)  # warms up
    finalists = sorted(tiles, key=lambda tile: best(tile, 1))[:FINALISTS]
    return min(finalists, key=lambda tile: best(tile, 5))


def _strip(f: Factors, tile: Tile, start: int, stop: int, out: Tensor | None) -> None:
    """The product of all users with the items from start to stop."""
    users = f.user_factors.split(tile.users)
    buffer = torch.empty((tile.items, tile.users) if tile.items_first else (tile.users, tile.items))
    for first in range(start, stop, tile.items):
        v = f.item_factors[first : min(first + tile.items, stop)]
        for block, u in enumerate(users):
            left, right = (v, u) if tile.items_first else (u, v)
            if out is None:
                target = buffer[: left.shape[0], : right.shape[0]]
            else:
                begin = block * tile.users
                target = out[begin : begin + u.shape[0], first : first + v.shape[0]]
                target = target.T if tile.items_first else target
            torch.mm(left, right.T, out=target)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
