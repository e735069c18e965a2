"""What a model must have before training begins, with a sentence on what is missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdkernels import Factors
from bidistill.errors import UserError
from bidistill.models.base import Recommender, device_of, learns, tables_of
from bidistill.models.modes import evaluating
from bidistill.optimizers import FUSED, wants_sparse
from bidistill.registry import OPTIMIZERS

SCORE = "score(users: int64 [B], items: int64 [B, C]) -> float32 [B, C], with a gradient"
FACTORS = "factors(users: int64 [B]) -> Factors(float32 [B, d], float32 [n_items, d], float32 [n_items] or None)"
BLOCK = "score_block(users: int64 [B], first: int, stop: int) -> float32 [B, stop - first]"
CLOSE = 1e-2  # how far the ways to score may differ, as a share of the largest score: another order of sums, lower precision


def check_model(name: str, found: Any, n_users: int, n_items: int) -> None:
    """Take note of the numbers of users and items where the model does not know them, and let it score a few items in each way.

    Args:
        name: "teacher" or "student".

    Raises:
        UserError: it is no module, lacks what a `Recommender` has, is for other users or items, or its methods give other shapes
            than they should or contradict each other.
    """
    if not isinstance(found, torch.nn.Module):
        raise UserError(f"the {name} must be a torch.nn.Module, found {type(found).__name__}")
    model: Any = found
    title = f"the {name} {type(model).__name__}"
    if not callable(getattr(model, "score", None)):
        raise UserError(f"{title} has no method score: give it {SCORE}")
    for attribute, n in (("n_users", n_users), ("n_items", n_items)):
        if not hasattr(model, attribute):
            setattr(model, attribute, n)
        if getattr(model, attribute) != n:
            raise UserError(
                f"{title} has {attribute} = {getattr(model, attribute)}, but the split has {n:,}: make it for split.{attribute}"
            )
    if learns(model) and not any(each.requires_grad for each in model.parameters()):
        raise UserError(f"{title} has no parameter that requires a gradient, so there is nothing to train")
    odd = [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(
            f"{title} keeps something else than tensors in its state_dict ({odd[0]}), which cannot be saved"
        )
    check_scores(title, model, n_users, n_items)


def check_scores(title: str, model: Any, n_users: int, n_items: int) -> None:
    """Raise UserError where the ways in which the model scores a few items fail or contradict each other."""
    if tables_of(model) is not None:
        return
    device = device_of(model)
    users = torch.tensor([0, n_users - 1], device=device)
    items = torch.tensor([[0, n_items - 1, n_items // 2]] * 2, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model):
        with torch.enable_grad():
            scores = _tried(f"{title}: score", SCORE, lambda: model.score(users, items))
            _check_tensor(f"{title}: score", SCORE, scores, (2, 3))
            if learns(model) and not scores.requires_grad:
                raise UserError(
                    f"{title}: score gives numbers without a gradient (detached, or under no_grad): {SCORE}"
                )
        wide = max(1.0, float(scores.detach().abs().max()))
        if callable(getattr(model, "factors", None)):
            found = _tried(f"{title}: factors", FACTORS, lambda: model.factors(users))
            if not isinstance(found, Factors):
                raise UserError(f"{title}: factors gives {type(found).__name__}: it must be {FACTORS}")
            width = found.user_factors.shape[-1]
            _check_tensor(f"{title}: factors, user_factors", FACTORS, found.user_factors, (2, width))
            _check_tensor(f"{title}: factors, item_factors", FACTORS, found.item_factors, (n_items, width))
            dots = (found.user_factors[:, None].float() * found.item_factors[items].float()).sum(2)
            if found.item_bias is not None:
                dots = dots + found.item_bias.reshape(-1)[items]
            _check_close(f"{title}: factors", dots, scores.detach(), wide)
        elif callable(getattr(model, "score_block", None)):
            block = _tried(f"{title}: score_block", BLOCK, lambda: model.score_block(users, n_items - 1, n_items))
            _check_tensor(f"{title}: score_block", BLOCK, block, (2, 1))
            _check_close(f"{title}: score_block", block, scores.detach()[:, 1:2], wide)


def check_gradients(name: str, model: Recommender, optimizer: str) -> None:
    """Raise UserError where the named optimizer of torch does not take the gradients, dense or sparse, that the model gives."""
    sparse_only, either = wants_sparse(optimizer), ("adagrad", "sgd", "Adagrad", "SGD")
    of_torch = optimizer in OPTIMIZERS.classes() or optimizer == "adam"
    if (
        (tables_of(model) is not None and optimizer in ("adam", *FUSED))
        or not (sparse_only or of_torch)
        or optimizer in either
        or not learns(model)
    ):
        return
    device = device_of(model)
    parameters = [each for each in model.parameters() if each.requires_grad]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model), torch.enable_grad():
        ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
        grads = torch.autograd.grad(model.score(ids[0], ids).sum(), parameters, allow_unused=True)
    title, sparse = f"the {name} {type(model).__name__}", {grad.is_sparse for grad in grads if grad is not None}
    if sparse_only and False in sparse:
        raise UserError(
            f"{name}.optimizer is {optimizer}, but {title} has parameters with dense gradients (it takes those of"
            f" nn.Embedding(..., sparse=True) alone): set {name}.optimizer to adam, adagrad or sgd"
        )
    if not sparse_only and True in sparse:
        raise UserError(
            f"{name}.optimizer is {optimizer}, but {title} has parameters with sparse gradients: set {name}.optimizer to"
            " sparse_adam, adagrad or sgd, or leave out sparse=True"
        )


def require_trained_factors(name: str, model: Any, loss: str) -> None:
    """Raise UserError where a model, or the class that makes it, cannot be trained by a loss over the whole catalog.

    What is fitted in one call has no loss; what a function makes is known when it is trained.
    """
    methods = [callable(getattr(model, method, None)) for method in ("trained_factors", "fit")]
    if isinstance(model, type | torch.nn.Module) and not any(methods):
        title = model.__name__ if isinstance(model, type) else type(model).__name__
        raise UserError(
            f"train.loss is {loss}, but the {name} {title} has no trained_factors(users), which gives factors with gradients:"
            " give it that method, or set train.loss to softmax"
        )


def check_apart(models: dict[str, Any]) -> None:
    """Raise UserError where the models share a parameter: each is changed by an optimizer of its own."""
    teacher, student = models["teacher"], models["student"]
    shared = {id(each) for each in teacher.parameters()} & {id(each) for each in student.parameters()}
    if shared:
        raise UserError(
            "the teacher and the student share parameters, but each is trained by an optimizer of its own: give two modules"
            " that have nothing in common, such as a copy.deepcopy"
        )


def _tried(what: str, form: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:  # whatever the method of a user does
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{what} fails for the first and the last user and item of the data ({reason}): it must be {form}, for"
            " split.n_users users and split.n_items items"
        ) from error


def _check_tensor(what: str, form: str, found: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or not found.is_floating_point():
        got = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{what} gives {got}, not a tensor of floats: it must be {form}")
    if tuple(found.shape) != shape:
        raise UserError(f"{what} gives the shape {list(found.shape)}, not {list(shape)}: it must be {form}")


def _check_close(what: str, found: Tensor, scores: Tensor, wide: float) -> None:
    off = float((found.detach().float() - scores.float()).abs().max())
    if not off <= CLOSE * wide:
        raise UserError(
            f"{what} and score contradict each other (by {off:.3g}), so that other items would be ranked than are learned from:"
            " let them give the same scores"
        )
