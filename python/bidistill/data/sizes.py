"""How large a job is: what there will be to train on, and on what of it the machine is measured."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bidistill.config import Config
from bidistill.data import Split
from bidistill.errors import UserError


class Sizes(NamedTuple):
    """Numbers of a data set and its split.

    Attributes:
        users, items: of the catalog.
        interactions: all rows.
        train: those that train; as many users as `evaluated` have one that validates, and as many one for the test.
        evaluated: users who are ranked for in an evaluation.
    """

    users: int
    items: int
    interactions: int
    train: int
    evaluated: int

    @classmethod
    def of(cls, users: int, items: int, interactions: int, config: Config) -> Sizes:
        """What the settings make of so many rows. Raises UserError where there is nothing to train on."""
        for name, value in (("users", users), ("items", items), ("interactions", interactions)):
            if value < 1:
                raise UserError(f"--{name} must be at least 1, found {value}")
        if interactions > users * items:
            raise UserError(
                f"--interactions {interactions:,} are more than there are pairs of {users:,} users and {items:,} items"
            )
        if config.data.split == "ratio":
            shares = (0.1 if share is None else share for share in (config.data.val, config.data.test))
            held = int(sum(shares) * interactions)
        else:
            held = int(sum(1 if number is None else number for number in (config.data.val, config.data.test))) * users
        train = interactions - held
        if train < users:
            raise UserError(
                f"{interactions:,} interactions leave {max(train, 0):,} to train for {users:,} users once the split"
                " has held out its part: give more interactions"
            )
        evaluated = min(users, config.eval.users) if config.eval.users else users
        return cls(users, items, interactions, train, evaluated)

    @classmethod
    def of_split(cls, split: Split, config: Config) -> Sizes:
        """Of data that are there."""
        rows = [len(split.part(name)[0]) for name in ("train", "val", "test")]
        users = len(np.unique(split.val_users))
        evaluated = min(users, config.eval.users) if config.eval.users else users
        return cls(split.n_users, split.n_items, sum(rows), rows[0], evaluated)

    def at_most(self, users: int, items: int, train: int) -> Sizes:
        """A job of the same shape in little: as many interactions a user, no more than there are pairs."""
        u, n = min(self.users, users), min(self.items, items)
        each = max(1, min(round(self.train / self.users), train // u, n - 2))
        return Sizes(u, n, (each + 2) * u, each * u, min(u, self.evaluated))


def made_up(sizes: Sizes) -> Split:
    """A split of these sizes, made in a moment: each user's items lie at even distances from a random start."""
    each = sizes.train // sizes.users
    starts = np.random.default_rng(0).integers(0, sizes.items, (sizes.users, 1))
    items = (starts + np.arange(each + 2) * (sizes.items // (each + 2))) % sizes.items
    everyone = np.arange(sizes.users)
    parts = {
        "train": (np.repeat(everyone, each), np.ascontiguousarray(items[:, :each]).reshape(-1)),
        "val": (everyone, items[:, each].copy()),
        "test": (everyone, items[:, each + 1].copy()),
    }
    return Split.of(parts, everyone, np.arange(sizes.items))
