"""The public functions, in the order of the pipeline: score, rank, topk, sample; those of the losses are in `losses`.

Shapes: B users of a batch, N items, C listed items a user, d factors, k draws. Every function raises ValueError that names the
argument, what was expected and what was found (wrong shape, dtype, device, id out of range, unsorted `seen`, NaN scores),
TypeError where its Python type is wrong, and `backends.BackendError` where an explicit backend cannot be honoured. `score`
and the losses have gradients: first derivatives by torch.autograd, while torch.func, forward mode and second derivatives raise
RuntimeError. To all others their arguments are constants, and so are the scores of `topk` to what follows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks, ops, scorers  # noqa: F401 (register the operators)
from bdkernels.backends.blocks import Blocks, Model
from bdkernels.ops import autograd  # noqa: F401 (register the operators)
from bdkernels.ops.sample import SampleInputs
from bdkernels.types.factors import Factors
from bdkernels.types.scorers import Scorer
from bdkernels.types.seen import Seen
from bdkernels.weights import Exp, Tanh, Weight, WeightCode


class TopK(NamedTuple):
    """The best items of each user, best first.

    Attributes:
        scores: [B, k] float32, -inf where a user has fewer than k candidates.
        ids: [B, k] int64, -1 there.
    """

    scores: Tensor
    ids: Tensor


class Draws(NamedTuple):
    """Sampled items of one direction, independent draws with replacement.

    Attributes:
        ids: [B, k] int64, -1 where the mask is False.
        mask: [B, k] bool; False for users without k draws: nothing unseen, or no item with a positive weight.
    """

    ids: Tensor
    mask: Tensor


class Samples(NamedTuple):
    """What `sample` draws.

    Attributes:
        student: what the student learns from; None where that direction was off.
        teacher: what the teacher learns from; None likewise.
    """

    student: Draws | None
    teacher: Draws | None

    @property
    def to_student(self) -> Draws:
        """What the student learns from. Raises ValueError where that direction was off."""
        return _on("to_student", self.student)

    @property
    def to_teacher(self) -> Draws:
        """What the teacher learns from. Raises ValueError where that direction was off."""
        return _on("to_teacher", self.teacher)


def _on(name: str, draws: Draws | None) -> Draws:
    if draws is None:
        raise ValueError(f"{name}: expected draws, got none: `sample` was called with {name}=None")
    return draws


torch.serialization.add_safe_globals([Draws, Samples, TopK])


def score(factors: Factors, ids: Tensor, *, sparse: bool = False, backend: str | None = None) -> Tensor:
    """Scores of listed items, with gradients for users, items and item_bias where they require them.

    One sequential fused multiply-add over d in fp32 that starts at the bias: the same bits as the scores that `rank` counts,
    in every backend, tile, thread count and instruction set.

    Args:
        factors: user_factors [B, d], item_factors [N, d], item_bias [N] or None; also float64, by the reference alone.
        ids: [B, C] int64 in [0, N).
        sparse: the gradients of items and item_bias as sparse rows, as from torch.nn.Embedding(sparse=True), so that their cost
            does not grow with N; False for dense gradients, which any optimizer takes.
        backend: one of `backends.names()`; None for BDKERNELS_BACKEND or the best. The gradients are the reference's.

    Returns:
        [B, C] float32 (float64 for float64 factors). Gradients have the dtypes of the factors.
    """
    if not (isinstance(sparse, bool) and isinstance(ids, Tensor) and (backend is None or isinstance(backend, str))):
        checks.instance("sparse", sparse, bool)
        _tensor("ids", ids), _name(backend)
    return torch.ops.bdkernels.score(*_parts(factors), ids, sparse=sparse, backend=backend or "")


def rank(scorer: Scorer, ids: Tensor, seen: Seen | None = None, *, backend: str | None = None) -> Tensor:
    """Exact ranks of listed items over the whole catalog, scored and counted in one streaming pass.

        rank(u, j) = 1 + #{unseen i : s(u, i) > s(u, j), or equal and i < j}

    No [B, N] tensor exists at any time: extra memory is O(B * C) and a tile a thread.

    Args:
        scorer: `Factors`: user_factors [B, d], item_factors [N, d], item_bias [N] or None; `Scores` [B, N]; or an `ItemScorer`.
        ids: [B, C] int64 in [0, N); an item that the user has seen gets the rank that it would have.
        seen: rows of the B users, not candidates; None for nothing seen.
        backend: see `score`.

    Returns:
        [B, C] int64, 1 = best.
    """
    if not isinstance(scorer, Factors):
        found = Blocks.of("scorer", scorer)
        return scorers.rank(found, _tensor("ids", ids), _rows(seen), _name(backend))
    return torch.ops.bdkernels.rank(
        *_detach(scorer, "scorer"), _tensor("ids", ids), *_pair(seen), backend=_name(backend)
    )


def count_above(
    scorer: Scorer,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen: Seen | None = None,
    item_offset: int = 0,
    *,
    backend: str | None = None,
) -> Tensor:
    """How many unseen items come before each threshold: the primitive under `rank`, for shards and streams.

    Counts add up over any partition of the items, so rank = 1 + the sum of the counts of all shards.

    Args:
        scorer: of the n items of one shard: `Factors`, `Scores` [B, n] or an `ItemScorer`.
        thresholds: [B, C] float32; infinities are fine, NaN is an error.
        tie_ids: [B, C] int64: an item with the same score counts if its id is below this one; any integer.
        seen: rows of the B users with ids of the whole catalog; those outside of the shard are ignored.
        item_offset: id of the shard's first item; the last id is below 2^31.
        backend: see `score`.

    Returns:
        [B, C] int64.
    """
    checks.int64("item_offset", item_offset)
    queries = _tensor("thresholds", thresholds).detach(), _tensor("tie_ids", tie_ids)
    if not isinstance(scorer, Factors):
        return scorers.count_above(Blocks.of("scorer", scorer), *queries, _rows(seen), item_offset, _name(backend))
    return torch.ops.bdkernels.count_above(
        *_detach(scorer, "scorer"), *queries, *_pair(seen), item_offset, backend=_name(backend)
    )


def count_above_block(
    scores: Tensor,
    thresholds: Tensor,
    tie_ids: Tensor,
    seen: Seen | None = None,
    item_offset: int = 0,
    *,
    backend: str | None = None,
) -> Tensor:
    """`count_above` on scores [B, n] float32 that the caller computed: for models whose score is no dot product."""
    checks.int64("item_offset", item_offset)
    queries = _tensor("thresholds", thresholds).detach(), _tensor("tie_ids", tie_ids)
    return torch.ops.bdkernels.count_above_block(
        _tensor("scores", scores).detach(), *queries, *_pair(seen), item_offset, backend=_name(backend)
    )


def topk(scorer: Scorer, k: int, seen: Seen | None = None, *, backend: str | None = None) -> TopK:
    """The k best unseen items of each user over the whole catalog, in the total order of `rank`; no [B, N] tensor.

    Args:
        scorer: see `rank`.
        k: from 1 to N.
        seen: rows of the B users, never recommended; None for nothing seen.
        backend: see `score`.
    """
    checks.int64("k", k)
    if not isinstance(scorer, Factors):
        return TopK(*scorers.topk(Blocks.of("scorer", scorer), k, _rows(seen), _name(backend)))
    return TopK(*torch.ops.bdkernels.topk(*_detach(scorer, "scorer"), k, *_pair(seen), backend=_name(backend)))


def sample(
    teacher: Scorer,
    student: Scorer,
    k: int,
    seen: Seen | None = None,
    *,
    to_student: Weight | None = Tanh(),  # noqa: B008 (immutable)
    to_teacher: Weight | None = Exp(),  # noqa: B008
    user_ids: Tensor,
    step: int | Tensor,
    seed: int | Tensor = 0,
    occurrence: Tensor | None = None,
    independent_directions: bool = False,
    subset: int | Tensor | None = None,
    backend: str | None = None,
) -> Samples:
    """Items by the discrepancy of their ranks under the two models: exact draws of Kweon, Kang, Yu (WWW 2021), section 4.

    Draws are made with replacement among unseen items. A draw depends on the row's user under both models and on (seed, step,
    user id, occurrence, direction, index of the draw) alone: not on k, other rows, batch split, tile, thread count or backend.
    Exact means: the accepted proposals' ranks are counted over the whole catalog, and probabilities differ from the weights' by
    rounding of float64 alone.

    Draws of one direction are independent of each other: those of one row, and those of rows, calls and runs that differ in the
    user id, the occurrence, the step or the seed. Rows that have all four in common draw equal items. The two directions of a
    row accept from the same proposals, so they are not independent of each other unless you ask for it; with `Uniform` both
    ways they are equal.

    Args:
        teacher: `Factors`: user_factors [B, d_t], item_factors [N, d_t], item_bias [N] or None; `Scores` [B, N]; or an
            `ItemScorer`.
        student: of the same users and items, not necessarily of the same sort.
        k: draws a row and direction, from 1 to 2^31 - 1.
        seen: rows of the B users, never drawn; None for nothing seen.
        to_student: weight of the items that the student learns from the teacher; None turns the direction off.
        to_teacher: weight of the items that the teacher learns from the student; None turns the direction off.
        user_ids: [B] int64 in [0, 2^32), which user each row is.
        step: in [0, 2^32): the number of the training step or resampling, so that each draws anew. An int, or a tensor [] int64
            on the device of the models: a captured CUDA graph then draws what the tensor says at each replay. On a GPU backend
            it stays there where both models are `Factors` and `subset` is None; all others wait for its value.
        seed: any integer in [-2^63, 2^63); an int, or a tensor like `step`.
        occurrence: [B] int64 in [0, 2^24), how many earlier rows have the same user, so that repeats of a user draw items of
            their own: `occurrence(user_ids)` of the whole batch, which may then be split in any way. None: zeros.
        independent_directions: True makes the draws of the two directions independent of each other, at the cost of a second
            pass of counting over the catalog. The draws to the student are the same either way.
        subset: None counts ranks over all items. m, from 1 to N, counts them over m random items, others for each (seed, step)
            and the same for all users, so that the cost does not grow with N: draws then follow estimated ranks. The share of
            the catalog that an estimate is off by passes `rank_error(m, delta)` with a probability of at most delta. Proposals
            come from all items, but for users whose weights are so peaked that hardly any is accepted: those draw from the m.
            Or the m items themselves, ids [m] int64, rising; those that `PopularityStrata` draws estimate ranks better.
        backend: see `score`.

    Item tables of `open_memmap` are read from disk once for each round of proposals of a group of users. A group has 2^18 /
    min(1024, max(32, 8 k)) users and most often one to three rounds, so ask for many users at once. A user whose weights are so
    peaked that hardly any proposal is accepted takes a reading of both tables alone, and 40 bytes an item of scratch memory.
    With `subset` the tables are not read through: just the rows of the m items and of the proposals are.
    """
    pair = _model("teacher", teacher), _model("student", student)
    m, counted = _subset(subset, pair[0].n_items)
    (seed, seed_at), (step, step_at) = ((0, n) if isinstance(n, Tensor) else (n, None) for n in (seed, step))
    weights = _codes(k, seed, step, (to_student, to_teacher), pair[0].n_items)
    checks.instance("independent_directions", independent_directions, bool)
    rows = _tensor("user_ids", user_ids), None if occurrence is None else _tensor("occurrence", occurrence)
    asked = SampleInputs(
        *pair, _rows(seen), rows[0], k, seed, step, *weights, m, counted, rows[1], independent_directions, seed_at, step_at
    )  # fmt: skip
    if isinstance(pair[0], Factors) and isinstance(pair[1], Factors):
        drawn = torch.ops.bdkernels.sample(*asked.arguments(), backend=_name(backend))
    else:
        drawn = scorers.sample(asked, _name(backend))
    return _samples(drawn, weights)


def _subset(subset: int | Tensor | None, n_items: int) -> tuple[int, Tensor | None]:
    """How many random items ranks are counted over, 0 for all or those that are given; and the given ones."""
    if subset is None or isinstance(subset, Tensor):
        return 0, subset
    checks.int64("subset", subset)
    checks.integer("subset", subset, 1, n_items)
    return subset, None


def _codes(
    k: int, seed: int, step: int, weights: tuple[Weight | None, Weight | None], n_items: int
) -> tuple[WeightCode, WeightCode]:
    """The weights of `sample` as its operator takes them, once the Python types of its numbers are right."""
    for name, value in (("k", k), ("seed", seed), ("step", step)):
        checks.int64(name, value)
    for name, w in zip(("to_student", "to_teacher"), weights, strict=True):
        checks.instance(name, w, Weight, type(None))
    to_student, to_teacher = (
        WeightCode() if w is None else WeightCode(w.kind, w.parameter(n_items), w.flipped) for w in weights
    )
    return to_student, to_teacher


def _samples(ids: tuple[Tensor, Tensor], weights: tuple[WeightCode, WeightCode]) -> Samples:
    """What the operator gives, a direction without a kind being off."""
    return Samples(
        *(Draws(drawn, drawn >= 0) if kind else None for drawn, (kind, _, _) in zip(ids, weights, strict=True))
    )


def _tensor(name: str, t: Tensor) -> Tensor:
    if not isinstance(t, Tensor):
        checks.instance(name, t, Tensor)
    return t


def _name(backend: str | None) -> str:
    if backend is not None and not isinstance(backend, str):
        checks.instance("backend", backend, str, type(None))
    return backend or ""


def _parts(f: Factors, name: str = "factors") -> tuple[Tensor, Tensor, Tensor | None]:
    if not isinstance(f, Factors):
        checks.instance(name, f, Factors)
    users, items, bias = f
    if not (isinstance(users, Tensor) and isinstance(items, Tensor) and (bias is None or isinstance(bias, Tensor))):
        for part, t in zip(f._fields, f, strict=True):
            if t is not None or part != "item_bias":
                _tensor(f"{name}.{part}", t)
    return users, items, f.flat_bias


def _detach(f: Factors, name: str = "factors") -> tuple[Tensor, Tensor, Tensor | None]:
    users, items, bias = _parts(f, name)
    return users.detach(), items.detach(), None if bias is None else bias.detach()


def _model(name: str, scorer: Scorer) -> Model:
    return Factors(*_detach(scorer, name)) if isinstance(scorer, Factors) else Blocks.of(name, scorer)


def _rows(seen: Seen | None) -> Seen | None:
    indptr, indices = _pair(seen)
    return None if indptr is None or indices is None else Seen(indptr, indices)


def _pair(seen: Seen | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if seen is None:
        return None, None
    checks.instance("seen", seen, Seen)
    return _tensor("seen.indptr", seen.indptr), _tensor("seen.indices", seen.indices)
