"""A catalog that has grown since a checkpoint: new users and items get fresh rows, the others keep theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.models import Recommender


class Growth(NamedTuple):
    """Where the users and items of a run are in its grown data.

    Attributes:
        users, items: int64, the new number of each old one.
        n_users, n_items: how many there are now.
    """

    users: Tensor
    items: Tensor
    n_users: int
    n_items: int

    @classmethod
    def between(cls, old: Split, new: Split) -> Growth:
        """Raises UserError where the new data lack a user or an item of the old: growing adds, it takes nothing away."""
        places = (_places("user", old.user_ids, new.user_ids), _places("item", old.item_ids, new.item_ids))
        return cls(*places, new.n_users, new.n_items)

    def kinds(self, old: Mapping[str, Tensor], model: Recommender) -> dict[str, str]:
        """Which entries of a model's state, as it was before, have a row a user ("users") or an item ("items").

        What the model's `row_kinds` says, if it has that; else what had as many rows as there were users and now has as many as
        there are, and likewise for items.

        Raises:
            UserError: the numbers do not tell users from items, or an entry has changed its shape in another way.
        """
        if callable(own := getattr(model, "row_kinds", None)):
            return dict(own())
        found: dict[str, str] = {}
        title = type(model).__name__
        for name, fresh in model.state_dict().items():
            if name not in old or not old[name].dim() or not fresh.dim():
                continue
            changes = {"users": (len(self.users), self.n_users), "items": (len(self.items), self.n_items)}
            lengths = len(old[name]), len(fresh)
            fits = [kind for kind, change in changes.items() if change == lengths]
            if len(fits) == 2 or (not fits and lengths[0] != lengths[1]):
                raise UserError(
                    f"{name} of the model {title} has {lengths[0]:,} rows and shall have {lengths[1]:,}, which does not say"
                    f" whether they are of users or of items: give {title} a method row_kinds() that says"
                    f' {{"{name}": "users" or "items"}}, and so on for every such entry of its state_dict'
                )
            found |= {name: fits[0]} if fits else {}
        return found

    def rows(self, kind: str, old: Tensor, fresh: Tensor | None = None) -> Tensor:
        """A table with the old rows at their new places; elsewhere those of the fresh one, or zeros.

        kind: "users" or "items", which the rows are of.
        """
        places, n = (self.users, self.n_users) if kind == "users" else (self.items, self.n_items)
        fresh = old.new_zeros(n, *old.shape[1:]) if fresh is None else fresh
        return fresh.index_copy(0, places.to(fresh.device), old.to(fresh))

    def pool(self, old: Tensor) -> Tensor:
        """A pool of draws [users, k] int32: the old draws by their new numbers, none (-1) for new users."""
        ids = self.items.to(old.device)[old.long().clamp(min=0)].int().where(old >= 0, -1)
        return self.rows("users", ids + 1) - 1


def _places(what: str, old: np.ndarray, new: np.ndarray) -> Tensor:
    if old.dtype.kind != new.dtype.kind:  # one id that is no number makes texts of all
        old, new = (np.array([str(each) for each in ids], dtype=object) for ids in (old, new))
    order = np.argsort(new, kind="stable")
    places = order[np.searchsorted(new, old, sorter=order).clip(max=len(new) - 1)]
    if (lost := new[places] != old).any():
        raise UserError(
            f"the data lack {lost.sum():,} {what}s of the run, such as {old[lost][0]}: growing only adds users and items;"
            " give data that still hold the old ones, or start a new run"
        )
    return torch.from_numpy(places)
