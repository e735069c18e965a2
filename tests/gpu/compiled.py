"""Triton's kernels compiled ahead of time, on a machine without a GPU: the real call sites, for a GPU that is only named.

Inside `compiling(cc)` a launch compiles its kernel, and each of its autotune configurations, and launches nothing; what comes
out is taken apart with the disassembler that Triton brings. Nothing here says how fast a kernel is.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from bdkernels.ranges import DISTILL_LOSSES, FUSED_LOSSES

INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)([^;]*);", re.MULTILINE
)
LABEL_OR_INSTRUCTION = re.compile(rf"^(\.L_x_\d+):|{INSTRUCTION.pattern}", re.MULTILINE)
UPPER_HALF = re.compile(r"FADD R\d+, (-RZ, \|R\d+\||\|R\d+\|, -RZ)\s*")
TENSOR_CORE = re.compile(r"[HQI]?G?MMA|UTC\w*MMA")
SPILL = ("LDL", "STL")


class Kernel(NamedTuple):
    """One compiled kernel."""

    name: str
    config: dict[str, Any]  # constants that its launch or its autotuner gave
    cc: int
    warps: int
    registers: int  # of a thread
    stack: int  # bytes of a thread in local memory
    shared: int  # bytes of a program
    layouts: str  # Triton's own code for GPUs, with the layouts of its tensors
    ptx: str
    sass: str

    def instructions(self) -> Counter[str]:
        return Counter(m[1] for m in INSTRUCTION.finditer(self.sass))

    def spills(self) -> int:
        """Loads and stores of local memory, and the frame they would need."""
        return self.stack + sum(self.instructions()[name] for name in SPILL)

    def tensor_cores(self) -> int:
        return sum(n for name, n in self.instructions().items() if TENSOR_CORE.fullmatch(name))

    def flushing(self) -> Counter[str]:
        """Instructions that take subnormals of float32 for 0, or give 0 for them. Not those of a division of integers (F2I of a
        reciprocal), nor of the function tanh of float64, which looks at the upper half of a number as if it were a float32.
        """
        found = (m for m in INSTRUCTION.finditer(self.sass) if ".FTZ" in m[2])
        return Counter(m[1] for m in found if m[1] != "F2I" and not UPPER_HALF.fullmatch(m[1] + m[3]))

    def widest(self) -> int:
        """Bits of the widest access to global memory."""
        return max(
            (width(m[2]) for m in INSTRUCTION.finditer(self.sass) if m[1] in ("LDG", "LDGSTS", "STG")), default=0
        )

    def main_loop(self) -> Counter[str]:
        """Instructions of the shortest loop that holds the most multiplications; the longest innermost one if none has any."""
        found = loops(self.sass)
        best = max(found, key=lambda loop: (multiplications(loop), -loop.total()), default=Counter())
        return (
            best
            if multiplications(best)
            else max(loops(self.sass, innermost=True), key=Counter.total, default=Counter())
        )


def width(modifiers: str) -> int:
    """Bits that an instruction with such modifiers moves."""
    found = re.search(r"\.(128|64|[US](?:8|16))(?=\.|$)", modifiers)
    return int(found[1].lstrip("US")) if found else 32


def multiplications(instructions: Counter[str]) -> int:
    """Of float32, fused, or on tensor cores."""
    return sum(n for name, n in instructions.items() if name in ("FFMA", "FFMA2") or TENSOR_CORE.fullmatch(name))


def loops(sass: str, innermost: bool = False) -> list[Counter[str]]:
    """Instructions of each loop, from a label to the jump back to it; or just of those without another such pair inside."""
    labels: dict[str, int] = {}
    names: list[str] = []
    jumps = []
    for m in LABEL_OR_INSTRUCTION.finditer(sass):
        if m[1]:
            labels[m[1]] = len(names)
            continue
        target = re.search(r"\.L_x_\d+", m[4])
        if m[2] == "BRA" and target and labels.get(target[0], len(names)) < len(names):
            jumps.append((labels[target[0]], len(names)))
        names.append(m[2])
    if innermost:
        jumps = [(a, b) for a, b in jumps if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in jumps)]
    return [Counter(names[a : b + 1]) for a, b in jumps]


class _Utils:
    """What the launcher asks of a driver about a GPU."""

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}


class _Driver:
    """A GPU of compute capability `cc` that is not there."""

    def __init__(self, cc: int) -> None:
        self.cc, self.utils = cc, _Utils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.cc, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return self.cc  # compiled kernels are kept per device

    def get_current_stream(self, _: int | None = None) -> int:
        return 0


@contextmanager
def compiling(cc: int) -> Iterator[list[Kernel]]:
    """Launches inside compile for compute capability `cc` (80, 90, ...); gives the list that the kernels are added to."""
    kernels: list[Kernel] = []
    run = JITFunction.run

    def compile_one(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        made = run(self, *args, grid=grid, warmup=True, **options)
        constants = {k: v for k, v in options.items() if k.isupper()}
        kernels.append(_kernel(self.__name__, constants, cc, made))
        return made

    def compile_each(self: Any, *args: Any, **options: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(options):
            self.fn.run(*args, **{**options, **config.all_kwargs()})

    with (
        mock.patch.object(driver, "_active", _Driver(cc)),
        mock.patch.object(JITFunction, "run", compile_one),
        mock.patch.object(Autotuner, "run", compile_each),
    ):
        yield kernels


def _kernel(name: str, constants: dict[str, Any], cc: int, made: Any) -> Kernel:
    meta = made.metadata
    found = _disassembled(made.asm["cubin"])
    return Kernel(
        name,
        constants,
        cc,
        meta.num_warps,
        found[0],
        found[1],
        meta.shared,
        made.asm["ttgir"],
        made.asm["ptx"],
        found[2],
    )


@cache
def _disassembled(cubin_bytes: bytes) -> tuple[int, int, str]:
    """Registers, stack and assembly."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(cubin_bytes)
        usage = _tool(knobs.nvidia.cuobjdump.path, "-res-usage", cubin)
        sass = _tool(knobs.nvidia.nvdisasm.path, "-c", cubin)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    return registers, stack, sass


def _tool(path: str, *arguments: Any) -> str:
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def call(stage: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """One launch whose results, which nothing has computed, are not looked at."""
    with mock.patch("bdkernels.checks.no_nan_at"), mock.patch("bdkernels.checks.no_nan_in_block"):
        stage(*args, **kwargs)


@cache
def in_library(library: Path) -> list[Kernel]:
    """The CUDA kernels of a built library, for each target; `shared` with what their launches ask for beside."""
    tool = knobs.nvidia.cuobjdump.path
    threads = dict(re.findall(r"\.entry (\w+)\((?:[^{]|\n)*?\.maxntid (\d+)", _tool(tool, "-ptx", library)))
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([tool, "-xelf", "all", library.resolve()], cwd=folder, capture_output=True, check=True)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            cc = int(re.search(r"sm_(\d+)", cubin.name)[1])  # type: ignore[index]
            usage = _tool(tool, "-res-usage", cubin)
            bodies = dict(
                re.findall(
                    r"//-+ \.text\.(\w+) -+\n((?:.*\n)*?)(?=\s*//-+ \.|\Z)",
                    _tool(knobs.nvidia.nvdisasm.path, "-c", cubin),
                )
            )
            for entry, *found in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage):
                name = plain_name(entry)
                registers, stack, static = map(int, found)
                static = max(0, static - 1024) if cc >= 90 else static  # what the system keeps is counted there
                warps = int(threads[entry]) // 32
                shared = static + dynamic_shared(name)
                kernels.append(Kernel(name, {}, cc, warps, registers, stack, shared, "", "", bodies[entry]))
    return kernels


def plain_name(entry: str) -> str:
    """Without namespaces and arguments; of a product its tile alone: count_above_kernel<Fma<float, 64, 64>>. Losses by name."""
    name = _tool("c++filt", entry).strip()
    name = re.sub(r"bdkernels::cuda::|bdkernels::|\(anonymous namespace\)::|^void |\((?:int|unsigned int)\)", "", name)
    name = re.sub(r"\(CfLoss\)(\d)", lambda found: FUSED_LOSSES[int(found[1])], name)
    name = re.sub(r"\(DistillLoss\)(\d)", lambda found: DISTILL_LOSSES[int(found[1])], name)
    name = re.sub(r"Product<((?:[^<>]|<[^<>]*>)*?) ?>", r"\1", name)
    depth = 0
    for at, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:at].replace("> >", ">>")
    return name


def dynamic_shared(name: str) -> int:
    """Bytes that a launch asks for: two stages of the product (product.h, mma.h); for `rank`, thresholds and bins of a piece;
    for the merge of `topk`, keys of k = 100.
    """
    if name.startswith("propose_round_kernel"):
        return 10 * PROPOSALS + 4 * 8 * 32 * 33  # keys and places to sort, and a tile for each warp
    if name == "close_round_kernel":
        return 4 * (5 * PROPOSALS + 2)  # bins and ranks of both models, ids
    if name == "count_above_block_kernel":
        return histogram(1, 4096)
    if name == "merge_kernel":
        return 8 * (128 + 1792 + 256 + 128)
    tile = re.sub(r"^topk_kernel<(\w+)>", r"Fma<\1, 64, 128>", name)
    if (found := re.search(r"(Fma|Mma)<(\w+), (?:\w+, )?(\d+), (\d+)>", tile)) is None:
        return 0
    kind, of, users, items = found[1], found[2], int(found[3]), int(found[4])
    size = 4 if of == "float" else 2
    rows = 4 * users * 32 + size * items * 32 if kind == "Mma" else 4 * users * 20 + size * items * (16 + 16 // size)
    return 2 * rows + (histogram(users, PIECE[users], kind) if name.startswith("count_above") else 0)


PROPOSALS = 512  # of a round of `sample`
PIECE = {64: 64, 32: 256, 16: 512, 8: 1024}  # of `rank`: thresholds of a user in the table of derive.py


def histogram(users: int, slots: int, kind: str = "") -> int:
    """Bytes of thresholds and bins (histogram.h)."""
    apart = {"Fma": 16 if users == 64 else 0, "Mma": 4}.get(kind, 0)  # of rows that a warp searches side by side
    return 4 * (2 * users * (slots + apart) + 32)
