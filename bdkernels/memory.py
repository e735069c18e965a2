"""Whether tensors that are written to share memory, as a test of their addresses."""

from typing import NamedTuple

from torch import Tensor


class _Rows(NamedTuple):
    """Bytes of n rows of `width`, whose starts are `stride` apart."""

    name: str
    first: int
    n: int
    width: int
    stride: int

    @classmethod
    def of(cls, name: str, t: Tensor) -> "_Rows":
        size, first = t.element_size(), t.data_ptr()
        if t.dim() == 2 and t.stride(1) == 1 and t.stride(0) >= t.shape[1]:
            return cls(name, first, t.shape[0], t.shape[1] * size, t.stride(0) * size)
        width = (1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))) * size
        return cls(name, first, 1, width, width)

    @property
    def stop(self) -> int:
        return self.first + (self.n - 1) * self.stride + self.width

    def meets(self, other: "_Rows") -> bool:
        """Whether a byte is in both, whose bytes from first to last overlap. Rows of different strides are taken to meet."""
        if self.n > 1 and other.n > 1 and self.stride != other.stride:
            return True
        stride = self.stride if self.n > 1 else other.stride
        apart = other.first - self.first
        # Row j of the other meets row i of this one where -other.width < apart + (j - i) * stride < self.width.
        least = max(1 - self.n, (-other.width - apart) // stride + 1)
        most = min(other.n - 1, (self.width - apart - 1) // stride)
        return least <= most


def shared(tensors: dict[str, Tensor]) -> tuple[str, str] | None:
    """Names of two tensors of which a number lies in both; None where there are none. Views of other columns are none."""
    rows = sorted((_Rows.of(name, t) for name, t in tensors.items() if t.numel()), key=lambda r: r.first)
    open_: list[_Rows] = []
    for late in rows:
        open_ = [early for early in open_ if early.stop > late.first]
        for early in open_:
            if early.meets(late):
                return early.name, late.name
        open_.append(late)
    return None
