"""How long a GPU needs at least for what its warps do, by each of its limits, and how blocks fill its multiprocessors.

Derived, not measured: latency, caches and the order in which warps are served are not in it. A time is a range. At best, all
limits but one are hidden behind that one, and a multiprocessor that holds few blocks is as fast as a full one. At worst, the
phases of a kernel follow one another, each at its own limit, and a wave of blocks takes as long whether it is full or not.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from gpus import PEAKS, Peak
from sass import count

OPERATION = (
    5e-6  # seconds that the host needs to dispatch one operation of torch, about: a stated cost, not a derived one
)


@dataclass(frozen=True)
class Gpu:
    """Rates of a multiprocessor are in warps a clock (CUDA C++ Programming Guide, "Arithmetic Instructions"), those of shared
    memory in wavefronts; l2: bytes a clock of the whole chip (the A100's, by NVIDIA's paper: the H100's gives none).
    """

    peak: Peak
    sms: int
    ghz: float
    issue: float = 4
    fp32: float = 4
    alu: float = 2
    shared: float = 1
    l2: float = 5120

    def floor(self, flop: float, read_bytes: float) -> float:
        """ms that no kernel can do without: by the peaks of the data sheet."""
        return max(flop / self.peak.tflops["fp32"], read_bytes / self.peak.tbs) / 1e9


A100, H100 = PEAKS
GPUS = {80: Gpu(A100, 108, 1.41, fp32=2), 90: Gpu(H100, 132, 1.755)}
FP32 = ("FFMA", "FADD", "FMUL")
ALU = ("FSETP", "FSEL", "FMNMX", "ISETP", "IADD3", "VIADD", "LOP3", "PLOP3", "SHF", "LEA", "SEL", "PRMT", "MOV")
ALU += ("IMNMX", "VIMNMX", "IABS", "VOTE", "R2P", "P2R", "BMSK", "SGXT")  # at half the rate of FFMA
WAVEFRONTS = {"LDS": 1, "STS": 1, "ATOMS": 1, "LDGSTS": 1}  # of a warp, times its words, where banks do not conflict


@dataclass(frozen=True)
class Work:
    """What warps do: instructions issued, of them those of two pipes; wavefronts of shared memory; bytes from the L2 cache."""

    issue: float = 0
    fp32: float = 0
    alu: float = 0
    shared: float = 0
    l2: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, n: float) -> "Work":
        return Work(*(getattr(self, f.name) * n for f in fields(self)))

    def __sub__(self, other: "Work") -> "Work":
        return self + other * -1

    def clocks(self, gpu: Gpu) -> dict[str, float]:
        """By each limit, of a chip whose multiprocessors are all busy."""
        return {
            f.name: getattr(self, f.name) / (getattr(gpu, f.name) * (gpu.sms if f.name != "l2" else 1))
            for f in fields(self)
        }


def work_of(instructions: Counter[str], wavefronts: Mapping[str, float] = {}) -> Work:
    """Of one warp. `wavefronts`: of all instructions of a kind together, where they are known better than by their width."""
    shared = sum(wavefronts.values())
    for name, n in instructions.items():
        first = name.split(".")[0]
        if first in WAVEFRONTS and not any(count(Counter({name: 1}), kind) for kind in wavefronts):
            words = 4 if "128" in name else 2 if "64" in name.split(".") else 1
            shared += n * words * WAVEFRONTS[first]
    copied = sum(n * 32 * 16 for name, n in instructions.items() if name.startswith("LDGSTS") and "128" in name)
    issued = sum(n for name, n in instructions.items() if not name.startswith("loop"))
    return Work(issued, count(instructions, *FP32), count(instructions, *ALU), shared, copied)


class Phase(NamedTuple):
    """What one warp does for one unit of a kernel, and how many there are: `name` says what the unit is."""

    name: str
    work: Work
    times: float

    @property
    def total(self) -> Work:
        return self.work * self.times


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what all of its warps do, phase by phase."""

    name: str
    phases: tuple[Phase, ...]
    blocks: int
    places: int  # blocks that a multiprocessor holds at once
    read_bytes: float = 0  # from memory

    def waves(self, gpu: Gpu) -> float:
        return self.blocks / (gpu.sms * self.places)

    def tails(self, gpu: Gpu) -> tuple[float, float]:
        """How much longer it takes than on busy multiprocessors alone: by the fullest of them, and by whole waves."""
        parts = (gpu.sms, gpu.sms * self.places)
        busiest, waves = (div_up(self.blocks, n) * n / self.blocks for n in parts)
        return busiest, waves

    def bounds(self, gpu: Gpu) -> dict[str, float]:
        """ms by each limit, all phases together and every multiprocessor busy."""
        clocks = sum((phase.total for phase in self.phases), Work()).clocks(gpu)
        return {name: c / gpu.ghz / 1e6 for name, c in clocks.items()} | {
            "memory": self.read_bytes / gpu.peak.tbs / 1e9
        }

    def ms(self, gpu: Gpu) -> tuple[float, float]:
        """At best and at worst."""
        best, worst = self.tails(gpu)
        phases = sum(max(phase.total.clocks(gpu).values()) for phase in self.phases) / gpu.ghz / 1e6
        bounds = self.bounds(gpu)
        memory = bounds.pop("memory")
        return max(max(bounds.values()) * best, memory), max(phases * worst, memory)


def div_up(n: int, by: int) -> int:
    return -(-n // by)


def together(launches: Iterable[Launch], operations: float, gpu: Gpu) -> tuple[float, float]:
    """ms of a call: at best the host is ahead of the device, at worst the one waits for the other."""
    times = [launch.ms(gpu) for launch in launches]
    host = operations * OPERATION * 1e3
    return max(sum(t[0] for t in times), host), sum(t[1] for t in times) + host


def banks(addresses: Sequence[int], size: int = 4) -> int:
    """Wavefronts of one read by a warp, of `size` bytes a lane from these addresses of shared memory.

    A wavefront gives a warp one register, and each of 32 banks one word, which lanes may share. Lanes read 8 bytes by halves of
    the warp and 16 by quarters; by parts twice as large where lanes n and n ^ 1, or n and n ^ 2, all read the same
    (forums.developer.nvidia.com/t/77228).
    """
    paired = any(all(a == addresses[n ^ by] for n, a in enumerate(addresses)) for by in (1, 2))
    lanes = min(len(addresses), len(addresses) * 4 // size * (2 if paired else 1))
    return sum(conflicts(addresses[at : at + lanes], size) for at in range(0, len(addresses), lanes))


def conflicts(addresses: Sequence[int], size: int) -> int:
    """How many different words the fullest bank has."""
    words = {(a + offset) // 4 for a in addresses for offset in range(0, size, 4)}
    return max(Counter(word % 32 for word in words).values())
