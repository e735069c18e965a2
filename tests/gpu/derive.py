"""What can be said of the GPU kernels without a GPU, as a table: `python tests/gpu/derive.py LIBRARY` writes derived.md.

LIBRARY is built by `python setup.py build_cuda`. Derived, not measured: from what the compilers say, NVIDIA's formula for
occupancy, and data sheets. test_derived.py and test_triton_compiled.py hold the kernels to it.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from call_sites import call_sites
from compiled import Kernel, compiling, in_library
from gpus import GPUS, PEAKS, blocks_of_sm, occupancy

TABLE = Path(__file__).with_name("derived.md")
SITES = ("score", "score block", "rank ieee", "rank tf32", "rank bf16", "rank biased, seen, live", "rank of a block")
SITES += (
    "values",
    "propose unseen",
    "accept tanh",
    "round",
    "topk 20",
    "topk 100",
    "loss bce masked",
    "loss softmax, listwise masked",
    "update adam",
    "distill masked",
    "distill listwise masked",
)
TILE = ("D", "USERS", "ITEMS", "COLUMNS", "K")  # constants of a kernel that a row names
WORKLOADS = ((1024, 1_000_000, 64, 16), (1024, 1_000_000, 128, 32))  # users, items, factors of teacher and student
HEAD = """# The GPU kernels as compiled

**Derived, not measured: no kernel has been timed.** Registers, shared memory (bytes a block) and instructions come from the
compilers ({versions}), occupancy from NVIDIA's formula; Triton with tables of 64
float32 factors. Spilled: bytes of stack plus instructions that touch it. Blocks: on a multiprocessor at once. Widest: bits of
the widest access to global memory. The loop is the shortest that holds the most multiplications, with the loops inside it: its
instructions, and how many of them are fused multiply-adds and loads of shared memory; tensor: products on tensor cores in the
whole kernel. CUDA's `rank` with 64, 256, 512 and 1,024 thresholds.
`python tests/gpu/derive.py LIBRARY` writes this page; a spill, a lower occupancy, a narrower access or a lost tensor core fails
`make gpu-proof`.

"""
COLUMNS = ("kernel", "variant", "target", "threads", "registers", "spilled", "shared", "blocks", "occupancy", "widest")
COLUMNS += ("loop", "FFMA", "tensor", "LDS")


class Row(NamedTuple):
    """A line of the table; the first three fields name it."""

    kernel: str
    variant: str
    target: str
    threads: int
    registers: int
    spilled: int
    shared: int
    blocks: int
    occupancy: float
    widest: int
    loop: int
    ffma: int
    tensor: int
    lds: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]

    def worse_than(self, other: "Row") -> list[str]:
        """What this one has lost."""
        worse = [name for name in ("occupancy", "widest") if getattr(self, name) < getattr(other, name)]
        worse += ["spilled"] if self.spilled > other.spilled else []
        return worse + (["tensor"] if bool(self.tensor) < bool(other.tensor) else [])


def row(backend: str, kernel: Kernel, variant: str) -> Row:
    loop = kernel.main_loop()
    fits = (kernel.cc, kernel.warps, kernel.registers, kernel.shared)
    ffma = loop["FFMA"] + 2 * loop["FFMA2"]
    return Row(
        f"{backend} {kernel.name}", variant, f"sm_{kernel.cc}", 32 * kernel.warps, kernel.registers, kernel.spills(),
        kernel.shared, blocks_of_sm(*fits), round(occupancy(*fits), 3), kernel.widest(),
        loop.total(), ffma, kernel.tensor_cores(), loop["LDS"],
    )  # fmt: skip


def triton_rows(cc: int) -> Iterator[Row]:
    """Each launch of SITES, a row a configuration; where a kernel is launched for both models, the row is the student's."""
    sites = dict(call_sites())
    for name in SITES:
        with compiling(cc) as kernels:
            sites[name]()
        found = {}
        for kernel in kernels:
            tile = [f"{n.lower()} {kernel.config[n]}" for n in TILE if n in kernel.config]
            tile += ["sloped"] if kernel.config.get("SLOPED") else []
            made = row("triton", kernel, ", ".join([name, *tile, f"{kernel.warps} warps"]))
            found[made.key] = made
        yield from found.values()


def cuda_rows(library: Path) -> Iterator[Row]:
    """Each kernel of the library for float32 and bfloat16 items, or of no dtype."""
    for kernel in in_library(library):
        if "Half" not in kernel.name:
            name, _, of = kernel.name.partition("<")
            yield row("cuda", kernel._replace(name=name), of.removesuffix(">") or "all")


def rows(library: Path | None, targets: tuple[int, ...] = tuple(GPUS)) -> list[Row]:
    """All of them, once each, in their order."""
    found = [r for cc in targets for r in triton_rows(cc)] + ([] if library is None else list(cuda_rows(library)))
    found = [r for r in found if int(r.target[3:]) in targets]
    assert len({r.key for r in found}) == len(found), "two rows of one name"
    return sorted(found, key=lambda r: (*r[:2], int(r.target[3:])))


def read() -> dict[tuple[str, str, str], Row]:
    """The rows of derived.md."""
    kinds = list(Row.__annotations__.values())
    lines = [
        line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if re.match(r"\| (triton|cuda) ", line)
    ]
    found = [Row(*(kind(value) for kind, value in zip(kinds, values, strict=True))) for values in lines]
    return {r.key: r for r in found}


def hold(found: list[Row]) -> None:
    """To derived.md: every kernel stands there, and has lost nothing."""
    table = read()
    assert found and not (new := [r.key for r in found if r.key not in table]), f"not in derived.md: {new}"
    assert not (worse := {r.key: lost for r in found if (lost := r.worse_than(table[r.key]))}), (
        f"worse than derived.md: {worse}"
    )


def floors() -> Iterator[str]:
    """Lines of the roofline: the two products of a pass over the catalog, or its one read of both tables."""
    yield "| workload | GPU | GFLOP | fp32 ms | tf32 ms | bf16 ms | memory ms | bound |"
    yield "|---|---|---|---|---|---|---|---|"
    for users, items, teacher, student in WORKLOADS:
        flop, read_bytes = 2 * users * items * (teacher + student), 4 * items * (teacher + student)
        for gpu in PEAKS:
            times = {name: flop / rate / 1e9 for name, rate in gpu.tflops.items()}
            memory = read_bytes / gpu.tbs / 1e9
            bound = ", ".join(f"{name} {'products' if t > memory else 'memory'}" for name, t in times.items())
            each = " | ".join(f"{t:.3f}" for t in (*times.values(), memory))
            yield f"| {users:,} x {items:,}, {teacher}/{student} | {gpu.name} | {flop / 1e9:.1f} | {each} | {bound} |"


def page(table: list[Row]) -> str:
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    versions = (
        f"triton {triton.__version__}, nvcc {re.search(r'release ([0-9.]+)', nvcc)[1]}, torch {torch.__version__}"  # type: ignore[index]
    )
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(map(str, r))} |" for r in table),
    ]
    floor = """
## Floors

Of one pass of `rank` by teacher and student: 2 B N (d_T + d_S) operations at the peak of the data sheet, and the two item tables
in float32 read once. No kernel reaches them; a time below them is an error of measurement.

"""
    return HEAD.format(versions=versions) + "\n".join(lines) + "\n" + floor + "\n".join(floors()) + "\n"


if __name__ == "__main__":
    TABLE.write_text(page(rows(Path(sys.argv[1]))))
