"""How a launch splits the catalog among blocks: whole waves of them, or as nearly as the tiles allow."""

import os
import subprocess
from itertools import product

import pytest
from simulation import ROOT

PLACES = 264  # two blocks on each of 132 multiprocessors
OVERHEAD = 2  # tiles


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """(items, tile, others, places, most) of each -> (items of a block, ranges) of each."""
    program = tmp_path_factory.mktemp("split") / "split"
    source = ROOT / "tests/gpu/shim/split.cpp"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-std=c++20", "-O0", f"-I{source.parent}", source, "-o", program], check=True)

    def run(asked):
        lines = "\n".join(" ".join(map(str, one)) for one in asked)
        out = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
        return [tuple(map(int, line.split())) for line in out.splitlines()]

    return run


def test_every_item_is_in_one_range_and_none_is_empty(split):
    asked = list(product((0, 1, 63, 64, 65, 25_187, 10**9), (64, 1024), (0, 1, 17, 4000), (1, PLACES), (1, 7, 65535)))
    for (items, tile, _, _, most), (of_block, ranges) in zip(asked, split(asked), strict=True):
        assert of_block % tile == 0 and ranges <= most
        assert (ranges - 1) * of_block < items <= ranges * of_block if items else ranges == 0


@pytest.mark.parametrize("others", [1, 2, 3, 5, 16, 17, 32, 64, 100, 263, 264, 265, 1000])
@pytest.mark.parametrize(("items", "tile"), [(1_000_000, 64), (1_000_000, 128), (1_000_000, 256), (200_000, 64)])
def test_a_launch_is_made_of_whole_waves(split, others, items, tile):
    """No more than a twelfth longer than if the work of all blocks could be shared out evenly."""
    ((of_block, ranges),) = split([(items, tile, others, PLACES, 65535)])
    waves = -(-ranges * others // PLACES)
    takes, evenly = waves * (of_block / tile + OVERHEAD), others * items / tile / PLACES
    assert takes <= evenly * 13 / 12 + 2 * OVERHEAD


def test_a_small_launch_is_cut_into_few_pieces(split):
    """What a block does before and after its tiles counts too, and one wave is better than two."""
    assert split([(25_187, 64, 4, PLACES, 65535), (640, 64, 1, PLACES, 65535), (640, 64, 1, 1, 65535)]) == [
        (384, 66), (64, 10), (640, 1),
    ]  # fmt: skip
