"""What a GPU can reach at most by its own description: fp32 arithmetic and memory, for the floors of `profile`.

A multiprocessor finishes so many fused multiply-adds a clock (CUDA C++ Programming Guide, "Throughput of Native Arithmetic
Instructions"); clocks, multiprocessors and the width of the memory bus are what the driver says of the card.
"""

from typing import Any, NamedTuple

import torch

from bdkernels.tools.measure import Peaks, Work

FMAS_A_CLOCK = {  # fp32, of a multiprocessor, by compute capability
    (7, 0): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128,
    (12, 0): 128, (12, 1): 128,
}  # fmt: skip


class Card(NamedTuple):
    """A GPU as its driver describes it.

    Attributes:
        name: such as "NVIDIA H100 80GB HBM3".
        capability: major and minor number.
        multiprocessors: how many it has.
        clock_khz: the highest of its multiprocessors; 0 where this torch does not say.
        memory_khz: of its memory, which moves data twice a clock; 0 likewise.
        bus_bits: width of the memory's bus; 0 likewise.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock_khz: int
    memory_khz: int
    bus_bits: int

    @classmethod
    def of(cls, properties: Any) -> "Card":
        """From what torch.cuda.get_device_properties gives."""
        clocks = [getattr(properties, name, 0) for name in ("clock_rate", "memory_clock_rate", "memory_bus_width")]
        return cls(
            properties.name, (properties.major, properties.minor), properties.multi_processor_count, *map(int, clocks)
        )

    @property
    def unknown(self) -> str | None:
        """Why nothing can be said of its peaks; None if something can."""
        if self.capability not in FMAS_A_CLOCK:
            return f"compute capability {'.'.join(map(str, self.capability))} is not one that bdkernels knows"
        if not (self.clock_khz and self.memory_khz and self.bus_bits):
            return f"torch {torch.__version__} does not say its clocks"
        return None

    def peaks(self) -> Peaks:
        """GFLOP/s of fp32 and GB/s of memory that no program can pass. Only where it is not `unknown`."""
        flops = 2 * FMAS_A_CLOCK[self.capability] * self.multiprocessors * self.clock_khz * 1e3
        return Peaks(flops / 1e9, 2 * self.memory_khz * 1e3 * self.bus_bits / 8 / 1e9)

    def __str__(self) -> str:
        clocks = f" at {self.clock_khz / 1e6:.2f} GHz" if self.clock_khz else ""
        return f"{self.name}, {self.multiprocessors} multiprocessors{clocks}"


def floor_s(work: Work, best: Peaks) -> float:
    """Seconds that the work takes at least: its arithmetic, or its traffic, at these peaks."""
    return max(work.flops / best.gflops, work.bytes / best.gbs) / 1e9


def card(device: torch.device | str) -> Card | None:
    """The GPU of a device; None for the CPU."""
    found = torch.device(device)
    return Card.of(torch.cuda.get_device_properties(found)) if found.type == "cuda" else None
