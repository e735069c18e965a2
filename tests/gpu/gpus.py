"""What is known of GPUs without having one: limits of a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities") and
peaks (NVIDIA's data sheets of the A100 80 GB and the H100, both SXM)."""

from typing import NamedTuple

WARP = 32
REGISTERS = 65536
WARPS = 64
BLOCKS = 32
RESERVED = 1024  # bytes of shared memory that the system takes for each block


class Gpu(NamedTuple):
    """`shared` and `block_shared`: bytes of shared memory of a multiprocessor and, at most, of a block."""

    shared: int
    block_shared: int


GPUS = {80: Gpu(164 << 10, 163 << 10), 90: Gpu(228 << 10, 227 << 10), 100: Gpu(228 << 10, 227 << 10)}


class Peak(NamedTuple):
    """tflops: by precision, without sparsity; tbs: of memory."""

    name: str
    tflops: dict[str, float]
    tbs: float


PEAKS = (
    Peak("A100", {"fp32": 19.5, "tf32": 156, "bf16": 312}, 2.039),
    Peak("H100", {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4}, 3.35),
)


def blocks_of_sm(cc: int, warps: int, registers: int, shared: int) -> int:
    """Blocks that fit on a multiprocessor at once: the formula of NVIDIA's cuda_occupancy.h."""
    gpu = GPUS[cc]
    if shared > gpu.block_shared:
        return 0
    of_warp = -(-registers * WARP // 256) * 256  # registers come in 256
    warps_that_fit = REGISTERS // 4 // of_warp * 4  # each of four partitions has its own
    of_block = -(-(shared + RESERVED) // 128) * 128
    return min(WARPS // warps, BLOCKS, warps_that_fit // warps, gpu.shared // of_block)


def occupancy(cc: int, warps: int, registers: int, shared: int) -> float:
    """Share of a multiprocessor's warps that can be there at once."""
    return blocks_of_sm(cc, warps, registers, shared) * warps / WARPS
