"""The weight families of the sampler: how a discrepancy of ranks becomes a sampling probability (design: section 1).

With n candidates and the gap g = (rank_guide - rank_learner) / n of an item, positive where the learner over-ranks it,
`side="under"` puts -g in the place of g. Probabilities are proportional to the weights.
"""

import sys
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np

Side = Literal["over", "under"]


class WeightCode(NamedTuple):
    """A weight as the operators take it; without a kind its direction is off."""

    kind: str = ""
    parameter: float = 0.0
    flipped: bool = False


def _positive(name: str, value: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (float, int, np.floating, np.integer, type(None))):
        raise TypeError(f"{name}: expected float, got {type(value).__name__}")
    if isinstance(value, (np.floating, np.integer)):
        value = value.item()  # a narrow one would be compared in its own type
    if value is not None and not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")


@dataclass(frozen=True)
class Weight:
    """Base of the families. An operator sees only `kind`, `parameter(n_items)` and whether the gap is flipped."""

    kind: ClassVar[str]

    def parameter(self, n_items: int) -> float:
        """The family's one number for a catalog of n_items, 0.0 where it has none."""
        return 0.0

    @property
    def flipped(self) -> bool:
        """True if the learner's under-ranked items are the ones to draw."""
        return getattr(self, "side", "over") == "under"


@dataclass(frozen=True)
class _Sided(Weight):
    side: Side = field(default="over", kw_only=True)

    def __post_init__(self) -> None:
        if self.side not in ("over", "under"):
            raise ValueError(f"side: expected 'over' or 'under', got {self.side!r}")


@dataclass(frozen=True)
class _Sharp(_Sided):
    alpha: float | None = None
    eps: float | None = field(default=None, kw_only=True)
    default: ClassVar[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.eps is not None:
            raise ValueError("alpha, eps: expected one of them (alpha = eps * n_items), got both")
        _positive("eps" if self.eps is not None else "alpha", self.eps if self.alpha is None else self.alpha)

    def parameter(self, n_items: int) -> float:
        if self.eps is not None:
            return self.eps * n_items
        return self.default if self.alpha is None else self.alpha


@dataclass(frozen=True)
class Tanh(_Sharp):
    """tanh(alpha * max(g, 0)): every item that the learner over-ranks, about equally when alpha is large.

    Args:
        alpha: sharpness, > 0; 252 unless told (the released setting at 25,187 items).
        side: "over" draws what the learner over-ranks, "under" what it under-ranks.
        eps: the paper's way to say it, instead of alpha: alpha = eps * n_items.
    """

    kind: ClassVar[str] = "tanh"
    default: ClassVar[float] = 252.0


@dataclass(frozen=True)
class Exp(_Sharp):
    """exp(alpha * g): every item, the more the learner over-ranks it.

    Args:
        alpha: sharpness, > 0; 2.5 unless told (the released setting at 25,187 items).
        side: "over" draws what the learner over-ranks, "under" what it under-ranks.
        eps: the paper's way to say it, instead of alpha: alpha = eps * n_items.
    """

    kind: ClassVar[str] = "exp"
    default: ClassVar[float] = 2.5


@dataclass(frozen=True)
class Linear(_Sided):
    """max(g, 0)."""

    kind: ClassVar[str] = "linear"


@dataclass(frozen=True)
class Uniform(Weight):
    """1 for every candidate: random items, the ablation of the discrepancy."""

    kind: ClassVar[str] = "uniform"


@dataclass(frozen=True)
class RankOnly(Weight):
    """exp(-rank_guide / mu): the guide's top items, whatever the learner thinks of them.

    Args:
        mu: > 0, in ranks: about how many of the guide's best items are drawn.
    """

    mu: float
    kind: ClassVar[str] = "rank_only"

    def __post_init__(self) -> None:
        _positive("mu", self.mu)

    def parameter(self, n_items: int) -> float:
        return self.mu


KINDS = tuple(w.kind for w in (Tanh, Exp, Linear, Uniform, RankOnly))
