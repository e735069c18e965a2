"""Splits by lots: neither row order nor numbering nor the kind of ids changes them, and equal times leave no bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from bidistill.data import Interactions, Split, split
from bidistill.data.lots import lots

METHODS: list[dict[str, Any]] = [
    {"method": "leave_last", "val": 2, "test": 1},
    {"method": "leave_one"},
    {"method": "ratio", "val": 0.2, "test": 0.3},
]


def data_set(times: str = "days") -> Interactions:
    """40 users with 3 to 30 of 50 items each."""
    rng = np.random.default_rng(5)
    rows = [(user, item) for user in range(40) for item in rng.permutation(50)[: rng.integers(3, 31)]]
    users, items = np.array(rows).T
    when = rng.integers(0, 4, len(users)) if times == "days" else np.zeros(len(users), np.int64)
    return Interactions(users, items, when, np.arange(40) * 3, np.arange(50) + 7)


def members(parts: Split) -> dict[str, set[tuple[str, str]]]:
    """The pairs of each part, by the texts of their ids."""
    found = {}
    for name in ("train", "val", "test"):
        users, items = parts.part(name)
        found[name] = {(str(parts.user_ids[u]), str(parts.item_ids[i])) for u, i in zip(users, items, strict=True)}
    return found


@pytest.mark.parametrize("options", METHODS, ids=lambda options: options["method"])
def test_row_order_numbering_and_kind_of_ids_change_nothing(options: dict[str, Any]) -> None:
    data = data_set()
    assert data.times is not None
    expected = members(split(data, **options, seed=3))
    order = np.random.default_rng(0).permutation(len(data))
    shuffled = Interactions(data.users[order], data.items[order], data.times[order], data.user_ids, data.item_ids)
    assert members(split(shuffled, **options, seed=3)) == expected
    texts = Interactions(  # other numbers, and ids that are texts
        39 - data.users, 49 - data.items, data.times,
        *(np.array([str(each) for each in ids[::-1]], dtype=object) for ids in (data.user_ids, data.item_ids)),
    )  # fmt: skip
    assert members(split(texts, **options, seed=3)) == expected
    assert members(split(data, **options, seed=4)) != expected
    assert members(split(data, **options, seed=2**200)) != expected


def test_lots_of_other_rows_do_not_matter() -> None:
    data = data_set()
    some = np.arange(0, len(data), 7)
    fewer = Interactions(data.users[some], data.items[some], None, data.user_ids, data.item_ids)
    assert (lots(fewer, np.arange(len(some)), 1) == lots(data, some, 1)).all()


def test_equal_times_hold_out_every_item_alike() -> None:
    """2,000 users with the same ten items at one time, sorted by item: each item is the last one equally often."""
    users, items = np.divmod(np.arange(20_000), 10)
    data = Interactions(users, items, np.zeros(20_000, np.int64), np.arange(2000), np.arange(10))
    parts = split(data)
    table = np.zeros((10, 10))
    np.add.at(table, (parts.val_items, parts.test_items), 1)  # both are in the order of the users
    assert (np.diag(table) == 0).all()
    assert scipy.stats.chisquare(table[~np.eye(10, dtype=bool)]).pvalue > 1e-3
    assert parts.origin is not None and parts.origin.ties == (2000, 2000, 0)
    assert any("100.0%" in each for each in parts.origin.sentences())
    assert any(each.startswith("warning: ") for each in parts.origin.sentences())


def test_lots_are_uniform_and_do_not_repeat() -> None:
    for seed in range(3):
        users, items = np.divmod(np.arange(100_000), 500)
        drawn = lots(Interactions(users, items, None, np.arange(200), np.arange(500)), np.arange(100_000), seed)
        assert len(np.unique(drawn)) == 100_000
        for shift in (0, 24, 56):
            counts = np.bincount((drawn >> np.uint64(shift)).astype(np.uint8), minlength=256)
            assert scipy.stats.chisquare(counts).pvalue > 1e-4
        first = drawn.reshape(200, 500).argmax(1)  # no item is the first of many users
        assert np.bincount(first).max() <= 6


def test_distinct_times_have_no_ties_and_no_word_about_them() -> None:
    data = data_set()
    distinct = Interactions(data.users, data.items, np.arange(len(data)), data.user_ids, data.item_ids)
    parts = split(distinct)
    assert parts.describe()["ties_at_cut_users"] == 0
    assert parts.origin is not None and not any("ties" in each for each in parts.origin.sentences())
    assert "ties_at_cut_users" not in split(distinct, "leave_one").describe()
