"""How a compiled product adds up: the chains of fused multiply-adds in PTX, and where in shared memory their factors lie.

A small symbolic reading of the text: registers that are written once stand for what they were given; one that is written more
often is a variable of a loop, and stands for itself.
"""

import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

LINE = re.compile(r"^\s*(?:@!?%p\d+ )?([a-z][\w.]*)\s+(.*);", re.MULTILINE)
REGISTER = re.compile(r"%\w+")
# [%r1+-8], [ %r1 + 0 ], [name+16], [name], [16]
ADDRESS = re.compile(r"\[\s*(?:(%?[A-Za-z_$][\w$]*)\s*\+?\s*)?(-?\d+)?\s*\]")


class Chain(NamedTuple):
    """A sum so far: what it starts from, and the place in shared memory, register and offset, of both factors of each link."""

    start: Any
    left: tuple[Any, ...]
    right: tuple[Any, ...]


class Half(NamedTuple):
    """The low (0) or high (1) part of a 64-bit register."""

    of: Any
    part: int


class Pair(NamedTuple):
    """Two 32-bit values in one register."""

    low: Any
    high: Any


def half(value: Any, part: int) -> Any:
    return value[part] if isinstance(value, Pair) else Half(value, part)


def multiply_add(a: Any, b: Any, addend: Any) -> Chain:
    chain = addend if isinstance(addend, Chain) else Chain(addend, (), ())
    return chain._replace(left=(*chain.left, a), right=(*chain.right, b))


def chains(ptx: str) -> list[tuple[Chain, bool]]:
    """Every whole sum in a kernel, and whether it goes on in the next round of the loop where this one began."""
    lines = [(m[1], m[2]) for m in LINE.finditer(ptx)]
    written = Counter(r for name, rest in lines for r in targets(name, rest))
    known: dict[str, Any] = {}
    given = defaultdict(list)  # all that a variable gets
    extended = set()

    def value(register: str) -> Any:
        return known.get(register, register)

    def write(register: str, it: Any) -> None:
        given[register].append(it)
        if written[register] == 1:
            known[register] = it

    for name, rest in lines:
        into, used = targets(name, rest), REGISTER.findall(rest)
        read = [value(r) for r in used[len(into) :]]
        if name.startswith("ld.shared") and name.endswith((".b32", ".b64")):
            base, offset = address(rest)
            for i, register in enumerate(into):
                if name.endswith("32"):
                    write(register, place(value(base), offset + 4 * i))
                else:
                    write(register, Pair(place(value(base), offset + 8 * i), place(value(base), offset + 8 * i + 4)))
        elif name == "add.s32" and len(read) == 1:
            write(into[0], place(read[0], int(rest.split(",")[-1])))
        elif name == "fma.rn.f32":
            extended.add(read[2])
            write(into[0], multiply_add(*read))
        elif name == "fma.rn.f32x2":
            parts = [[half(v, i) for v in read] for i in (0, 1)]
            extended |= {part[2] for part in parts}
            write(into[0], Pair(*(multiply_add(*part) for part in parts)))
        elif name == "mov.b64" and rest.startswith("{"):
            for i, register in enumerate(re.split(r",\s*", rest[1 : rest.index("}")])):
                if register != "_":  # that half is not wanted
                    write(register, half(read[0], i))
        elif name == "mov.b64" and "{" in rest:
            write(into[0], Pair(*read))
        elif name == "shl.b64" and rest.endswith(", 32"):
            write(into[0], Pair(0, half(read[0], 0) if isinstance(read[0], Pair) else read[0]))
        elif name == "or.b64" and len(read) == 2 and isinstance(read[0], Pair) and read[0].low == 0:
            write(into[0], Pair(read[1], read[0].high))
        elif name in ("mov.b32", "mov.b64", "cvt.u32.u64", "cvt.u64.u32") and len(read) == 1:
            write(into[0], read[0].low if isinstance(read[0], Pair) and name == "cvt.u32.u64" else read[0])
        else:
            for register in into:
                given[register].append(None)
    sums = [part for every in given.values() for v in every for part in (v if isinstance(v, Pair) else (v,))]
    whole = {c for c in sums if isinstance(c, Chain) and c not in extended}
    return [(c, c in carried(c.start, given)) for c in whole]


def targets(name: str, rest: str) -> list[str]:
    """The registers that an instruction writes."""
    if name.startswith(("st.", "bra", "bar", "cp.", "ret", "red", "setmaxnreg")):
        return []
    first = rest[: rest.index("}")] if rest.startswith("{") else rest.split(",")[0]
    return REGISTER.findall(first)


def address(rest: str) -> tuple[str, int]:
    """What a load reads: the register or the variable, "" if there is neither, and the bytes behind it."""
    found = ADDRESS.search(rest)
    assert found, f"no address: {rest}"
    return found[1] or "", int(found[2] or 0)


def place(base: Any, offset: int) -> tuple[Any, int]:
    """An address: register or variable, and offset."""
    return (base[0], base[1] + offset) if type(base) is tuple else (base, offset)


def carried(start: Any, given: dict[str, list[Any]]) -> list[Any]:
    """What the variable that a sum starts from is given."""
    if isinstance(start, Half):
        return [half(v, start.part) for v in given.get(start.of, ()) if v is not None]
    return [v for v in given.get(start, ()) if v is not None] if isinstance(start, str) else []


def in_order(factors: tuple[Any, ...]) -> bool:
    """Whether they are one run of floats in shared memory."""
    if not all(type(f) is tuple for f in factors):
        return False
    base, first = factors[0]
    return list(factors) == [(base, first + 4 * k) for k in range(len(factors))]
