"""What arguments must be. Shapes, dtypes and devices cost nothing and are checked under fake tensors too; values cost a pass.

On a GPU nothing here waits for the device: a wrong value fails an assertion there, as an index out of range does in torch, and
surfaces at the next synchronisation. CUDA_LAUNCH_BLOCKING=1 makes it surface at the call. Within `asked`, which is for what waits
for the device anyway, values of a GPU are asked for like others.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from bdkernels import memory, ranges
from bdkernels.ranges import Range
from bdkernels.types.factors import Factors
from bdkernels.types.rule import Rule
from bdkernels.types.seen import Seen
from bdkernels.types.step import DistillInputs, StepInputs
from bdkernels.weights import KINDS

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_ITEMS = 2**31
ASSERTS = ("cuda",)  # types of the devices that assert values; the others are asked for them
PLACES = 64  # of tables and their state that are known to be apart
Values = Callable[[Tensor | None, Seen | None, int], Tensor]  # `Steps.values`
_ASKED = ContextVar("asked", default=False)
_LATER: "ContextVar[list[Doubt] | None]" = ContextVar("later", default=None)
_apart: set[tuple[Any, ...]] = set()


class NaNScore(ValueError):
    """A score that is no number: of which factors, and for which row of users and which item."""

    def __init__(self, name: str, row: int, item: int) -> None:
        super().__init__(f"{name}: expected finite scores, got NaN for user row {row}, item {item}")
        self.name, self.row, self.item = name, row, item


class Doubt(NamedTuple):
    """A check of scores that was put off."""

    holds: Tensor | bool  # [] bool, on the device of the scores
    error: Callable[[], NaNScore]  # what it is to raise where that is false; to find out, the host waits for the device


class NonFiniteLoss(ValueError):
    """A training step whose losses are no finite numbers."""

    def __init__(self, cf: float, distill: float) -> None:
        super().__init__(
            f"losses: expected finite numbers, got cf {cf} and distill {distill}: a row of the tables or a guide score of this"
            " batch is not finite or too large; lower the learning rate if they were trained"
        )


@contextmanager
def asked() -> Iterator[None]:
    """Values raise a ValueError at the call on every device."""
    token = _ASKED.set(True)
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextmanager
def later() -> Iterator[list[Doubt]]:
    """A NaN that a kernel meets in factors raises nothing inside: the list gets the checks, for whoever asks later."""
    doubts: list[Doubt] = []
    token = _LATER.set(doubts)
    try:
        yield doubts
    finally:
        _LATER.reset(token)


def _asserts(condition: Tensor | bool | int | None) -> TypeGuard[Tensor]:
    return isinstance(condition, Tensor) and condition.device.type in ASSERTS and not _ASKED.get()


def _is(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _holds(condition: Tensor | bool, name: str, expected: str, got: Callable[[], object]) -> None:
    """`_is` for a condition on values, [] bool; `got` is asked only where the values are at hand."""
    if _asserts(condition):
        torch._assert_async(condition, f"{name}: expected {expected}")
    elif not condition:
        _is(False, name, expected, got())


def instance(name: str, value: object, *types: type) -> None:
    """TypeError unless it is one; what the schema would refuse in words of its own, and what it would not."""
    if not isinstance(value, types) or (
        isinstance(value, bool) and bool not in types
    ):  # a bool is an int to Python alone
        raise TypeError(f"{name}: expected {types[0].__name__}, got {type(value).__name__}")


def int64(name: str, value: int) -> None:
    instance(name, value, int, np.integer, torch.SymInt)
    _is(-(2**63) <= value < 2**63, name, "an integer of 64 bits", value)


def float64(name: str, value: float) -> None:
    instance(name, value, float, int, np.floating, np.integer, torch.SymFloat, torch.SymInt)
    _is(not isinstance(value, int) or abs(value) <= sys.float_info.max, name, "a float64", value)


def tensor(
    name: str, t: Tensor, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """A letter in `shape` stands for any size, a number for just that."""
    fits = t.dim() == len(shape) and all(isinstance(s, str) or t.shape[i] == s for i, s in enumerate(shape))
    if fits and t.layout == torch.strided and t.dtype in dtypes and t.device == device:
        return
    want = "[" + ", ".join(str(s) for s in shape) + "]"
    _is(fits, name, f"shape {want}", list(t.shape))
    _is(t.layout == torch.strided, name, "a dense tensor", t.layout)
    _is(t.dtype in dtypes, name, " or ".join(str(d).removeprefix("torch.") for d in dtypes), t.dtype)
    _is(t.device == device, name, f"device {device}", t.device)


def factors(f: Factors, prefix: str = "", dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    users, items, bias = f
    device = users.device
    tensor(f"{prefix}user_factors", users, ("B", "d"), dtypes, device)
    tensor(f"{prefix}item_factors", items, ("N", users.shape[1]), (users.dtype,), device)
    if bias is not None:
        tensor(f"{prefix}item_bias", bias, (items.shape[0],), (users.dtype,), device)
    _is(items.shape[0] < MAX_ITEMS, f"{prefix}item_factors", "fewer than 2^31 rows", items.shape[0])


def seen(s: Seen | None, n_rows: int, device: torch.device) -> None:
    if s is not None:
        tensor("seen.indptr", s.indptr, (n_rows + 1,), (torch.int64,), device)
        tensor("seen.indices", s.indices, ("nnz",), (torch.int64,), device)


def seen_values(s: Seen | None, limit: int) -> None:
    """Rows in order, ids in [0, limit), strictly increasing in a row."""
    if s is None:
        return
    nnz = s.indices.shape[0]
    ends = s.indptr[0], s.indptr[-1]
    _holds(
        (ends[0] == 0) & (ends[1] == nnz), "seen.indptr", f"first 0 and last {nnz}", lambda: [int(end) for end in ends]
    )
    rises = (s.indptr[1:] >= s.indptr[:-1]).all()  # not by differences: those of large values wrap
    _holds(rises, "seen.indptr", "non-decreasing values", lambda: "a row that ends before it starts")
    if nnz == 0:
        return
    if _asserts(rises):  # one question to the device for both
        before = torch.nn.functional.pad(s.indices, (1, 0)).scatter_(0, s.indptr.clamp(0, nnz), -1)
        rising = ((s.indices > before[:-1]) & (s.indices < limit)).all()
        expected = f"ids in [0, {limit}), strictly increasing ids in each row"
        torch._assert_async(rising, f"seen.indices: expected {expected}")
        return
    ids_values("seen.indices", s.indices, limit)
    starts = torch.zeros(nnz + 1, dtype=torch.bool, device=s.indices.device)
    starts.scatter_(0, s.indptr.clamp(0, nnz), True)
    rising = ((s.indices[1:] > s.indices[:-1]) | starts[1:-1]).all()
    _holds(rising, "seen.indices", "strictly increasing ids in each row", lambda: "unsorted or repeated ids")


def own(t: Tensor) -> Tensor:
    """The values of an index tensor as they are now: what is checked must be what is used as an address, whatever another thread
    writes to the caller's tensor meanwhile. A copy on a CPU; a GPU's queue has its own order.
    """
    return t if t.device.type in ASSERTS else t.clone(memory_format=torch.contiguous_format)


def own_seen(s: Seen | None, limit: int, values: Values | None = None) -> Seen | None:
    """`own` rows whose values are checked."""
    if s is None or _asserted(None, s, limit, values):
        return s
    rows = Seen(own(s.indptr), own(s.indices))
    seen_values(rows, limit)
    return rows


def own_listed(ids: Tensor, s: Seen | None, limit: int, values: Values | None) -> tuple[Tensor, Seen | None]:
    """`own` ids and rows of seen items whose values are checked."""
    if _asserted(ids, s, limit, values):
        return ids, s
    return own_ids("ids", ids, limit), own_seen(s, limit)


def _asserted(ids: Tensor | None, s: Seen | None, limit: int, values: Values | None) -> bool:
    """Whether a backend's `values` has looked at both, in one launch for a device that asserts what it found."""
    like = s.indptr if ids is None and s is not None else ids
    if values is None or not _asserts(like):
        return False
    fine = values(ids, s, limit)
    if ids is not None:
        torch._assert_async(fine[0], f"ids: expected ids in [0, {limit})")
    if s is not None:
        ends, rising = f"indptr that rises from 0 to {s.indices.shape[0]}", f"strictly increasing ids in [0, {limit})"
        torch._assert_async(fine[1], f"seen: expected {ends}, {rising} in each row")
    return True


def own_ids(name: str, ids: Tensor, limit: int, what: str = "ids") -> Tensor:
    """`own` ids whose values are checked."""
    ids = own(ids)
    ids_values(name, ids, limit, what)
    return ids


def ids_values(name: str, ids: Tensor, limit: int, what: str = "ids") -> None:
    if not ids.numel():
        return
    if limit > 0 and _asserts(ids):  # an operation less
        torch._assert_async((ids == ids.clamp(0, limit - 1)).all(), f"{name}: expected {what} in [0, {limit})")
    else:
        lo, hi = torch.aminmax(ids)
        _holds((lo >= 0) & (hi < limit), name, f"{what} in [0, {limit})", lambda: f"{int(lo)} to {int(hi)}")


def own_rising_ids(name: str, ids: Tensor, limit: int) -> Tensor:
    """`own` ids [m], at least one and rising."""
    _is(len(ids) > 0, name, "at least one id", 0)
    ids = own_ids(name, ids, limit)
    _holds((ids.diff() > 0).all(), name, "strictly increasing ids", lambda: "unsorted or repeated ids")
    return ids


def no_nan(name: str, t: Tensor) -> None:
    _holds(t.isnan().any().logical_not(), name, "no NaN", lambda: "NaN")


def no_nan_at(at: Tensor | int, n: int, item_offset: int = 0) -> None:
    """What a kernel found: the flat index of a NaN among the scores [B, n] of factors, or -1; int64 [] or a number."""
    _finite(at < 0, lambda: NaNScore("factors", int(at) // n, item_offset + int(at) % n))


def no_nan_in_rows(at: int, n: int, rows: Tensor) -> None:
    """The same for a place in a list of rows instead of a row."""
    if at >= 0:
        raise NaNScore("factors", int(rows[at // n]), at % n)


def no_nan_listed(scores: Tensor, ids: Tensor) -> None:
    """The same for scores [B, C] of listed items."""
    bad = scores.isnan()

    def error() -> NaNScore:
        row, column = (int(v) for v in bad.nonzero()[0])
        return NaNScore("factors", row, int(ids[row, column]))

    _finite(bad.any().logical_not(), error)


def _finite(holds: Tensor | bool, error: Callable[[], NaNScore]) -> None:
    """What was found of the scores of factors; `error` is asked only where the values are at hand."""
    if (doubts := _LATER.get()) is not None:
        doubts.append(Doubt(holds, error))
    elif _asserts(holds):
        torch._assert_async(holds, "factors: expected finite scores")
    elif not holds:
        raise error()


def no_nan_scores(name: str, scores: Tensor, rows: Tensor | None, item: Callable[[int, int], int]) -> None:
    """No NaN among scores [B, n] of an argument. `rows` [B] are the rows' numbers in the call, by default 0, 1, ...; `item` gives
    the id at a row and a column.
    """
    bad = scores.isnan()
    if _asserts(bad):
        torch._assert_async(bad.any().logical_not(), f"{name}: expected finite scores")
    elif bad.any():
        row, column = (int(v) for v in bad.nonzero()[0])
        raise NaNScore(name, row if rows is None else int(rows[row]), item(row, column))


def same_scores(name: str, then: Tensor, now: Tensor, rows: Tensor, items: Tensor, numbers: Tensor | None) -> None:
    """Scores [n] of these rows and items are what they were before; `numbers` as the rows of `no_nan_scores`."""
    differ = then != now

    def got() -> str:
        at = int(differ.nonzero()[0])
        row = rows[at] if numbers is None else numbers[rows[at]]
        return f"{float(then[at])} and then {float(now[at])} for user row {int(row)}, item {int(items[at])}"

    _holds(differ.any().logical_not(), name, "the same score each time that it is asked for", got)


def same(name: str, value: object, expected: object) -> None:
    _is(value == expected, name, str(expected), value)


def no_nan_in_block(at: Tensor | int, n: int) -> None:
    """The same for scores [B, n] that the caller gave."""
    _holds(at < 0, "scores", "no NaN", lambda: f"NaN at [{int(at) // n}, {int(at) % n}]")


def integer(name: str, value: int, low: int, high: int | None = None) -> None:
    fits = value >= low and (high is None or value <= high)
    _is(fits, name, f"an integer >= {low}" + ("" if high is None else f" and <= {high}"), value)


def like(name: str, t: Tensor, other: Tensor) -> None:
    tensor(name, t, tuple(other.shape), (other.dtype,), t.device)


def within(name: str, value: float, allowed: Range) -> None:
    if value not in allowed:
        _is(False, name, allowed.words, value)


def weight(name: str, kind: str, parameter: float) -> None:
    _is(kind in ("", *KINDS), name, "a weight kind of " + ", ".join(KINDS), repr(kind))
    if kind in ("tanh", "exp", "rank_only"):
        within(name, parameter, ranges.SHARPNESS)


def sample(k: int, step: int, subset: int, n_items: int, weights: tuple[tuple[str, float, bool], ...]) -> None:
    """The numbers that `sample` is given; a weight is its kind, parameter and flipped."""
    within("k", k, ranges.DRAWS)
    within("step", step, ranges.STEP)
    integer("subset", subset, 0, n_items)
    for name, (kind, parameter, _) in zip(("to_student", "to_teacher"), weights, strict=True):
        weight(name, kind, parameter)


def choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    _is(value in valid, name, " or ".join(repr(v) for v in valid), repr(value))


def thresholds(n_rows: int, n_items: int, t: Tensor, tie_ids: Tensor, item_offset: int, device: torch.device) -> None:
    tensor("thresholds", t, (n_rows, "C"), (torch.float32,), device)
    tensor("tie_ids", tie_ids, tuple(t.shape), (torch.int64,), device)
    integer("item_offset", item_offset, 0, MAX_ITEMS - n_items)


def temperatures(s: DistillInputs | StepInputs) -> None:
    within("tau_learner", s.tau_learner, ranges.TAU)
    within("tau_guide", s.tau_guide, ranges.TAU)


def losses(s: DistillInputs) -> None:
    shape, device = tuple(s.learner_scores.shape), s.learner_scores.device
    tensor("learner_scores", s.learner_scores, shape, (*FLOATS, torch.float64), device)
    tensor("guide_scores", s.guide_scores, shape, (*FLOATS, torch.float64), device)
    if s.mask is not None:
        tensor("mask", s.mask, shape, (torch.bool,), device)
    temperatures(s)
    choice("kind", s.kind, ranges.DISTILL_LOSSES)
    if s.kind in ranges.LISTWISE:
        _is(s.learner_scores.dim() > 0, "learner_scores", "a list in each row: at least one dimension", "none")


def loss_dtype(scores: Tensor) -> torch.dtype:
    """Of scores and of their loss: half precision is widened first."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def tables(user_table: Tensor, item_table: Tensor, item_bias: Tensor | None) -> None:
    device, dtype = user_table.device, (user_table.dtype,)
    tensor("user_table", user_table, ("U", "d"), (torch.float32, torch.float64), device)
    tensor("item_table", item_table, ("N", user_table.shape[1]), dtype, device)
    if item_bias is not None:
        tensor("item_bias", item_bias, (item_table.shape[0],), dtype, device)


def in_place(user_table: Tensor, item_table: Tensor, item_bias: Tensor | None) -> None:
    """Tables that a step may change: no number stands twice in memory, and a row is one piece."""
    for name, t in (("user_table", user_table), ("item_table", item_table)):
        whole = t.numel() == 0 or (t.stride(1) == 1 and t.stride(0) >= t.shape[1]) or t.is_contiguous()
        _is(whole, name, "rows in one piece each", f"strides {t.stride()}")
    if item_bias is not None:
        _is(item_bias.is_contiguous(), "item_bias", "a contiguous tensor", f"stride {item_bias.stride()}")


def own_memory(tables: dict[str, Tensor], state: Sequence[Tensor] = ()) -> None:
    """No number of what a step changes is in two of them: the result would depend on the order of the threads.

    A value, not a shape: fake tensors have no memory to compare.
    """
    places: list[Any] = []
    for t in (*tables.values(), *state):
        places += (t.data_ptr(), t.shape, t.stride(), t.dtype)
    if (where := tuple(places)) not in _apart:
        pair = memory.shared(tables | {f"state[{i}]": t for i, t in enumerate(state)})
        _is(pair is None, " and ".join(pair or ()), "memory of their own", "memory that both have")
        if len(_apart) == PLACES:
            _apart.clear()
        _apart.add(where)


def state(tables: list[Tensor], state: list[Tensor], per_table: int) -> None:
    """The optimizer's state: `per_table` contiguous tensors like each table, one table after the other."""
    _is(len(state) == per_table * len(tables), "state", f"{per_table} tensors for each table", len(state))
    for i, t in enumerate(state):
        like = tables[i // per_table]
        tensor(f"state[{i}]", t, tuple(like.shape), (like.dtype,), like.device)
        _is(t.is_contiguous(), f"state[{i}]", "a contiguous tensor", f"strides {t.stride()}")


def rule(r: Rule) -> None:
    """The numbers of an optimizer's rule but lr, whose attributes may have been changed since its construction."""
    within("weight_decay", r.weight_decay, ranges.WEIGHT_DECAY)
    for beta in (r.beta1, r.beta2):
        within("betas", beta, ranges.BETA)
    if r.kind != "sgd":
        within("eps", r.eps, ranges.EPS)


def rate(lr: Tensor | None, count: Tensor | None, table: Tensor) -> None:
    """A learning rate [], float64 on the CPU, or as the tables are; beside a count of steps, which is float64, float64 too."""
    if lr is not None:
        host = lr.device.type == "cpu" and lr.dtype == torch.float64
        dtype = torch.float64 if host or count is not None else table.dtype
        tensor("lr", lr, (), (dtype,), lr.device if host else table.device)
    if count is not None:
        tensor("steps_done", count, (), (torch.float64,), table.device)


def step(s: StepInputs) -> None:
    tables(*s.tables)
    device, dtype, n_rows = s.user_table.device, (s.user_table.dtype,), s.users.shape[0]
    tensor("users", s.users, ("B",), (torch.int64,), device)
    tensor("positives", s.positives, (n_rows,), (torch.int64,), device)
    tensor("negatives", s.negatives, (n_rows, "M"), (torch.int64,), device)
    tensor("distill_ids", s.distill_ids, (n_rows, "k"), (torch.int64,), device)
    shape = tuple(s.distill_ids.shape)
    tensor("guide_scores", s.guide_scores, shape, dtype, device)
    if s.distill_mask is not None:
        tensor("distill_mask", s.distill_mask, shape, (torch.bool,), device)
    choice("cf", s.cf, ranges.FUSED_LOSSES)
    choice("distill_kind", s.distill_kind, ranges.DISTILL_LOSSES)
    temperatures(s)
    within("distill_weight", s.distill_weight, ranges.LAMBDA)
    within("distill_weight / tau_learner", s.distill_weight / s.tau_learner, ranges.SLOPE)


def step_types(s: StepInputs) -> None:
    """Their Python types, under the names that the public functions give them."""
    instance("cf", s.cf, str)
    instance("distill_kind", s.distill_kind, str)
    for name in ("distill_weight", "tau_learner", "tau_guide"):
        float64(name, getattr(s, name))
    for name, t in zip(s._fields, (*s.tables, *s.batch), strict=False):
        if t is not None or name not in ("item_bias", "distill_mask"):
            instance(name.replace("distill_", "distill."), t, Tensor)


def finite_losses(cf: Tensor, distill: Tensor) -> None:
    """Raise NonFiniteLoss. On a GPU losses stay where they are: a training that diverges is no reason to lose the device."""
    if (cf.device.type not in ASSERTS or _ASKED.get()) and not (cf - cf == distill - distill):  # both 0, or one is NaN
        raise NonFiniteLoss(float(cf), float(distill))


def own_step(s: StepInputs) -> StepInputs:
    """The step with `own` ids and mask, whose values are checked; the ids that are masked out are 0."""
    users, positives, negatives, mask = s.users, s.positives, s.negatives, s.distill_mask
    if users.device.type not in ASSERTS:  # `own`
        users, positives, negatives = users.clone(), positives.clone(), negatives.clone()
        mask = None if mask is None else mask.clone()
    listed = own(s.distill_ids) if mask is None else s.distill_ids.where(mask, 0)
    n_users, n_items = s.user_table.shape[0], s.item_table.shape[0]
    if _asserts(users) or not _in_range(users, n_users, (positives, negatives, listed), n_items):
        ids_values("distill_ids", listed, n_items)
        ids_values("users", users, n_users)
        ids_values("positives", positives, n_items)
        ids_values("negatives", negatives, n_items)
    return StepInputs(
        s.user_table, s.item_table, s.item_bias, users, positives, negatives, listed, s.guide_scores, mask,
        s.cf, s.distill_kind, s.distill_weight, s.tau_learner, s.tau_guide,
    )  # fmt: skip


def asserts_ids(s: StepInputs) -> bool:
    """Whether the ids of this step are asserted in its device's queue, by `queued_ids`, and `own_step` need not look at them."""
    return _asserts(s.users)


def queued_ids(fine: Tensor, n_users: int, n_items: int) -> None:
    """What a kernel found of the ids of a step: int64 [], 0 where one is out of range."""
    if _asserts(fine):
        expected = f"ids in [0, {n_users}) of users and in [0, {n_items}) of items"
        torch._assert_async(fine, f"users, positives, negatives, distill_ids: expected {expected}")


def _in_range(users: Tensor, n_users: int, items: tuple[Tensor, Tensor, Tensor], n_items: int) -> bool:
    """Whether all ids of a batch are in range, by one question to the device."""
    if not users.numel():
        return True
    positives, negatives, listed = items
    every = torch.cat((positives, negatives.flatten(), listed.flatten()))
    of_users, of_items = torch.aminmax(users), torch.aminmax(every)
    first_user, last_user, first_item, last_item = torch.stack((*of_users, *of_items)).tolist()
    return bool(first_user >= 0 and last_user < n_users and first_item >= 0 and last_item < n_items)
