"""What a search among thresholds costs: shared-memory wavefronts, from the addresses that the kernels ask for, and instructions.

An instruction of a warp goes through shared memory in as many wavefronts as the fullest of its 32 banks has different words to
give; lanes that read the same word share it, and those that count in the same word take turns. `python tests/gpu/wavefronts.py
THRESHOLDS...` prints them for the search of `rank`; it needs no GPU, for the simulator writes down the addresses (shim/block.h).
"""

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from simulation import build_simulation
from torch import Tensor

BANKS = 32
NOBODY = -1  # the address of a lane that takes no part
USERS, ITEMS, FACTORS = 64, 1024, 8
CALL = f"""
import sys, torch, bdkernels as bd
torch.manual_seed(0)
users, items, others = torch.randn({USERS}, {FACTORS}), torch.randn({ITEMS}, {FACTORS}), torch.randn(int(sys.argv[1]), {FACTORS})
thresholds = users @ others.T
bd.count_above(bd.Factors(users, items), thresholds, torch.zeros(thresholds.shape, dtype=int), backend="cuda")
"""


def of_accesses(addresses: Tensor) -> Tensor:
    """How many wavefronts each instruction takes: int64 [n] of [n, 32] addresses in bytes, plus 1 for what counts there."""
    words, counts = addresses >> 2, (addresses & 1).bool() & (addresses != NOBODY)
    sorted_words, order = words.sort(dim=1)
    again = torch.zeros_like(counts)
    again[:, 1:] = sorted_words[:, 1:] == sorted_words[:, :-1]
    wanted = (~again | counts.gather(1, order)) & (addresses.gather(1, order) != NOBODY)
    return (
        torch.zeros(len(words), BANKS, dtype=torch.int64).scatter_add_(1, sorted_words % BANKS, wanted.long()).amax(1)
    )


@cache
def recorded(thresholds: int) -> Tensor:
    """The addresses of `of_accesses` that `count_above` asks for with so many thresholds of each user."""
    with tempfile.TemporaryDirectory() as folder:
        accesses = Path(folder) / "accesses"
        env = {**os.environ, "BDKERNELS_CUDA_LIBRARY": str(build_simulation()), "CUSIM_ACCESSES": str(accesses)}
        subprocess.run([sys.executable, "-c", CALL, str(thresholds)], env=env, check=True)
        return torch.frombuffer(bytearray(accesses.read_bytes()), dtype=torch.int32).view(-1, BANKS).long()


def wavefronts(thresholds: int) -> float:
    """Of `rank` with so many thresholds a user, for a warp and 32 of its scores: search, ties and histogram together.

    Random scores and thresholds; each score of a warp is counted by one instruction.
    """
    addresses = recorded(thresholds)
    scores = (addresses & 1).bool().logical_and(addresses != NOBODY).any(1).sum()
    return float(of_accesses(addresses).sum() / scores)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, round(wavefronts(int(argument)), 2))
