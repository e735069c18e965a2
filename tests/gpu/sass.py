"""The way of a thread through a compiled kernel: blocks of instructions, the loops that they form, and the shortest way
through a loop that does what a warp is known to do there.

A kernel holds ways that hardly any thread takes: rows that are not aligned, scores that are equal, numbers that are NaN. What
a warp issues is therefore asked for by what it must do on its way, "two copies, 256 multiplications and no loop", and the
shortest way that does exactly this is the answer. If there is none, the kernel is no longer what the question says.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

LINE = re.compile(
    r"^\s*(?:(?P<label>\.L_x_\d+):|/\*[0-9a-f]+\*/\s+(?P<guard>@!?U?P[T\d]+\s+)?(?P<name>[A-Z][\w.]*)(?P<rest>[^;]*);)",
    re.MULTILINE,
)
LABEL = re.compile(r"\.L_x_\d+")
State = tuple[int, ...]  # how many of each wanted kind were met
Step = tuple[int, State]  # a block, and what was met up to its end


class Way(NamedTuple):
    """What a warp does from one end to the other. A loop on the way counts as one instruction, of its own name."""

    instructions: Counter[str]  # by their whole names
    loops: tuple["Loop", ...]  # on the way, whose rounds are not counted

    def count(self, kind: str) -> int:
        return count(self.instructions, kind)

    @property
    def issued(self) -> int:
        return self.instructions.total() - len(self.loops)


def is_kind(name: str, kind: str) -> bool:
    """Whether an instruction is of a kind: "LDS.128" is any LDS, whatever its other modifiers, of 128 bits."""
    first, *parts = name.split(".")
    wanted, *modifiers = kind.split(".")
    return first == wanted and set(modifiers) <= set(parts)


def count(instructions: Counter[str], *kinds: str) -> int:
    return sum(n for name, n in instructions.items() if any(is_kind(name, kind) for kind in kinds))


class Loop(NamedTuple):
    """A header, through which each round begins, and all blocks of a round."""

    flow: "Flow"
    header: int
    blocks: frozenset[int]

    def round(self, wanted: Mapping[str, int]) -> Way:
        """The shortest round with exactly so many instructions of each kind; other kinds come as they do."""
        ends = {b for b in self.blocks if self.header in self.flow.next[b]}
        return self.flow.shortest(self.header, ends, self.blocks, wanted)

    @property
    def name(self) -> str:
        """Stands for the loop on a way: "loop.LDS" is the kind of all loops that hold an LDS."""
        return ".".join(["loop", *sorted({name.split(".")[0] for name in self.all()})])

    def leads_to(self) -> set[int]:
        return {to for b in self.blocks for to in self.flow.next[b] if to not in self.blocks}

    def all(self) -> Counter[str]:
        """Instructions of all its blocks, also those of the loops inside."""
        return sum((self.flow.blocks[b] for b in self.blocks), Counter())


class Flow:
    """A kernel from its disassembly. Blocks are numbered in their order there; a jump out of the kernel has no successor."""

    def __init__(self, sass: str) -> None:
        self.blocks: list[Counter[str]] = [Counter()]
        labels: dict[str, int] = {}
        jumps: list[tuple[int, str]] = []
        falls = [True]  # whether a block goes on to the next
        ended = False
        for m in LINE.finditer(sass):
            if m["label"] or ended:
                ended = False
                if self.blocks[-1]:
                    self.blocks.append(Counter())
                    falls.append(True)
            if m["label"]:
                labels[m["label"]] = len(self.blocks) - 1
                continue
            name = "NOP" if (m["guard"] or "").strip() == "@!PT" else m["name"]  # it takes its slot, and does nothing
            first = name.split(".")[0]
            self.blocks[-1][name] += 1
            if first in ("BRA", "EXIT", "RET"):
                ended = True
                conditional = bool(m["guard"]) or re.match(r"\s*!?U?P\d", m["rest"]) is not None
                falls[-1] = conditional
                if target := LABEL.search(m["rest"]):
                    jumps.append((len(self.blocks) - 1, target[0]))
        self.next: list[list[int]] = [[b + 1] if f and b + 1 < len(falls) else [] for b, f in enumerate(falls)]
        for block, label in jumps:
            self.next[block].append(labels[label])

    @cached_property
    def order(self) -> list[int]:
        """The blocks that are reached, each before those that it leads to but for the jumps back."""
        done: list[int] = []
        met, stack = {0}, [(0, iter(self.next[0]))]
        while stack:
            following = next(stack[-1][1], None)
            if following is None:
                done.append(stack.pop()[0])
            elif following not in met:
                met.add(following)
                stack.append((following, iter(self.next[following])))
        return done[::-1]

    @cached_property
    def before(self) -> dict[int, list[int]]:
        """The blocks that lead to each."""
        found: dict[int, list[int]] = {b: [] for b in self.order}
        for b in self.order:
            for following in self.next[b]:
                found[following].append(b)
        return found

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        """Of each block: those that every way to it passes, itself among them."""
        found = {b: set(self.order) for b in self.order}
        found[0] = {0}
        changed = True
        while changed:
            changed = False
            for b in self.order[1:]:
                new = set.intersection(*(found[p] for p in self.before[b])) | {b}
                if new != found[b]:
                    found[b], changed = new, True
        return found

    @cached_property
    def loops(self) -> list[Loop]:
        """The natural loops, those with one header as one; an outer one before those inside."""
        bodies: dict[int, set[int]] = {}
        for b in self.order:
            for header in self.next[b]:
                if header in self.dominators[b]:
                    body = bodies.setdefault(header, {header})
                    stack = [b]
                    while stack:
                        block = stack.pop()
                        if block not in body:
                            body.add(block)
                            stack += self.before[block]
        return sorted((Loop(self, h, frozenset(b)) for h, b in bodies.items()), key=lambda loop: -len(loop.blocks))

    def within(self, blocks: frozenset[int]) -> list[Loop]:
        """The outermost loops inside of some blocks."""
        inside = [loop for loop in self.loops if loop.blocks < blocks]
        return [loop for loop in inside if not any(loop.blocks < other.blocks for other in inside)]

    def loop(self, **at_least: int) -> Loop:
        """The smallest loop with at least so many instructions of these kinds, loops inside included."""
        fits = [p for p in self.loops if all(count(p.all(), kind) >= n for kind, n in at_least.items())]
        if not fits:
            raise LookupError(f"no loop with {at_least}")
        return min(fits, key=lambda loop: loop.all().total())

    def shortest(self, start: int, ends: set[int], blocks: frozenset[int], wanted: Mapping[str, int]) -> Way:
        """From a block to one of the ends, both included, inside of `blocks`, with exactly what is wanted on the way."""
        aim = tuple(wanted.values())
        inner = {b: loop for loop in self.within(blocks) if start not in loop.blocks for b in loop.blocks}
        # of a block or, by its header, a loop: what was met up to its end -> instructions, and the step before
        best: dict[int, dict[State, tuple[int, Step | None]]] = {}
        arrivals: dict[int, dict[State, tuple[int, Step | None]]] = {start: {(0,) * len(aim): (0, None)}}
        for b in self.order:
            if b not in arrivals or b not in blocks:
                continue
            loop = inner.get(b)
            here = Counter([loop.name]) if loop else self.blocks[b]
            added, cost = [count(here, kind) for kind in wanted], 0 if loop else here.total()
            ways = best[b] = {}
            for state, (length, before) in arrivals[b].items():
                new = tuple(map(sum, zip(state, added, strict=True)))
                if all(n <= most for n, most in zip(new, aim, strict=True)):
                    ways[new] = (length + cost, before)
            following = loop.leads_to() if loop else self.next[b]
            for to in following:
                if to == start or to not in blocks:
                    continue
                there = arrivals.setdefault(to, {})
                for state, (length, _) in ways.items():
                    if state not in there or length < there[state][0]:
                        there[state] = (length, (b, state))
        reached = [(best[b][aim][0], b) for b in ends if aim in best.get(b, {})]
        if not reached:
            raise LookupError(f"no way with {dict(wanted)}")
        instructions, passed = Counter[str](), []
        step: Step | None = (min(reached)[1], aim)
        while step:
            b, state = step
            if loop := inner.get(b):
                passed.append(loop)
            instructions += Counter([loop.name]) if loop else self.blocks[b]
            step = best[b][state][1]
        return Way(instructions, tuple(passed[::-1]))
