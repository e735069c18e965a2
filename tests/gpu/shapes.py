"""The shapes of launches, as the host side of csrc/cuda gives them: shim/shapes.cpp, compiled, answers questions about them."""

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent / "shim" / "shapes.cpp"
THREADS = 256


class Tile(NamedTuple):
    """Of `Fma` in product.h."""

    users: int  # of a block
    items: int
    thread_users: int
    thread_items: int
    pitch: int  # floats from one row in shared memory to the next
    levels: int  # of a search among thresholds, at most
    user_rows: tuple[tuple[int, ...], ...]  # [thread users][threads]
    item_rows: tuple[tuple[int, ...], ...]

    @property
    def sums(self) -> int:
        """Scores of a thread."""
        return self.thread_users * self.thread_items


class Part(NamedTuple):
    """Items that one launch of `topk` goes through, in so many ranges."""

    first: int
    last: int
    ranges: int


@cache
def program() -> Path:
    out = Path(tempfile.mkdtemp()) / "shapes"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", "-O0", f"-I{SOURCE.parent}", SOURCE, "-o", out], check=True)
    return out


@cache
def ask(*question: str | int) -> list[int]:
    done = subprocess.run([program()], input=" ".join(map(str, question)), capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@cache
def tile(users: int, items: int) -> Tile:
    thread_users, thread_items, pitch, levels, *rows = ask("tile", users, items)
    each = thread_users + thread_items
    columns = [tuple(rows[i::each]) for i in range(each)]
    return Tile(
        users,
        items,
        thread_users,
        thread_items,
        pitch,
        levels,
        tuple(columns[:thread_users]),
        tuple(columns[thread_users:]),
    )


def ranges(items: int, tile: int, others: int, places: int) -> int:
    """Into how many ranges the items are split, in tiles of so many, where each is gone through by so many other blocks."""
    return ask("split", items, tile, others, places)[1]


def parts(users: int, items: int, k: int, places: int) -> list[Part]:
    """Of `topk`, one after the other."""
    _, *found = ask("topk", users, items, k, places)
    return [Part(*found[i : i + 3]) for i in range(0, len(found), 3)]
