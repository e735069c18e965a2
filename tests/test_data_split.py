"""Splits: every method against a plain-Python oracle, saving and loading, and parts that the user gives."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bidistill.data import Interactions, Split, generate, given_split, read, split
from bidistill.errors import UserError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PARTS = ("train", "val", "test")


def interactions(pairs: list[tuple[int, int]], times: list[int] | None = None) -> Interactions:
    users, items = np.array(pairs, np.int64).T
    when = None if times is None else np.array(times)
    return Interactions(users, items, when, np.arange(users.max() + 1), np.arange(items.max() + 1) + 100)


def pairs_of(parts: Split, name: str) -> list[tuple[int, int]]:
    users, items = parts.part(name)
    return list(zip(users.tolist(), items.tolist(), strict=True))


@st.composite
def data_sets(draw: st.DrawFn) -> Interactions:
    pairs = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=50, unique=True))
    pairs += [(0, item) for item in range(3) if (0, item) not in pairs]  # someone can be evaluated
    times = draw(st.lists(st.integers(-3, 3), min_size=len(pairs), max_size=len(pairs)))
    return interactions(pairs, times)


SPLITS = (
    st.fixed_dictionaries(
        {
            "method": st.sampled_from(["leave_last", "leave_one"]),
            "val": st.integers(0, 3),
            "test": st.integers(0, 3),
        }
    )
    | st.fixed_dictionaries(
        {
            "method": st.just("ratio"),
            "val": st.sampled_from([0, 0.1, 0.25, 0.45]),
            "test": st.sampled_from([0, 0.1, 1 / 3, 0.5]),
        }
    )
).filter(lambda options: options["val"] + options["test"] > 0)


@settings(max_examples=200, deadline=None)
@given(data=data_sets(), options=SPLITS, seed=st.integers(0, 3), least=st.integers(0, 6) | st.none())
def test_every_split_is_a_partition(data: Interactions, options: dict[str, Any], seed: int, least: int | None) -> None:
    held: dict[int, tuple[int, int]] = {}
    counts = np.bincount(data.users, minlength=data.n_users).tolist()
    for user, count in enumerate(counts):
        n_val, n_test = (
            (max(1, int(count * share + 1e-9)) if share else 0) if options["method"] == "ratio" else share
            for share in (options["val"], options["test"])
        )
        held[user] = (n_val, n_test) if count > n_val + n_test and count >= (least or 0) else (0, 0)
    if not any(sum(numbers) for numbers in held.values()):
        with pytest.raises(UserError, match="leaves no user to evaluate"):
            split(data, **options, seed=seed, min_per_user=least)
        return
    parts = split(data, **options, seed=seed, min_per_user=least)
    together = [pair for name in PARTS for pair in pairs_of(parts, name)]
    assert sorted(together) == sorted(zip(data.users.tolist(), data.items.tolist(), strict=True))
    for position, name in enumerate(("val", "test")):
        users = np.bincount(parts.part(name)[0], minlength=data.n_users).tolist()
        assert users == [held[user][position] for user in range(data.n_users)]
    assert (parts.n_users, parts.n_items) == (data.n_users, data.n_items)
    assert set(parts.train_users.tolist()) == set(data.users.tolist())
    assert parts.fingerprint() == split(data, **options, seed=seed, min_per_user=least).fingerprint()


@settings(max_examples=100, deadline=None)
@given(data=data_sets(), val=st.integers(0, 2), test=st.integers(1, 2))
def test_leave_last_is_the_last(data: Interactions, val: int, test: int) -> None:
    """By time; among equal times any choice will do, and the users whom that concerns are counted."""
    times = defaultdict(list)
    assert data.times is not None
    for user, time in zip(data.users.tolist(), data.times.tolist(), strict=True):
        times[user].append(time)
    expected: dict[tuple[int, str], list[int]] = {}
    tied = set()
    for user, found in times.items():
        ordered = sorted(found)
        cuts = (len(ordered) - test - val, len(ordered) - test)
        if cuts[0] < 1:
            cuts = (len(ordered), len(ordered))
        for name, start, stop in zip(PARTS, (0, *cuts), (*cuts, len(ordered)), strict=True):
            expected[user, name] = ordered[start:stop]
        tied |= {user for cut in cuts if cut < len(ordered) and ordered[cut - 1] == ordered[cut]}
    if not any(expected[user, "test"] for user in times):
        with pytest.raises(UserError, match="leaves no user to evaluate"):
            split(data, "leave_last", val=val, test=test)
        return
    parts = split(data, "leave_last", val=val, test=test)
    when = dict(zip(zip(data.users.tolist(), data.items.tolist(), strict=True), data.times.tolist(), strict=True))
    for user, name in expected:
        assert sorted(when[pair] for pair in pairs_of(parts, name) if pair[0] == user) == expected[user, name]
    assert parts.origin is not None and parts.origin.ties is not None
    assert parts.origin.ties.users == len(tied)
    assert parts.origin.ties.evaluated == sum(bool(expected[user, "test"]) for user in times)


def test_leave_one_is_uniform() -> None:
    data = interactions([(0, item) for item in range(5)])
    chosen = [split(data, "leave_one", seed=seed) for seed in range(2000)]
    pairs = np.array([(parts.val_items[0], parts.test_items[0]) for parts in chosen])
    table = np.zeros((5, 5))
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    assert (np.diag(table) == 0).all()
    seen = table[~np.eye(5, dtype=bool)]
    assert ((seen - 100) ** 2 / 100).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


def test_shares_do_not_suffer_from_rounding() -> None:
    parts = split(interactions([(0, item) for item in range(100)]), "ratio", val=0.29, test=0.57)  # 0.29 * 100 < 29
    assert [len(parts.part(name)[0]) for name in PARTS] == [14, 29, 57]


def test_users_with_few_stay_in_train() -> None:
    data = interactions([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)])
    assert set(split(data, "leave_one").test_users.tolist()) == {1, 2}
    parts = split(data, "leave_one", min_per_user=4)
    assert set(parts.test_users.tolist()) == {2}
    assert parts.n_users == 3
    described = parts.describe()
    assert {name: described[name] for name in ("users", "items", "train", "val", "test_users")} == {
        "users": 3, "items": 4, "train": 7, "val": 1, "test_users": 1
    }  # fmt: skip


def test_one_user_is_enough() -> None:
    parts = split(interactions([(0, 2), (0, 0), (0, 1)], [1, 2, 3]))
    assert [pairs_of(parts, name) for name in PARTS] == [[(0, 2)], [(0, 0)], [(0, 1)]]
    assert parts.describe()["test_items_unknown"] == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "last"}, "split: `method` must be one of leave_last, leave_one, ratio, got 'last'"),
        ({"method": "leave_last"}, "'leave_last' needs times, but the data has none"),
        ({"method": "leave_one", "val": -1}, "`val` must be a whole number of interactions, 0 or more, got -1"),
        ({"method": "leave_one", "test": 0.5}, "`test` must be a whole number of interactions, 0 or more, got 0.5"),
        ({"method": "leave_one", "test": float("nan")}, "`test` must be a whole number"),
        ({"method": "leave_one", "test": float("inf")}, "`test` must be a whole number"),
        ({"method": "leave_one", "val": 0, "test": 0}, "`val` and `test` are both 0"),
        ({"method": "ratio", "val": 1.0}, "`val` must be a share from 0 to below 1, got 1.0"),
        ({"method": "ratio", "test": -0.1}, "`test` must be a share from 0 to below 1, got -0.1"),
        ({"method": "ratio", "test": float("nan")}, "`test` must be a share from 0 to below 1, got nan"),
        ({"method": "ratio", "val": 0.5, "test": 0.5}, "`val` + `test` must stay below 1"),
        ({"method": "leave_one", "val": 2}, "the most active one has 3 interactions, 4 are needed"),
        ({"method": "leave_one", "min_per_user": 9}, "the most active one has 3 interactions, 9 are needed"),
    ],
)
def test_mistakes(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        split(interactions([(0, 0), (0, 1), (0, 2), (1, 0)]), **options)
    assert expected in str(caught.value)


def test_one_item_cannot_be_ranked() -> None:
    data = read(pd.DataFrame({"user": [1, 2], "item": ["only", "only"]}))
    with pytest.raises(UserError, match=r"only one item \(only\), so nothing can be ranked"):
        split(data, "leave_one")


def named_split() -> Split:
    rows = [(user, item) for user in range(5) for item in range(4)]
    data = interactions(rows)
    names = np.array(["a", 'b"', "c\n", "d\0", "東京"], dtype=object)
    return split(Interactions(data.users, data.items, None, names, data.item_ids), "leave_one")


def test_saved_and_loaded(tmp_path: Path) -> None:
    parts = named_split()
    path = tmp_path / "new" / "split.npz"
    parts.save(path)
    parts.save(path)
    loaded = Split.load(path)
    assert loaded.fingerprint() == parts.fingerprint()
    assert loaded.user_ids.tolist() == parts.user_ids.tolist()
    assert loaded.item_ids.dtype == np.int64
    for name in PARTS:
        assert pairs_of(loaded, name) == pairs_of(parts, name)
    assert list(path.parent.iterdir()) == [path]


def test_mistakes_in_saving_and_loading(tmp_path: Path) -> None:
    parts, path = named_split(), tmp_path / "split.npz"
    with pytest.raises(UserError, match=r"split\.npz: there is no such file"):
        Split.load(path)
    with pytest.raises(UserError, match="this is a folder"):
        Split.load(tmp_path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"split\.npz: not a NumPy archive"):
        Split.load(path)
    with pytest.raises(UserError, match=r"cannot write .*split\.npz/x\.npz"):
        parts.save(path / "x.npz")
    np.savez(path, train=np.zeros((2, 2), int))
    with pytest.raises(UserError, match="no saved split, it lacks the array 'train_users'"):
        Split.load(path)
    parts.save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    for name, value, expected in (
        ("train_users", arrays["train_users"] + 3, r"damaged split \(.*user numbers must lie in 0\.\.4, got 3\.\.7"),
        ("val_items", arrays["val_items"][:-1], "flat and equally long"),
        ("test_items", arrays["test_items"].astype(float), "must be int64, got float64"),
        ("user_ids", arrays["user_ids"][:-1], "damaged split"),
        ("user_ids", np.frombuffer(b'{"a": 1}', np.uint8), "damaged split"),
        ("item_ids", np.array([["a"]]), "damaged split"),
    ):
        np.savez(path, **(arrays | {name: value}))
        with pytest.raises(UserError, match=expected):
            Split.load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), cut=st.booleans())
def test_no_damage_to_a_file_gives_a_traceback(place: float, change: int, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "split.npz"
    named_split().save(path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at] ^= change
    path.write_bytes(content[:at] if cut else content)
    with contextlib.suppress(UserError):
        assert Split.load(path).fingerprint() == named_split().fingerprint()  # a byte that carries no data


def test_a_split_checks_itself() -> None:
    one, two, none = np.zeros(1, np.int64), np.arange(2), np.empty(0, np.int64)
    Split(2, 2, two, two, one, one + 1, none, none, two, two)
    with pytest.raises(UserError, match="user 1 is in part test but has no training item"):
        Split(2, 2, one, one, none, none, two, two, two, two)
    with pytest.raises(UserError, match="part train has no row"):
        Split(2, 2, none, none, none, none, none, none, two, two)
    with pytest.raises(UserError, match="3 items but 2 item ids"):
        Split(2, 3, two, two, none, none, none, none, two, two)
    with pytest.raises(UserError, match="no part 'dev'; the parts are train, val, test"):
        named_split().part("dev")


def test_given_parts_share_one_numbering() -> None:
    train = pd.DataFrame({"user": [30, 10, 30, 30], "item": ["c", "a", "b", "b"]})
    val = pd.DataFrame({"user": [10], "item": ["new"]})
    parts = given_split(train, val, np.array([[30, 4]]))
    assert parts.user_ids.tolist() == [10, 30]
    assert parts.item_ids.tolist() == ["4", "a", "b", "c", "new"]
    assert [pairs_of(parts, name) for name in PARTS] == [[(1, 3), (0, 1), (1, 2)], [(0, 4)], [(1, 0)]]
    assert len(given_split(read(train), None, val).val_users) == 0
    assert len(given_split(np.array([[1, 1]]), np.empty((0, 2), int), np.array([[1, 2]])).val_users) == 0


@settings(max_examples=100, deadline=None)
@given(data=data_sets(), seed=st.integers(0, 9))
def test_given_parts_of_a_split_are_that_split(data: Interactions, seed: int) -> None:
    data = read(np.stack([data.users, data.items], 1))  # numbers without gaps, as parts give them
    parts = split(data, "leave_one", seed=seed)
    arrays = [np.stack([parts.user_ids[users], parts.item_ids[items]], 1) for users, items in map(parts.part, PARTS)]
    assert given_split(*arrays).fingerprint() == parts.fingerprint()


def test_given_paths(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", train=[[5, 1], [5, 2], [5, 1]], val=[[5, 3]], test=np.array([[5, 9]], np.int32))
    from_one = given_split(tmp_path / "all.npz")
    assert from_one.item_ids.tolist() == [1, 2, 3, 9]
    assert len(from_one.train_users) == 2
    for name, rows in (("train", "5,1\n5,2\n"), ("val", "5,3\n"), ("test", "5,9\n")):
        (tmp_path / f"{name}.csv").write_text(rows)
    from_three = given_split(*(tmp_path / f"{name}.csv" for name in PARTS), header=False)
    assert from_three.fingerprint() == from_one.fingerprint()


def test_mistakes_in_given_parts(tmp_path: Path) -> None:
    one, other = np.array([[1, 1], [2, 1]]), np.array([[1, 2]])
    with pytest.raises(UserError, match=r"1 \(user, item\) pairs are in train and in test, for example \(2, 1\)"):
        given_split(one, other, np.array([[2, 1]]))
    with pytest.raises(UserError, match=r"in val and in test, for example \(1, 2\)"):
        given_split(one, other, other)
    with pytest.raises(
        UserError,
        match=r"1 of 1 users of part val have no training row, such as 9; .* `drop_cold_users` to drop their 1 rows",
    ):
        given_split(one, np.array([[9, 1]]))
    with pytest.raises(UserError, match="nothing is held out"):
        given_split(one)
    with pytest.raises(UserError, match="part train has no rows"):
        given_split(np.empty((0, 2), int), other)
    with pytest.raises(UserError, match=r"part val: .*none\.csv: there is no such file"):
        given_split(one, tmp_path / "none.csv")
    np.savez(tmp_path / "a.npz", train=one, user=one)
    with pytest.raises(UserError, match=r"a\.npz: needs the arrays train and val or test .*found: train, user"):
        given_split(tmp_path / "a.npz")


def test_a_million_rows_split_quickly() -> None:
    import time

    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 50_000 * 20_000, 1_000_000))
    ids = np.arange(50_000)
    data = Interactions(keys // 20_000, keys % 20_000, rng.random(len(keys)), ids, ids[:20_000])
    start = time.process_time()
    split(data, "leave_last")
    assert time.process_time() - start < 10  # a Python loop over users or rows takes longer by far


@pytest.mark.parametrize("method", ["leave_last", "leave_one", "ratio"])
def test_a_random_split_of_rows_with_times_is_advised_against(method: str) -> None:
    made = generate(30, 40, 300, dim=2)[0]
    without = Interactions(made.users, made.items, None, made.user_ids, made.item_ids)
    for data, times in ((made, True), (without, False)):
        if method == "leave_last" and not times:
            continue
        origin = split(data, method).origin
        assert origin is not None
        advice = [each for each in origin.sentences() if "leave_last, which splits by time" in each]
        assert len(advice) == (times and method != "leave_last")
        assert all(f"the rows have times, but `method` {method} holds out at random" in each for each in advice)
