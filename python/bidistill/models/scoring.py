"""How a model's scores reach the operators: by its factors, by blocks of items, or by lists of items.

A model has `n_items` and a differentiable `score(queries, items [B, C]) -> [B, C]`, and may have one of `factors(queries)`, which
makes everything fused, and `score_block(queries, first, stop) -> [B, stop - first]`, which is streamed. Queries are what the
model takes: ids of users [B] int64, or a dict, list or tuple of tensors whose first size is B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from bdkernels import Factors, Scorer, score
from bdkernels.storage import mapped
from bidistill.errors import UserError
from bidistill.models.base import device_of, tables_of
from bidistill.models.modes import evaluating

PAIRS = 1 << 18  # queries x items that `score` is asked for at a time: it may make a vector of each


def scorer_of(model: Any, queries: Any, n_items: int | None = None) -> Scorer:
    """What `bdkernels.rank`, `topk`, `count_above` and `sample` take of this model, for these queries.

    `model.factors(queries)` where the model has that method, else blocks of `model.score_block`, else of `model.score`; without
    gradient, and in evaluation mode.

    Args:
        n_items: size of the catalog, for a model that has no `n_items`.

    Raises:
        UserError: the model has no `score`, or its `n_items` are not known.
    """
    if callable(factors := getattr(model, "factors", None)):
        if tables_of(model) is not None:  # nothing in it depends on the mode
            return cast(Factors, factors(queries))
        with evaluating(model):
            return cast(Factors, factors(queries))
    return ModelScorer(model, queries, n_items)


def require_factors(model: Any, what: str) -> None:
    """Raise UserError where a model has no `factors`: `what` needs them, such as "evaluation on several processes"."""
    if not callable(getattr(model, "factors", None)):
        raise UserError(
            f"{what} needs factors(users) of a model, which {type(model).__name__} does not have: give it that method, or use one"
            " process, without torchrun"
        )


def listed_scores(model: Any, queries: Any, ids: Tensor) -> Tensor:
    """[B, C] differentiable scores of the listed items, ids [B, C] int64: what a model is trained by.

    Raises:
        UserError: `model.score` gives another shape.
    """
    found: Tensor = model.score(queries, ids)
    if not isinstance(found, Tensor) or found.shape != ids.shape:
        raise _wrong(model, "score(queries, items)", list(ids.shape), found)
    return found


def guide_scores(model: Any, queries: Any, ids: Tensor) -> Tensor:
    """[B, C] float32: the same without gradient, in evaluation mode; of a model with tables the bits that `rank` counts."""
    if not ids.shape[1]:  # nothing is distilled: the model is not asked
        return torch.empty(ids.shape, device=ids.device)
    if (tables := tables_of(model)) is not None:
        user_table, item_table, item_bias = tables
        return score(Factors(mapped.take(user_table, queries), item_table, item_bias), ids)
    with evaluating(model):
        if isinstance(queries, Tensor) and queries.dim() == 1:
            distinct, rows, first = distinct_users(queries)
            if len(distinct) < len(queries) and torch.equal(ids[first][rows], ids):  # a user's rows have the same list
                return listed_scores(model, distinct, ids[first]).float()[rows]
        return listed_scores(model, queries, ids).float()


def distinct_users(users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The R different users [R] of users [B] int64, which of them each row has [B], and the first row of each [R]."""
    distinct, rows = users.unique(return_inverse=True)
    at = torch.arange(len(users), device=users.device)
    first = torch.full_like(distinct, len(users)).scatter_reduce_(0, rows, at, "amin")
    return distinct, rows, first


class ModelScorer:
    """A `bdkernels.ItemScorer` of a model without factors: its blocks, in evaluation mode and without gradient.

    Args:
        model: has `score_block` or `score`, see above.
        queries: the B rows, as the model takes them.
        n_items: as in `scorer_of`.
    """

    def __init__(self, model: Any, queries: Any, n_items: int | None = None) -> None:
        n_items = getattr(model, "n_items", n_items)
        for name, found in (("score", getattr(model, "score", None)), ("n_items", n_items)):
            if found is None:
                raise UserError(
                    f"the model {type(model).__name__} has no {name}: give it n_items and score(queries, items [B, C]) -> [B, C]"
                )
        first = first_tensor(queries)
        self.model, self.queries = model, queries
        self.n_rows, self.n_items = len(first), int(cast(int, n_items))
        self.device = device_of(model, first.device)

    def block(self, first: int, stop: int) -> Tensor:
        """[B, stop - first] float32 scores of a block of items."""
        shape = [self.n_rows, stop - first]
        with evaluating(self.model):
            if callable(score_block := getattr(self.model, "score_block", None)):
                found = score_block(self.queries, first, stop)
                if not isinstance(found, Tensor) or list(found.shape) != shape:
                    raise _wrong(self.model, "score_block(queries, first, stop)", shape, found)
                return found.float()
            items = torch.arange(first, stop, device=self.device).split(max(1, PAIRS // max(1, self.n_rows)))
            parts = [listed_scores(self.model, self.queries, some.expand(self.n_rows, -1)).float() for some in items]
        return torch.cat(parts, 1)

    def take(self, rows: Tensor) -> ModelScorer:
        """The scorer of some of the rows."""
        return ModelScorer(self.model, take(self.queries, rows), self.n_items)


def first_tensor(queries: Any) -> Tensor:
    """The first tensor of the queries, whose first size is B."""
    if isinstance(queries, Tensor):
        return queries
    parts = queries.values() if isinstance(queries, Mapping) else queries
    return first_tensor(next(iter(parts)))


def take(queries: Any, rows: Tensor) -> Any:
    """Some rows [R] int64 of the queries."""
    if isinstance(queries, Tensor):
        return queries[rows.to(queries.device)]
    if isinstance(queries, Mapping):
        return {name: take(part, rows) for name, part in queries.items()}
    return type(queries)(take(part, rows) for part in queries)


def _wrong(model: Any, what: str, shape: list[int], found: Any) -> UserError:
    got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    return UserError(f"{type(model).__name__}.{what} must give a tensor of shape {shape}, found {got}")
