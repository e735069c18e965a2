"""What the definitions of all operators share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends import precision, steps
from bdkernels.backends.backend import Steps
from bdkernels.backends.streamed import streamed
from bdkernels.storage import mapped
from bdkernels.types.factors import Factors
from bdkernels.types.seen import Seen

LIBRARY = torch.library.Library("bdkernels", "DEF")
FACTORS = "Tensor users, Tensor items, Tensor? item_bias"
SEEN = "Tensor? seen_indptr, Tensor? seen_indices"
OPTIONS = "*, str backend=''"


def define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    @wraps(run)
    def exempt(*args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast():  # arithmetic is what the reference says, also within torch.autocast
            return run(*args, **kwargs)

    LIBRARY.define(name + schema)
    LIBRARY.impl(name, exempt, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bdkernels::{name}", fake, lib=LIBRARY)


def stages(backend: str, *models: Factors, listed: int | None = None) -> Steps:
    """The stages of the chosen backend for these models, whose tables may be mapped; of a call on all items, or so many."""
    users, items = models[0].user_factors, models[0].item_factors
    if listed is None:
        precision.asked()  # a wrong name is an error, also where the backend takes no notice of it
    found = steps(users.device, backend, users.dtype, work=users.numel() * (len(items) if listed is None else listed))
    return streamed(found) if mapped.any_mapped(*models) else found


def seen_rows(indptr: Tensor | None, indices: Tensor | None, n_rows: int, device: torch.device) -> Seen | None:
    if (indptr is None) != (indices is None):
        raise ValueError("seen: expected both of indptr and indices, got one")
    seen = None if indptr is None or indices is None else Seen(indptr, indices)
    checks.seen(seen, n_rows, device)
    return seen
