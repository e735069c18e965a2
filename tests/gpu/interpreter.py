"""Makes Triton's interpreter as strict as a GPU: import it, under TRITON_INTERPRET=1, before any kernel.

As shipped (triton 3.9) the interpreter works on bit patterns of bf16, hides the rounding of tf32, takes any tile shape for a
product, and sees neither accesses beyond a buffer nor programs that race. Here
  numbers   a fp32 product (ieee) is one chain of fused multiply-adds over k in order: an assumption about the compiler,
            which nothing here shows; tf32 rounds its operands; bf16 and fp16 products are exact, their sums fp32; other
            arithmetic in bf16 is refused
  memory    every address lies inside of a tensor that the launch was given, aligned to its element
  races     no program reads or writes what another one writes, but by atomics on both sides
  order     programs run in a shuffled order if asked
  autotune  every configuration runs, and all must leave the same results
It cannot see layouts, pipelining, spills, shared memory: those are the compiler's.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before importing triton"

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as shipped
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime.autotuner import Autotuner

Builder, Handle = shipped.InterpreterBuilder, shipped.TensorHandle


class KernelError(AssertionError):
    """A kernel did what a GPU would punish, or worse, let pass."""


@dataclass
class Strictness:
    """What the checks do; change it by `strict`."""

    seed: int | None = None  # of the order of programs; None: in the order of their ids
    config: int | None = None  # of an autotuned kernel; None: all in turn, and compared


STRICT = Strictness()


@contextlib.contextmanager
def strict(**changed: Any) -> Iterator[None]:
    """Other settings of STRICT for a while."""
    before = dict(vars(STRICT))
    vars(STRICT).update(changed)
    try:
        yield
    finally:
        vars(STRICT).update(before)


# ---- numbers ----


def _scalar(handle: Any) -> Any:
    return handle.dtype.scalar


def _float32(handle: Any) -> np.ndarray:
    if _scalar(handle) == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data.astype(np.float32)


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bit patterns, rounded to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _cast(self: Any, src: Any, dst_type: Any, *rounding: Any) -> Any:
    if _scalar(src) == dst_type.scalar or tl.bfloat16 not in (_scalar(src), dst_type.scalar):
        return (_shipped_fp_to_fp if rounding else _shipped_cast)(self, src, dst_type, *rounding)
    wide = Handle(_float32(src), tl.float32)
    if dst_type.scalar == tl.bfloat16:
        return Handle(_to_bfloat16(wide.data), tl.bfloat16)
    return _shipped_cast(self, wide, dst_type)


def _no_bfloat16(run: Any) -> Any:
    def checked(self: Any, *args: Any) -> Any:
        if any(isinstance(a, Handle) and _scalar(a) == tl.bfloat16 for a in args):
            raise KernelError("arithmetic in bf16: convert to fp32 first")
        return run(self, *args)

    return checked


def _dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, _: Any) -> Any:
    kind, k = _scalar(a), a.data.shape[-1]
    least = {8: 32, 16: 16, 32: 8, 64: 4}[kind.primitive_bitwidth]  # the compiler refuses less
    if k < least or min(a.data.shape[-2], b.data.shape[-1]) < 1:
        raise KernelError(f"tl.dot of {kind} over k = {k}: at least {least} will compile")
    x, y, out = _float32(a), _float32(b), acc.data
    if kind == tl.float32 and "IEEE" in str(precision):
        for i in range(k):
            out = shipped._interpreter.fma_fp32(
                *map(np.ascontiguousarray, np.broadcast_arrays(x[:, i, None], y[i], out))
            )
        return Handle(out, tl.float32)
    if kind == tl.float32:
        x, y = shipped._round_f32_to_tf32(x), shipped._round_f32_to_tf32(y)
    return Handle(np.matmul(x, y) + out, tl.float32)


_shipped_cast, _shipped_fp_to_fp = Builder.cast_impl, Builder.create_fp_to_fp
Builder.cast_impl = Builder.create_fp_to_fp = _cast
Builder.binary_op, Builder.unary_op = _no_bfloat16(Builder.binary_op), _no_bfloat16(Builder.unary_op)
Builder.create_dot = _dot


# ---- memory, races, order ----

NOBODY, SEVERAL = -1, -2


class Launch:
    """The buffers of one launch, and which program did what to each of their bytes last."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
        self.start = np.array(sorted(storages), np.uint64)
        self.size = np.array([storages[int(s)] for s in self.start], np.uint64)
        self.place = np.concatenate([[0], np.cumsum(self.size)]).astype(np.int64)
        self.by = {kind: np.full(int(self.place[-1]), NOBODY, np.int32) for kind in ("load", "store", "atomic")}
        self.program, self.turn = 0, 0
        self.order: np.ndarray | None = None
        self.patched: set[int] = set()  # modules of Triton's language

    def touch(self, kind: str, handle: Any, mask: Any) -> None:
        """Check the addresses of one access by the current program, and note it."""
        wanted = np.ones(handle.data.shape, bool) if mask is None else np.broadcast_to(mask.data, handle.data.shape)
        address = handle.data[wanted].astype(np.uint64)
        if not address.size:
            return
        width = max(1, handle.get_element_ty().primitive_bitwidth // 8)
        buffer = np.searchsorted(self.start, address, side="right").astype(np.int64) - 1
        inside = buffer >= 0
        offset = address - self.start[buffer] if self.start.size else address
        inside &= offset + np.uint64(width) <= self.size[buffer] if self.start.size else False
        if not inside.all():
            at = int(np.flatnonzero(~inside)[0])
            raise KernelError(f"{kind} out of bounds by {(~inside).sum()} lanes, the first at byte {int(offset[at])}")
        if (address % np.uint64(width)).any():
            raise KernelError(f"{kind} not aligned to elements of {width} bytes")
        self._race(kind, self.place[buffer] + offset.astype(np.int64))

    def _race(self, kind: str, byte: np.ndarray) -> None:
        if kind == "store" and np.unique(byte).size != byte.size:
            raise KernelError("two lanes of one program store to one address")
        against = {"load": ("store", "atomic"), "store": ("load", "store", "atomic"), "atomic": ("load", "store")}
        for other in against[kind]:
            theirs = self.by[other][byte]
            if (bad := (theirs != NOBODY) & (theirs != self.program)).any():
                who = int(theirs[np.flatnonzero(bad)[0]])
                raise KernelError(f"race: {kind} by program {self.program}, {other} by program {who}")
        last = self.by[kind][byte]
        self.by[kind][byte] = np.where((last == NOBODY) | (last == self.program), self.program, SEVERAL)


_launch: Launch | None = None


def _watched(kind: str, mask_at: int | None, run: Any) -> Any:
    def access(self: Any, *args: Any, **kwargs: Any) -> Any:
        pointers = args[1] if kind == "atomic" and mask_at is not None else args[0]
        if _launch is not None:
            _launch.touch(kind, pointers, None if mask_at is None else args[mask_at])
        return run(self, *args, **kwargs)

    return access


def _set_program(self: Any, x: int, y: int, z: int) -> None:
    if _launch is not None:
        gx, gy, gz = self.grid_dim
        if _launch.order is None:
            ids = np.arange(gx * gy * gz)
            _launch.order = ids if STRICT.seed is None else np.random.default_rng(STRICT.seed).permutation(ids)
        _launch.program = int(_launch.order[_launch.turn])
        _launch.turn += 1
        x, y, z = _launch.program % gx, _launch.program // gx % gy, _launch.program // gx // gy
    _shipped_set_program(self, x, y, z)


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    global _launch
    grid = self.grid if isinstance(self.grid, tuple) else ()
    if not all(0 < n <= limit for n, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=False)):
        raise KernelError(f"grid {grid} cannot be launched")
    before, _launch = _launch, Launch([a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)])
    try:
        return _shipped_call(self, *args, **kwargs)
    except shipped.InterpreterError as error:
        cause: BaseException | None = error
        while (cause := cause.__cause__) is not None:
            if isinstance(cause, KernelError):
                raise cause from None
        raise
    finally:
        _launch = before


_shipped_set_program, _shipped_call = Builder.set_grid_idx, shipped.GridExecutor.__call__
Builder.create_masked_load = _watched("load", 1, Builder.create_masked_load)
Builder.create_masked_store = _watched("store", 2, Builder.create_masked_store)
Builder.create_atomic_rmw = _watched("atomic", 3, Builder.create_atomic_rmw)
Builder.set_grid_idx, shipped.GridExecutor.__call__ = _set_program, _disable_current_modes()(_call)


# ---- what the interpreter does again and again: a fifth of its time ----


def _patch_language(fn: Any) -> Any:
    """Once in a launch, not in each call of a function by a kernel: it goes through all of the language, to the same end."""
    modules = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
    if _launch is not None:
        if modules <= _launch.patched:
            return None
        _launch.patched |= modules
    return _shipped_patch_language(fn)


def _np_dtype(of: Any) -> Any:
    """By a table that is made once, not at each question."""
    element = of.element_ty if isinstance(of, tl.block_type) else of
    return _shipped_np_dtype(element) if isinstance(element, tl.pointer_type) else _np_dtype_of(element)


_shipped_patch_language, _shipped_np_dtype = shipped._patch_lang, shipped._get_np_dtype
_np_dtype_of = functools.cache(_shipped_np_dtype)
shipped._patch_lang, shipped._get_np_dtype = _patch_language, _np_dtype


# ---- autotune ----


def _run(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Every configuration that is not pruned, each from the same start; the first one's results stay."""
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    configs = self.prune_configs(kwargs)
    configs = configs if STRICT.config is None else [configs[STRICT.config % len(configs)]]
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    start = [t.clone() for t in tensors]
    for i, config in enumerate(configs):
        for tensor, value in zip(tensors, start, strict=True):
            tensor.data.copy_(value)  # unseen by autograd: a GPU writes nothing here
        self.fn.run(*args, **kwargs, **config.all_kwargs())
        if i == 0:
            first = [t.clone() for t in tensors]
    for tensor, one in zip(tensors, first, strict=True):
        torch.testing.assert_close(tensor, one, equal_nan=True, msg=lambda m: f"configurations disagree: {m}")
        tensor.data.copy_(one)


Autotuner.run = _disable_current_modes()(_run)  # no_wait.py looks at the operators around a kernel
