"""What the operators are compared with, as a user of torch would write it (benchmarks/peers.py), at the sizes of `times`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import bdkernels as bd
from bdkernels.tools.measure import Work
from benchmarks import peers
from benchmarks.case import UnavailableError
from phases.inputs import BEST, CHECKED, DRAWS, MILLION, PAPER, Models, models
from phases.row import NotRun, Row, Setting, timed

TILE, CHUNK = 1 << 16, 1 << 17  # items of a tile of the product, and of a chunk of topk


def product(precision: str) -> Row:
    """Both score matrices by torch.mm, tile by tile into one buffer: full precision ("highest") or tensor cores ("high")."""

    def run(setting: Setting) -> dict[str, Any]:
        torch.set_float32_matmul_precision(precision)
        m = models(setting, MILLION)
        tile = 64 if setting.rehearse else TILE
        buffer = torch.empty(m.teacher.user_factors.shape[0], tile, device=setting.device)

        def call() -> Tensor:
            for f in m.both:
                for items in f.item_factors.split(tile):
                    last = torch.mm(f.user_factors, items.T, out=buffer[:, : len(items)])
            return last

        got, f = call(), m.student
        want = f.user_factors[:CHECKED].double() @ f.item_factors[-got.shape[1] :].double().T
        torch.testing.assert_close(got[:CHECKED].double(), want, rtol=0, atol=1e-4 if precision == "highest" else 0.1)
        return timed(setting, call, Work(2 * m.pairs, m.flops, m.bytes))

    return run


def topk(users: int) -> Row:
    """torch.topk of a chunk of items at a time, then of the winners."""

    def run(setting: Setting) -> dict[str, Any]:
        torch.set_float32_matmul_precision("highest")
        f = models(setting, (users, *MILLION[1:])).teacher
        chunk, k = (64, 10) if setting.rehearse else (CHUNK, BEST)
        got = peers.topk_chunked(f, k, chunk)
        want = (f.user_factors[:CHECKED].double() @ f.item_factors.double().T).topk(k).values
        torch.testing.assert_close(got[0][:CHECKED].double(), want, rtol=0, atol=1e-4)
        pairs = f.user_factors.shape[0] * f.n_items
        work = Work(pairs, 2 * pairs * f.user_factors.shape[1], 4 * f.item_factors.numel())
        return timed(setting, lambda: peers.topk_chunked(f, k, chunk), work)

    return run


def dense(sizes: tuple[int, int, tuple[int, int]], draw: Callable[..., tuple[Tensor, Tensor]]) -> Row:
    """Both score matrices, a sort each, weights, multinomial."""

    def run(setting: Setting) -> dict[str, Any]:
        torch.set_float32_matmul_precision("highest")
        m = models(setting, sizes)
        if setting.device.type == "cuda":
            free, needs = torch.cuda.mem_get_info()[0], m.pairs * peers.DENSE_BYTES
            if needs > free:
                raise NotRun(f"asks for {needs / 1e9:.0f} GB, and {free / 1e9:.0f} are free")

        def call() -> tuple[Tensor, Tensor]:
            with torch.device(setting.device):
                return draw(*m, DRAWS)

        try:
            check(m, call())
        except UnavailableError as error:
            raise NotRun(str(error)) from error
        return timed(setting, call, Work(2 * m.pairs, m.flops, m.bytes))

    return run


def check(m: Models, drawn: tuple[Tensor, Tensor]) -> None:
    """No item was seen, and what the student draws the teacher ranks no worse than the student does."""
    few = m.few()
    taken = set(zip(few.seen.row_of_each().tolist(), few.seen.indices.tolist(), strict=True))
    ids = [each[:CHECKED].cpu() for each in drawn]
    for each in ids:
        rows = torch.arange(len(each))[:, None].expand_as(each)
        assert not taken & set(zip(rows.flatten().tolist(), each.flatten().tolist(), strict=True)), (
            "a seen item is drawn"
        )
    guide, learner = (bd.rank(f, ids[0], few.seen, backend="cpu") for f in few.both)
    assert (guide - learner > -4).all(), "an item of weight 0 is drawn"  # a sort may swap neighbours


ROWS: dict[str, Row] = {
    "fp32 product in tiles": product("highest"),
    "tf32 product in tiles": product("high"),
    "chunked topk, 64 users": topk(64),
    "chunked topk, 1,024 users": topk(1024),
    "dense eager (a)": dense(PAPER, peers.dense_eager),
    "dense eager 1,024 x 1M": dense(MILLION, peers.dense_eager),
    "dense compiled (a)": dense(PAPER, peers.dense_compiled),
}
