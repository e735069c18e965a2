"""Reading interactions: every format, ids of every kind, duplicates, thresholds, and the sentence for each mistake."""

from __future__ import annotations

import contextlib
import gzip
import io
import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bidistill.data import Interactions, read, write_interactions
from bidistill.errors import UserError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROWS = [(7, 30, 4.0, 100), (2, 10, 5.0, 300), (7, 10, 1.0, 200), (5, 20, 3.5, 50)]
COLUMNS = {name: [row[n] for row in ROWS] for n, name in enumerate(("user_id", "item_id", "rating", "timestamp"))}


def named(interactions: Interactions) -> list[tuple[Any, ...]]:
    """The rows in their order, with original ids and times."""
    users = interactions.user_ids[interactions.users].tolist()
    items = interactions.item_ids[interactions.items].tolist()
    return list(zip(users, items, *([] if interactions.times is None else [interactions.times.tolist()]), strict=True))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(sep: str, header: str) -> str:
    return "".join(f"{line}\n" for line in [header, *(sep.join(map(str, row)) for row in ROWS)] if line)


def as_source(kind: str, folder: Path) -> Any:
    frame = pd.DataFrame(COLUMNS)
    names = list(COLUMNS)
    if kind == "pandas":
        return frame
    if kind == "arrow":
        return pa.table(COLUMNS)
    if kind == "batch":
        return pa.RecordBatch.from_pandas(frame)
    if kind == "npz":
        np.savez(folder / "x.npz", **{name: np.array(values) for name, values in COLUMNS.items()})
        return folder / "x.npz"
    if kind == "parquet":
        pq.write_table(pa.table(COLUMNS), folder / "x.parquet")
        return str(folder / "x.parquet")
    if kind == "inter":
        return write(folder / "x.inter", lines("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"))
    if kind == "csv.gz":
        return write(folder / "x.csv.gz", gzip.compress(lines(",", ",".join(names)).encode()))
    if kind == "bom":
        return write(folder / "x.csv", "\ufeff" + lines(",", ",".join(names)).replace("\n", "\r\n"))
    sep = {"csv": ",", "tsv": "\t", "txt": " "}[kind]
    return write(folder / f"x.{kind}", lines(sep, sep.join(names)))


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "txt", "inter", "csv.gz", "bom", "parquet", "npz", "pandas", "arrow", "batch"]
)
def test_every_format_gives_the_same(kind: str, tmp_path: Path) -> None:
    source = as_source(kind, tmp_path)
    data = read(source)
    assert named(data) == [(user, item, time) for user, item, _, time in ROWS]
    assert data.user_ids.tolist() == [2, 5, 7]
    assert data.item_ids.tolist() == [10, 20, 30]
    assert data.users.tolist() == [2, 0, 2, 1]
    assert data.users.dtype == data.items.dtype == data.times.dtype == data.user_ids.dtype == np.int64
    liked = read(source, min_rating=3.5)
    assert named(liked) == [(7, 30, 100), (2, 10, 300), (5, 20, 50)]
    assert (liked.below_threshold, liked.duplicates) == (1, 0)


def test_threshold_closes_the_numbering() -> None:
    data = read(pd.DataFrame({"user": ["a", "b", "c"], "item": [9, 8, 7], "rating": [5, 1, 5]}), min_rating=2)
    assert data.user_ids.tolist() == ["a", "c"]
    assert data.item_ids.tolist() == [7, 9]
    assert data.users.tolist() == [0, 1]
    assert data.items.tolist() == [1, 0]


@pytest.mark.parametrize("header", [None, False])
def test_columns_by_number(header: bool | None, tmp_path: Path) -> None:
    path = write(tmp_path / "u.data", lines("\t", ""))
    expected = [(user, item, time) for user, item, _, time in ROWS]
    assert named(read(path, sep="\t", header=header, time=3)) == expected
    assert named(read(path, sep="tab", header=header, time="3", rating="2", min_rating=4)) == expected[:2]
    swapped = read(path, sep="\\t", header=header, user="1", item=0)
    assert named(swapped) == [(item, user) for user, item, _ in expected]


def test_header_is_found_out(tmp_path: Path) -> None:
    assert named(read(write(tmp_path / "a.csv", "1,2\n3,4\n"))) == [(1, 2), (3, 4)]
    assert named(read(write(tmp_path / "a.csv", "UserId,Movie ID\n3,4\n"))) == [(3, 4)]
    assert named(read(write(tmp_path / "a.csv", "who,what\n3,4\n"), user="who", item="what")) == [(3, 4)]
    assert named(read(write(tmp_path / "a.csv", "ann,x\nbob,y\n"), header=False)) == [("ann", "x"), ("bob", "y")]
    assert named(read(write(tmp_path / "a.csv", "ann,x\nbob,y\n"), header=True, user=0, item=1)) == [("bob", "y")]
    assert named(read(write(tmp_path / "a.csv", "ann,x,7\nbob,y,8\n"), user=0, item=1)) == [("ann", "x"), ("bob", "y")]


def test_unusual_but_good_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert named(read(write(path, '\n\nuser,item\n 1 , 2\n\n3,"4"'))) == [(1, 2), (3, 4)]
    assert named(read(write(path, "item;user\n1;2\n"))) == [(2, 1)]
    assert named(read(write(path, 'user,item,review\n1,2,"good,\nvery"\n3,4,bad\n'))) == [(1, 2), (3, 4)]
    assert named(read(write(path, "user,user,item\n1,2,3\n"))) == [(1, 3)]
    assert named(read(write(path, "user,item,time\n1,2,soon\n"), time="")) == [(1, 2)]
    assert named(read(write(path, "item:token,user:token\n1,2\n"), user="user", item="item:token")) == [(2, 1)]


def test_ids_keep_their_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    zeros = read(write(path, "user,item\n007,1\n7,1\n"))
    assert zeros.user_ids.tolist() == ["007", "7"]
    large = read(write(path, f"user,item\n{2**63 - 1},{2**31}\n{2**53 + 1},{2**32}\n{2**53},0\n"))
    assert large.user_ids.tolist() == [2**53, 2**53 + 1, 2**63 - 1]
    assert large.item_ids.tolist() == [0, 2**31, 2**32]
    assert read(write(path, f"user,item\nx,1\n{10**19},2\n")).user_ids.tolist() == [str(10**19), "x"]
    mixed = read(write(path, "user,item\n7,é\nx7,東京\n10,e\n"))
    assert mixed.user_ids.tolist() == ["10", "7", "x7"]
    assert mixed.item_ids.tolist() == sorted(["é", "東京", "e"])
    assert read(write(path, "user,item\n1.0,2e1\n3.0,1\n")).item_ids.tolist() == ["1", "2e1"]
    merged = read(write(path, "user,item\n1,1\n1.0,2\n1,2\n"))
    assert (merged.user_ids.tolist(), merged.users.tolist(), merged.duplicates) == ([1], [0, 0], 1)
    assert read(np.array([[0.0, 1], [-0.0, 2]])).user_ids.tolist() == [0]
    assert read(pd.DataFrame({"user": [3.0, 1.0], "item": ["1", "02"]})).user_ids.tolist() == [1, 3]
    assert read(pd.DataFrame({"user": [3.0, 1.0], "item": ["1", "02"]})).item_ids.tolist() == ["02", "1"]
    assert read(np.array([[5, 6], [5, 7]], np.uint8)).user_ids.dtype == np.int64
    assert read(np.array([["b", "x"], ["a", "x"]])).user_ids.tolist() == ["a", "b"]
    assert read(np.array([["b", "x"], ["a", "x"]])).users.tolist() == [1, 0]
    unused = pd.Categorical(["b", "a"], categories=["z", "b", "a"])
    assert read(pd.DataFrame({"user": unused, "item": [1, 2]})).user_ids.tolist() == ["a", "b"]


def test_numbering_does_not_depend_on_row_order() -> None:
    frame = pd.DataFrame({"user": list("badcab"), "item": [3, 1, 2, 9, 8, 7]})
    first, second = read(frame), read(frame.iloc[::-1])
    assert first.user_ids.tolist() == second.user_ids.tolist() == list("abcd")
    assert named(first) == named(second)[::-1]


def test_duplicates_keep_the_latest() -> None:
    frame = pd.DataFrame({"user": [1, 1, 2, 1, 1], "item": [5, 5, 5, 5, 6], "time": [3, 9, 1, 9, 0]})
    with_times = read(frame)
    assert named(with_times) == [(1, 5, 9), (2, 5, 1), (1, 6, 0)]
    assert with_times.duplicates == 2
    assert named(read(frame, time="")) == [(1, 5), (2, 5), (1, 6)]
    disliked_last = pd.DataFrame({"user": [1, 1], "item": [5, 5], "time": [1, 2], "rating": [5, 1]})
    assert read(disliked_last, min_rating=3).times.tolist() == [1]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "2"], np.array([1, 2])),
        (["1", "2.5"], np.array([1, 2.5])),
        (["2020-01-01", "2020-01-01T00:00:01"], np.array([1577836800, 1577836801]) * 10**6),
        (["2020-01-01T00:00:00Z", "2020-01-01T01:00:01+01:00"], np.array([1577836800, 1577836801]) * 10**6),
        ([str(2**62 + 1), "0"], np.array([2**62 + 1, 0])),
    ],
)
def test_times(texts: list[str], expected: np.ndarray, tmp_path: Path) -> None:
    rows = "".join(f"1,{n},{text}\n" for n, text in enumerate(texts))
    times = read(write(tmp_path / "a.csv", f"user,item,time\n{rows}")).times
    assert times.dtype == expected.dtype
    assert times.tolist() == expected.tolist()


def test_times_of_tables() -> None:
    dates = pd.to_datetime(["2020-01-01", "2020-01-02"])
    assert np.diff(read(pd.DataFrame({"user": [1, 2], "item": [1, 2], "date": dates})).times).tolist() == [  # type: ignore[type-var]
        86400 * 10**6
    ]
    assert read(pd.DataFrame({"user": [1, 2], "item": [1, 2], "ts": [0.5, 2]})).times.tolist() == [0.5, 2.0]
    assert read(pd.DataFrame({"user": [1, 2], "item": [1, 2], "ts": ["4", "5"]})).times.tolist() == [4, 5]


TEXT_MISTAKES = {
    "empty": ("", {}, "the file is empty"),
    "blank": ("\n\n", {}, "the file is empty"),
    "header only": ("user,item\n", {}, "no data rows"),
    "no user column": ("who,item\n1,2\n", {}, "no column recognised as the user: the columns are 'who', 'item'"),
    "no item column": ("1\n2\n", {}, "no column recognised as the item"),
    "wrong name": (
        "user,item\n1,2\n",
        {"user": "who"},
        "user='who' is no column of it; the columns are 'user', 'item'",
    ),
    "name without header": ("1,2\n", {"user": "who", "header": False}, "has no header, so user='who' names nothing"),
    "wrong number": ("1,2\n", {"item": 2}, "item=2 is no column of it; it has 2 column(s), numbered from 0"),
    "negative number": ("1,2\n", {"item": -1}, "item=-1 is no column of it"),
    "twice the same": ("user,item\n1,2\n", {"item": "user"}, "user and item are the same column 'user'"),
    "header or not": ("ann,x\nbob,y\n", {"user": 0, "item": 1}, "is the first line (ann, x) a header? Say so"),
    "missing id": ("user,item\n1,2\n3,\n4,4\n", {}, "column 'item' has no id in data row 2 (1 in all)"),
    "nan id": ("user,item\n1,2\nnan,2\n", {}, "column 'user' has no id in data row 2"),
    "blank id": ("user,item\n1,2\n  ,2\n", {}, "column 'user' has no id in data row 2"),
    "negative id": ("user,item\n1,2\n3,-4\n", {}, "column 'item' holds the negative id -4"),
    "fractional id": ("1,2\n1.5,2\n", {}, "column number 0 holds 1.5, a number with a fraction"),
    "huge id": (f"user,item\n1,{2**63}\n", {}, f"column 'item' holds {2**63}, which is no 64-bit"),
    "id of 20 digits": (f"user,item\n1,2\n1,{10**19}\n", {}, f"column 'item' holds {10**19}, which is no 64-bit"),
    "huge negative id": (f"user,item\n1,-{10**19}\n", {}, f"column 'item' holds -{10**19}, which is no 64-bit"),
    "open quote": (
        'user,item\n1,"5\n2,3\n4,5"\n',
        {},
        "line 2 has a quotation mark after which a line that looks like a row",
    ),
    "long row": ("user,item\n1,2\n3,4,5\n", {}, "rows that do not fit the first line (CSV parse error: Row #3"),
    "short row": ("user,item,x\n1,2,3\n3,4\n", {}, "rows that do not fit the first line"),
    "not utf-8": (b"user,item\n\xff\xfe,2\n", {}, "not UTF-8 text"),
    "utf-16": ("user,item\n1,2\n".encode("utf-16"), {}, "not UTF-8 text"),
    "no ratings": ("user,item\n1,2\n", {"min_rating": 3}, "no column recognised as the rating"),
    "rating typo": ("user,item,rating\n1,2,3\n", {"rating": "rtng"}, "rating='rtng' is no column of it"),
    "bad rating": ("user,item,rating\n1,2,3\n1,3,x\n", {"min_rating": 3}, "column 'rating' holds 'x' in data row 2"),
    "missing rating": ("user,item,rating\n1,2,3\n1,3,\n", {"min_rating": 3}, "'rating' has no number in data row 2"),
    "all dropped": (
        "user,item,rating\n1,2,3\n",
        {"min_rating": 9},
        "no value of at least min_rating=9; the largest is 3.0",
    ),
    "bad time": ("user,item,time\n1,2,3\n1,4,x\n", {}, "column 'time' holds 'x' in data row 2, which is neither"),
    "missing time": ("user,item,time\n1,2,3\n1,4,\n", {}, "column 'time' has no time in data row 2"),
}


def fails(source: Any, expected: str, where: str, **options: Any) -> None:
    """`read` raises one sentence that names the source and says what was found."""
    with pytest.raises(UserError) as caught:
        read(source, **options)
    message = str(caught.value)
    assert expected in message
    assert where in message
    assert "\n" not in message


@pytest.mark.parametrize("name", TEXT_MISTAKES)
def test_mistakes_in_text(name: str, tmp_path: Path) -> None:
    content, options, expected = TEXT_MISTAKES[name]
    fails(write(tmp_path / "a.csv", content), expected, "a.csv", **options)


def test_mistakes_in_files(tmp_path: Path) -> None:
    fails(tmp_path / "none.csv", "there is no such file", "none.csv")
    fails(tmp_path, "this is a folder", tmp_path.name)
    fails(write(tmp_path / "a.xyz", "1,2"), "unknown extension '.xyz'; known are .csv", "a.xyz")
    fails(write(tmp_path / "a", "1,2"), "unknown extension ''", "a")
    fails(write(tmp_path / "f", "x").joinpath("a.csv"), "cannot be opened", "a.csv")
    packed = gzip.compress(lines(",", ",".join(COLUMNS)).encode() * 1000)
    fails(write(tmp_path / "a.csv.gz", packed[:-40]), "cannot be read", "a.csv.gz")
    fails(write(tmp_path / "a.csv.gz", b"user,item\n1,2\n"), "cannot be read", "a.csv.gz")


def test_mistakes_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    fails(write(path, b"PAR1 nonsense"), "not a readable Parquet file", "a.parquet")
    fails(write(path, b""), "the file is empty", "a.parquet")
    pq.write_table(pa.table({"user": list(range(5000)), "item": [str(n) for n in range(5000)]}), path)
    whole = path.read_bytes()
    fails(write(path, b"PAR1" + bytes(2000) + whole[2004:]), "damaged Parquet file", "a.parquet")
    fails(write(path, whole[:-10]), "not a readable Parquet file", "a.parquet")
    pq.write_table(pa.table({"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())}), path)
    fails(path, "no data rows", "a.parquet")
    pq.write_table(pa.table({"user": [1, None], "item": [1, 2]}), path)
    fails(path, "column 'user' has no id in data row 2", "a.parquet")


def test_mistakes_in_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    fails(write(path, b"nonsense"), "not a NumPy archive", "a.npz")
    np.savez(path, user=[1, 2], item=[1, 2, 3])
    fails(
        path,
        "or one [n, 2] array; found user (2,), item (3,)",
        "a.npz",
    )
    np.savez(path, np.zeros((4, 3), int))
    fails(path, "must have shape [n, 2], got [4, 3]", "a.npz")
    np.savez(path, user=np.array([1, "a"], dtype=object), item=[1, 2])
    fails(path, "not a readable .npz file", "a.npz")
    np.savez(path, train=np.zeros((4, 2), int), test=np.zeros((4, 2), int))
    fails(path, "read it with given_split", "a.npz")
    np.savez(path)
    fails(path, "found nothing", "a.npz")
    np.savez(path, user=[1.0, np.nan], item=[1, 2])
    fails(path, "column 'user' has no id in data row 2", "a.npz")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_an_npz_gives_a_traceback(data: st.DataObject, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, user=np.arange(50), item=np.arange(50))
    content = bytearray(buffer.getvalue())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = write(tmp_path / "a.npz", bytes(content))
    with contextlib.suppress(UserError):
        read(path)


def test_mistakes_in_tables() -> None:
    fails(3, "cannot read interactions from int", "give a path")
    fails(pd.DataFrame({"user": [1, "a"], "item": [1, 2]}), "column 'user' mixes types", "data frame")
    fails(pd.DataFrame({"user": [True, False], "item": [1, 2]}), "is of type bool, which can be no id", "data frame")
    fails(pd.DataFrame({"user": [1, None], "item": [1, 2]}), "column 'user' has no id in data row 2", "data frame")
    fails(pd.DataFrame({"user": [1.5], "item": [1]}), "holds 1.5", "data frame")
    fails(pd.DataFrame({"user": [2.0**53 + 2], "item": [1]}), "write large ids as integers", "data frame")
    fails(pd.DataFrame({"user": [1e300], "item": [1]}), "holds 1e+300", "data frame")
    fails(pa.table({"user": pa.array([2**63], pa.uint64()), "item": [1]}), f"holds {2**63}", "table")
    fails(pd.DataFrame({"user": [1], "item": [1], "rating": ["x"]}), "holds 'x'", "data frame", min_rating=1)
    fails(pd.DataFrame({"user": [1], "item": [1], "time": [np.nan]}), "'time' has no time in data row 1", "data frame")
    fails(np.zeros((2, 3), int), "must have shape [n, 2], got [2, 3]", "array")


def test_interactions_check_themselves() -> None:
    ids, none = np.arange(2), np.empty(0, np.int64)
    good = Interactions(ids, ids, None, ids, ids)
    assert (len(good), good.n_users, good.n_items) == (2, 2, 2)
    with pytest.raises(UserError, match="no row at all"):
        Interactions(none, none, None, ids, ids)
    with pytest.raises(UserError, match=r"user numbers must lie in 0\.\.1, got 0\.\.2"):
        Interactions(np.array([0, 2]), ids, None, ids, ids)
    with pytest.raises(UserError, match=r"item numbers must lie in 0\.\.1, got -1\.\.1"):
        Interactions(ids, np.array([1, -1]), None, ids, ids)
    with pytest.raises(UserError, match="user numbers must be int64, got int32"):
        Interactions(ids.astype(np.int32), ids, None, ids, ids)
    with pytest.raises(UserError, match="flat and equally long"):
        Interactions(ids, ids[:1], None, ids, ids)
    with pytest.raises(UserError, match="2 users but 3 times"):
        Interactions(ids, ids, np.arange(3), ids, ids)
    with pytest.raises(UserError, match="NaN"):
        Interactions(ids, ids, np.array([0, np.nan]), ids, ids)


def test_describe_and_fingerprint() -> None:
    data = read(pd.DataFrame({"user": [1, 1, 1, 2, 1], "item": list("abcaa"), "time": [5, 6, 7, 8, 4]}))
    described = data.describe()
    assert described["interactions"] == 4
    assert described["density"] == pytest.approx(4 / 6)
    assert described["duplicates_dropped"] == 1
    assert described["per_user"]["max"] == 3
    assert described["per_item"] == pytest.approx(
        {"mean": 4 / 3, "min": 1, "q25": 1, "median": 1, "q75": 1.5, "q90": 1.8, "max": 2}
    )
    assert described["top_tenth_share"] == 0.5
    assert (described["first_time"], described["last_time"]) == (5, 8)
    again = read(pd.DataFrame({"user": [1, 1, 1, 2], "item": list("abca"), "time": [5, 6, 7, 8]}))
    assert again.fingerprint() == data.fingerprint()
    other = read(pd.DataFrame({"user": [1, 1, 1, 2], "item": list("abcb"), "time": [5, 6, 7, 8]}))
    renamed = read(pd.DataFrame({"user": [1, 1, 1, 3], "item": list("abca"), "time": [5, 6, 7, 8]}))
    assert len({data.fingerprint(), other.fingerprint(), renamed.fingerprint()}) == 3


# Ids that mean themselves in a text file too: no surrounding blanks, no word for "missing", not all of them numbers.
NAMES = st.text(string.ascii_letters + 'éß東_-:;," \t', min_size=1, max_size=8).map(lambda text: f"x{text}x")
TABLES = st.one_of(  # type: ignore[call-overload]
    st.tuples(st.lists(st.tuples(names, names, st.integers(-(2**62), 2**62)), min_size=1, max_size=30), st.booleans())
    for names in (NAMES, st.integers(0, 2**63 - 1), st.integers(0, 4))
)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "npz"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=TABLES)
def test_written_and_read_back(table: tuple[list[tuple[Any, Any, int]], bool], suffix: str, tmp_path: Path) -> None:
    rows, with_times = table
    columns = dict(zip(("user", "item", "time"), zip(*rows, strict=True), strict=True))
    if not with_times:
        del columns["time"]
    data = read(pa.table({name: list(values) for name, values in columns.items()}))
    latest: dict[tuple[Any, Any], int] = {}
    for user, item, time in rows:
        latest[user, item] = max(time, latest.get((user, item), time))
    expected = {(*pair, time) for pair, time in latest.items()} if with_times else set(latest)
    assert set(named(data)) == expected
    assert len(data) == len(latest) == len(rows) - data.duplicates
    assert data.user_ids.tolist() == sorted(data.user_ids.tolist())
    path = tmp_path / f"a.{suffix}"
    write_interactions(path, data)
    assert named(read(path)) == named(data)
    assert read(path).fingerprint() == data.fingerprint()
    assert list(tmp_path.iterdir()) == [path]


def test_mistakes_in_writing(tmp_path: Path) -> None:
    data = read(pd.DataFrame(COLUMNS))
    with pytest.raises(UserError, match=r"a\.xls: cannot write the format '\.xls'; use \.csv"):
        write_interactions(tmp_path / "a.xls", data)
    blocked = write(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"cannot write .*a\.csv"):
        write_interactions(blocked / "a.csv", data)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*b\.csv"):
        write_interactions(tmp_path / "b.csv", data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv", "file"]
