"""Calls captured as CUDA graphs: for test_on_device.py and for the times of quick.py."""

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

Call = Callable[[], tuple[Tensor, ...]]


class Graph(NamedTuple):
    """`replay()` leaves in `results`, always the same tensors, what the call gives for what its arguments hold by then."""

    replay: Callable[[], None]
    results: tuple[Tensor, ...]


def captured(call: Call, device: torch.device) -> Graph:
    """The graph of a call, which has run once before.

    On a CPU, where there are no graphs, a replay is another call, which asks the device nothing, as while one is captured: that
    shows that a test is right, and not what a GPU repeats.
    """
    if device.type == "cpu":
        return in_its_place(call)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # compiles, tunes
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return Graph(graph.replay, results)


def in_its_place(call: Call) -> Graph:
    results = tuple(t.clone() for t in call())

    def replay() -> None:
        with mock.patch("bdkernels.sampling.rounds.may_ask", return_value=False):
            for mine, new in zip(results, call(), strict=True):
                mine.copy_(new)

    return Graph(replay, results)


def assert_draws(got: tuple[Tensor, ...], want: tuple[Tensor, ...], what: str = "") -> None:
    """Draws of a captured `sample` are those of a call, but that users who need a full row may have fewer, and few are those."""
    for mine, theirs in zip(got, want, strict=True):
        right = mine == theirs
        assert (right | (mine == -1)).all(), f"sample: the graph draws others{what}"
        assert (right & (mine >= 0)).float().mean() > 0.5, f"sample: the graph draws hardly any{what}"


def assert_reads(
    sample: Callable[[int | Tensor, int | Tensor], tuple[Tensor, ...]],
    device: torch.device,
    numbers: list[tuple[int, int]],
) -> Graph:
    """A captured `sample(seed, step)` reads both from the device, where they lie as tensors: it draws for those that are there at
    each replay, one after the other of `numbers`, what a call draws that is given them as integers.
    """
    seed, step = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
    graph = captured(lambda: sample(seed, step), device)
    for numbers_of_call in numbers:
        want = sample(*numbers_of_call)
        for tensor, number in zip((seed, step), numbers_of_call, strict=True):
            tensor.fill_(number)
        for ids in graph.results:
            ids.fill_(-2)
        graph.replay()
        assert_draws(graph.results, want, " with seed {} at step {}".format(*numbers_of_call))
    return graph
