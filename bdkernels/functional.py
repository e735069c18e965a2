"""The public functions, in the order of the pipeline: score, rank, topk, sample, loss.

Shapes: B users of a batch, N items, C listed items a user, d factors, k draws. Every function raises ValueError that names the
argument, what was expected and what was found (wrong shape, dtype, device, id out of range, unsorted `seen`, NaN scores),
TypeError where its Python type is wrong, and `backends.BackendError` where an explicit backend cannot be honoured. `score`,
`distill_loss` and `fused_loss` have gradients: first derivatives by torch.autograd, while torch.func, forward mode and second
derivatives raise RuntimeError. To all others their arguments are constants, and so are the scores of `topk` to what follows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bdkernels import checks, ops, scorers  # noqa: F401 (register the operators)
from bdkernels.backends.blocks import Blocks, Model
from bdkernels.ops import autograd  # noqa: F401 (register the operators)
from bdkernels.ops.sample import SampleInputs
from bdkernels.optim import RowOptimizer
from bdkernels.types.factors import Factors
from bdkernels.types.scorers import Scorer
from bdkernels.types.seen import Seen
from bdkernels.types.step import StepInputs
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


class StepLoss(NamedTuple):
    """Scalars of a step: of `fused_loss`, loss = cf + distill_weight * distill is differentiable; the rest is for the log."""

    loss: Tensor
    cf: Tensor
    distill: Tensor


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


def distill_loss(
    learner_scores: Tensor,
    guide_scores: Tensor,
    tau_learner: float = 1.0,
    tau_guide: float = 1.0,
    mask: Tensor | None = None,
    *,
    kind: str = "bce",
    backend: str | None = None,
) -> Tensor:
    """Distillation loss D of the learner's scores x for the guide's y, with soft targets at a temperature (Hinton et al. 2015).

    bce: mean over the mask of -(t log s + (1 - t) log(1 - s)), where s = sigmoid(x / tau_learner), t = sigmoid(y / tau_guide).
    listwise: mean over rows of KL(p || q) = sum of p (log p - log q), where p = softmax(y / tau_guide), q = softmax(x /
        tau_learner) over the entries of a row that the mask leaves; a row without any counts as 0 (Cao et al. 2007).

    Args:
        learner_scores: any shape, floating; for "listwise" a row is the last dimension. The gradient goes here alone.
        guide_scores: the same shape and device; a constant to the gradient.
        tau_learner, tau_guide: temperatures of the learner and of the guide, > 0.
        mask: bool of the same shape: which entries count; None for all. What is masked out may hold anything.
        kind: "bce" or "listwise".
        backend: see `score`; the gradient's too. Those of "cpu" and "cuda" are the reference's; float64 scores are served by
            the reference alone.

    Returns:
        scalar, float32 (float64 for float64 scores); 0 where nothing counts.
    """
    _tensor("learner_scores", learner_scores)
    guide = _tensor("guide_scores", guide_scores).detach()
    mask = None if mask is None else _tensor("mask", mask)
    for name, value in (("tau_learner", tau_learner), ("tau_guide", tau_guide)):
        checks.float64(name, value)
    checks.instance("kind", kind, str)
    return torch.ops.bdkernels.distill_loss(
        learner_scores, guide, tau_learner, tau_guide, mask, kind, backend=_name(backend)
    )


def fused_loss(
    user_table: Tensor,
    item_table: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill: Draws,
    guide_scores: Tensor,
    *,
    cf: str = "bce",
    distill_kind: str = "bce",
    distill_weight: float = 1.0,
    tau_learner: float = 1.0,
    tau_guide: float = 1.0,
    sparse: bool = True,
    backend: str | None = None,
) -> StepLoss:
    """One learner's whole training loss, with the gradient of just the rows that it touches.

        loss = CF(positives, negatives) + distill_weight * D(scores of the distilled items, guide_scores)

    D is `distill_loss`. CF is averaged over rows; of one with the positive's score s_0 and s_1 .. s_M of M negatives it is

    bce: binary cross entropy, label 1 for the positive alone: -log sigmoid(s_0) - sum of log sigmoid(-s_j);
    bpr: sum of -log sigmoid(s_0 - s_j) over the pairs (Rendle et al. 2009);
    softmax: log(exp(s_0) + sum of exp(s_j)) - s_0, without a correction for the negatives' probabilities, which is one constant
        where they are uniform (Bengio and Senecal 2008).

    Args:
        user_table: [U, d] float32 or float64 parameter; item_table: [N, d]; item_bias: [N] or None, of the same dtype.
        users: [B] int64; positives: [B] int64; negatives: [B, M] int64, item ids.
        distill: ids [B, k] and mask [B, k], from `sample` with the rows of `users`. What is masked out may hold anything.
        guide_scores: [B, k], the other model's scores of the distilled items; a constant to the gradient.
        cf: "bce", "bpr" or "softmax"; distill_kind: the `kind` of `distill_loss`, "bce" or "listwise".
        distill_weight: weight of the distillation; tau_learner, tau_guide: its temperatures, > 0.
        sparse: gradients as sparse rows, as from torch.nn.Embedding(sparse=True), so that a step's cost does not grow with N
            or U; False for dense gradients, which any optimizer takes.
        backend: see `score`. float64 tables are served by the reference alone, so "cpu" refuses them.

    Raises:
        ValueError: an argument is wrong, or a score or a loss is not finite. On a GPU the losses are returned as they are: NaN
            or infinite ones say that the gradient is not to be used.
    """
    checks.instance("distill", distill, Draws)
    checks.instance("sparse", sparse, bool)
    batch = users, positives, negatives, distill.ids, guide_scores, distill.mask
    step = StepInputs(
        user_table, item_table, item_bias, *batch, cf, distill_kind, distill_weight, tau_learner, tau_guide
    )
    if not step.typed():
        checks.step_types(step)
    step = step._replace(guide_scores=guide_scores.detach())
    return StepLoss(*torch.ops.bdkernels.fused_loss(*step, sparse=sparse, backend=_name(backend)))


def fused_step(
    optimizer: RowOptimizer,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    distill: Draws,
    guide_scores: Tensor,
    *,
    cf: str = "bce",
    distill_kind: str = "bce",
    distill_weight: float = 1.0,
    tau_learner: float = 1.0,
    tau_guide: float = 1.0,
    backend: str | None = None,
) -> StepLoss:
    """One learner's whole training step: the loss of `fused_loss`, its gradient, and the update of the rows, in one call.

    The optimizer stands where the tables do in `fused_loss`: it holds them and changes them in place, just the rows that the
    batch touches. Repeats of a user or an item are summed before the rule is applied, in the order of the batch, so that the
    result does not depend on the thread count. On an error nothing has changed.

    torch.compile makes constants of the numbers in a global variable, so hand it the optimizer as an argument; lr may then change
    from step to step. A captured CUDA graph repeats the numbers of its capture, but for those that the optimizer has on the
    device: an lr that is a tensor, and where it is `capturable` the count of steps, of which SparseAdam's lr_t depends.

    Args:
        optimizer: `SGD`, `Adagrad` or `SparseAdam` of (user_table, item_table, item_bias or None). Parameters that require
            grad are fine: autograd sees an in-place change, no gradient.
        users .. guide_scores, cf .. tau_guide: the batch, and what is minimised; see `fused_loss`.
        backend: see `score`. float64 tables are served by the reference alone, so "cpu" refuses them.

    Returns:
        the losses before the update; they carry no gradient.

    Raises:
        ValueError: an argument is wrong, or a score or a loss is not finite. On a GPU the losses are returned as they are, so as
            not to wait for them, and rows of the batch have changed: NaN or infinite ones say that the training has diverged.
    """
    if not (isinstance(optimizer, RowOptimizer) and isinstance(distill, Draws)):
        checks.instance("optimizer", optimizer, RowOptimizer)
        checks.instance("distill", distill, Draws)
    ids, mask = distill
    user_table, item_table, *bias = [table.detach() for table in optimizer.tables().values()]
    step = StepInputs(
        user_table, item_table, bias[0] if bias else None, users, positives, negatives, ids,
        guide_scores.detach() if isinstance(guide_scores, Tensor) else guide_scores, mask,
        cf, distill_kind, distill_weight, tau_learner, tau_guide,
    )  # fmt: skip
    if not step.typed():
        checks.step_types(step)
    rule, lr = optimizer.queued_rule()
    if lr is None and torch.compiler.is_dynamo_compiling():
        rule, lr = rule._replace(lr=0.0), torch.ones((), dtype=torch.float64) * rule.lr
    cf_loss, distill_loss = torch.ops.bdkernels.fused_step(
        *step, optimizer.row_state(), *rule, lr, backend="" if backend is None else _name(backend)
    )
    optimizer.count_step()
    return StepLoss(cf_loss + distill_weight * distill_loss, cf_loss, distill_loss)


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
