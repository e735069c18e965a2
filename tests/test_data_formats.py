"""Formats of text and what readers make of them: quotation marks, adjacency lists, JSON lines, ids as they are written."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bidistill.cli import main
from bidistill.data import Interactions, given_split, read
from bidistill.data.streams import Bytes
from bidistill.errors import UserError

MOVIELENS = "1::1193::5::978300760\n1::661::3::978302109\n2::661::3::978302268\n"
REVIEWS = [
    {"user_id": "a", "business_id": "7", "stars": 5.0, "text": 'good,\n"very"', "date": "2018-07-07 22:09:11"},
    {"user_id": "A", "business_id": "8", "stars": 1.0, "text": "", "date": "2018-07-07 22:09:12"},
]
JSON_LINES = "".join(f"{json.dumps(review)}\n" for review in REVIEWS)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(data: Interactions) -> list[tuple[Any, Any]]:
    return list(zip(data.user_ids[data.users].tolist(), data.item_ids[data.items].tolist(), strict=True))


# {name: (file, content, options, pairs)}
READ: dict[str, tuple[str, str | bytes, dict[str, Any], list[tuple[Any, Any]]]] = {
    "adjacency, equal": (
        "a.txt",
        "0 11 12 13\n1 5 7 9\n2 3 9 4\n",
        {},
        [(0, 11), (0, 12), (0, 13), (1, 5), (1, 7), (1, 9), (2, 3), (2, 9), (2, 4)],
    ),
    "adjacency, ragged": ("a.txt", "0 11 12\n1 5\n2\n3 8 \n", {}, [(0, 11), (0, 12), (1, 5), (3, 8)]),
    "adjacency, first without items": ("a.txt", "0\n1 5\n\n2 8  7\r\n", {}, [(1, 5), (2, 8), (2, 7)]),
    "adjacency, byte order mark": ("a.txt", "\ufeff0 11 12\n1 5\n", {}, [(0, 11), (0, 12), (1, 5)]),
    "adjacency of names": ("a.csv", "u,x,y\nv,z,\n", {"format": "adjacency"}, [("u", "x"), ("u", "y"), ("v", "z")]),
    "adjacency, asked for": ("a.txt", "0 1 2\n1 5 4\n", {"format": "adjacency"}, [(0, 1), (0, 2), (1, 5), (1, 4)]),
    "adjacency, user twice": ("a.txt", "0 1 2\n0 5\n", {"format": "adjacency"}, [(0, 1), (0, 2), (0, 5)]),
    "table, asked for": ("a.txt", "0 11 5\n1 5 4\n", {"format": "table"}, [(0, 11), (1, 5)]),
    "table, users repeat": ("a.txt", "0 11 50\n0 5 40\n1 5 20\n", {}, [(0, 11), (0, 5), (1, 5)]),
    "table with times": ("a.txt", "0 11 5 978300760\n1 5 4 978300761\n", {}, [(0, 11), (1, 5)]),
    "MovieLens-1M": ("ratings.dat", MOVIELENS, {}, [(1, 1193), (1, 661), (2, 661)]),
    "MovieLens-1M.gz": ("ratings.dat.gz", gzip.compress(MOVIELENS.encode()), {}, [(1, 1193), (1, 661), (2, 661)]),
    "MovieLens-100K": ("u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n", {}, [(196, 242), (186, 302)]),
    "long sep": ("a.csv", "user::item\n1:::2\n3::4:\n", {"sep": "::"}, [(1, ":2"), (3, "4:")]),
    "json": ("a.json", JSON_LINES, {}, [("a", "7"), ("A", "8")]),
    "jsonl.gz": ("a.jsonl.gz", gzip.compress(JSON_LINES.encode()), {}, [("a", "7"), ("A", "8")]),
    "ndjson, byte order mark": ("a.ndjson", f"\ufeff\n{JSON_LINES}\n", {}, [("a", "7"), ("A", "8")]),
    "json of numbers": (
        "a.json",
        '{"user":1,"parent_asin":"1E5"}\n{"parent_asin":"x","user":2}',
        {},
        [(1, "1E5"), (2, "x")],
    ),
    "json of floats": ("a.json", '{"user":1,"item":5}\n{"user":2.0,"item":6}', {}, [(1, 5), (2, 6)]),
    "exponents": (
        "a.csv",
        "user,item\n1E5,12E5\n100000,0047583311587E59\n",
        {},
        [("1E5", "12E5"), ("100000", "0047583311587E59")],
    ),
    "integral floats": (
        "a.csv",
        "user,item\n1,9007199254740993.0\n1.0,2.0\n2,2\n",
        {},
        [(1, 2**53 + 1), (1, 2), (2, 2)],
    ),
    "no number": ("a.csv", "user,item\n-0,x\n0,1.0\n", {}, [("-0", "x"), ("0", "1.0")]),
    "blanks": ("a.csv", "user,item\n x, 1\nx,2 \n", {}, [(" x", 1), ("x", 2)]),
    "quotes in TSV": (
        "a.tsv",
        'user\titem\tname\n1\t2\t"Weird\n3\t4\tb\n5\t6\t"Al\n7\t8\tc\n',
        {},
        [(1, 2), (3, 4), (5, 6), (7, 8)],
    ),
    "TSV in quotes": ("a.tsv", '"user"\t"item"\r\n"a""b"\t"x\ty"\r\n', {}, [('a"b', "x\ty")]),
    "TSV, some in quotes": ("a.tsv", 'user\titem\n"a""b"\t1\n', {"quote": '"'}, [('a"b', 1)]),
    "TSV, marks are text": ("a.tsv", 'user\titem\n"a""b"\t1\n', {"quote": "none"}, [('"a""b"', 1)]),
    "line breaks in quotes": ("a.csv", 'user,item,text\n1,2,"a\nx,y,""z"""\n3,4,b\n', {}, [(1, 2), (3, 4)]),
    "a row in quotes": ("a.csv", 'user,item,text\n1,2,"a\n3,4,b\n5,6,c"\n', {"quote": '"'}, [(1, 2)]),
    "marks within": ("a.csv", 'user,item\n5" tape,1\n6,2\n', {}, [('5" tape', 1), ("6", 2)]),
    "another mark": ("a.csv", "user,item\n'a,b',1\n", {"quote": "'"}, [("a,b", 1)]),
    "CR": ("a.csv", "user,item\r1,2\r\r3,4\r", {}, [(1, 2), (3, 4)]),
    "empty column": ("a.csv", "1,2,\n3,4,\n", {}, [(1, 2), (3, 4)]),
    "header on two lines": ("a.csv", 'user,"te\nxt",item\n1,x,2\n', {}, [(1, 2)]),
    "byte order mark": ("a.csv", "\ufeff1,2\n3,4\n", {}, [(1, 2), (3, 4)]),
}


@pytest.mark.parametrize("name", READ)
def test_read(name: str, tmp_path: Path) -> None:
    file, content, options, expected = READ[name]
    data = read(write(tmp_path / file, content), **options)
    assert pairs(data) == expected
    assert data.reading is not None
    assert data.reading.rows == data.rows == len(expected)


# {name: (file, content, options, words of the message)}
REFUSED: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "open quote": (
        "a.csv",
        'user,item,name\n1,2,"a\n3,4,b\n',
        {},
        "line 2 has a quotation mark that is not closed; mend it, or set the option quote",
    ),
    "half quotes": (
        "a.csv",
        '\nuser,item,name\n1,2,x\n3,4,"a\n5,6,b\n7,8,"c\n',
        {},
        "line 4 has text after a closing quotation mark",
    ),
    "a row in quotes": (
        "a.csv",
        'user,item,text\n1,2,"a\n3,4,b\n5,6,c"\n',
        {},
        "line 2 has a quotation mark after which a line that looks like a row",
    ),
    "two rows in quotes": ("a.csv", 'user,item,text\n1,2,"a\n5,6,c"\n', {}, "looks like a row"),
    "short row in quotes": ("a.csv", 'user,item,text\n1,2,"a\nb"\n5,"6"\n', {}, "line 4 has 2 fields, not 3"),
    "break in an id": ("a.csv", 'user,item\n1,"5\nb"\n', {}, "column 'item' holds the id '5\\nb' with a line break"),
    "TSV or not": (
        "a.tsv",
        'user\titem\ttext\n1\t2\t"x\n3\t4\ty"\n',
        {},
        "if quotation marks enclose fields; say which",
    ),
    "TSV, some in quotes": (
        "a.tsv",
        'user\titem\n"a""b"\t1\n',
        {},
        "column 'user' holds the id '\"a\"\"b\"' with a quotation mark at its start",
    ),
    "escapes": ("a.csv", 'user,item\na\\"b,2\n', {}, "a backslash that may stand for an escape; set the option quote"),
    "quote": ("a.csv", "1,2\n", {"quote": "ab"}, "quote must be one ASCII character, none or auto, got 'ab'"),
    "quote and sep": ("a.dat", "1::2\n", {"quote": '"'}, "needs a separator of one character, not '::'"),
    "sep": ("a.csv", "1,2\n", {"sep": ""}, "sep must be one character or more"),
    "stand-in": ("a.dat", "1::2\n3\x1f::4\n", {}, "holds the control character 0x1F"),
    "format": ("a.csv", "1,2\n", {"format": "list"}, "format must be one of auto, table, adjacency, got 'list'"),
    "adjacency or table": (
        "a.txt",
        "0 11 5\n1 5 4\n",
        {},
        "say which with the option format=table or format=adjacency",
    ),
    "adjacency or CSV": (
        "a.csv",
        "0,11,12,13\n1,5,6,7\n",
        {},
        "say which with the option format=table or format=adjacency",
    ),
    "ragged CSV": (
        "a.csv",
        "0,11,12,13\n1,5\n",
        {},
        "lines have from 2 to 4 numbers; if each is a user and the user's items",
    ),
    "ragged, late": ("a.csv", "a,11,12\nb,5\n", {"header": False}, "format=adjacency if each line is a user"),
    "adjacency, user late": (
        "a.txt",
        "\n".join(f"{n} 11 12 13" for n in range(90_000)) + "\n7 1 1 1",
        {},
        "user 7 has a second line, 90,001",
    ),
    "adjacency, hole": ("a.csv", "0,1,,2\n", {"format": "adjacency"}, "line 1 has an empty id"),
    "adjacency, header": (
        "a.txt",
        "user items\n0 1\n",
        {"format": "adjacency", "header": True},
        "an adjacency list has no header",
    ),
    "Gowalla": (
        "a.txt",
        "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t42\n",
        {},
        "column number 1 holds 2010-10-19T23:55:27Z, a date, which can be no id; name another column with the option item",
    ),
    "places": (
        "a.txt",
        "0\t30.2\t-97.7\t22847\n0\t31.0\t-97.7\t42\n",
        {},
        "column number 1 holds 30.2, a number with a fraction or exponent, which can be no id; name another",
    ),
    "large floats": ("a.csv", "user,item\n1.0,1\n1e+16,2\n", {}, "a number with a fraction or exponent"),
    "infinite": ("a.csv", "user,item\n1.0,1\ninf,2\n", {}, "column 'user' holds 1.0"),
    "comment": ("a.txt", "# from 4 to 7\n0\t1\n", {}, "a comment? Remove comments, or say header=false"),
    "blank line": ("a.csv", "user,item\n1,2\n  \n3,4\n", {}, "rows that do not fit the first line"),
    "inner mark": ("a.csv", "1,2\n\ufeff3,4\n", {}, "with a byte order mark, as files joined together have"),
    "utf-16": ("a.csv", "user,item\n1,2\n".encode("utf-16-le"), {}, "not UTF-8 text"),
    "latin": ("a.txt", b"0 1 2\n3 4 \xe9\n", {"format": "adjacency"}, "not UTF-8 text"),
    "latin in quotes": ("a.csv", b'user,item\n"a",2\n"\xe9",2\n', {}, "not UTF-8 text"),
    "json array": ("a.json", '[{"user":1,"item":2}]', {}, "line 1 is no JSON object; write one object on each line"),
    "json, pretty": ("a.json", '{\n"user":1,\n"item":2}', {}, "line 1 is no JSON"),
    "json, two on a line": (
        "a.json",
        '{"user":1,"item":2}\n' * 60_000 + '{"user":1,"item":2}{"user":1,"item":3}\n',
        {},
        "has 60,002 JSON objects on 60,001 lines",
    ),
    "json, mixed": (
        "a.json",
        '{"user":1,"item":2}\n' * 60_000 + '{"user":"x","item":2}\n',
        {},
        "has lines that do not fit the first ones",
    ),
    "json, missing": ("a.json", '{"user":1,"item":2}\n{"user":1}\n', {}, "column 'item' has no id in data row 2"),
    "json, objects": ("a.json", '{"user":{"id":1},"item":2}\n', {}, "column 'user' holds values of type dict"),
    "json, names": (
        "a.json",
        '{"who":1,"item":2}\n',
        {},
        "no column recognised as the user: the columns are 'who', 'item'",
    ),
    "json, latin": ("a.json", b'{"user":"\xe9","item":2}\n', {}, "not UTF-8 text"),
    "large time": (
        "a.csv",
        f"user,item,time\n1,2,{2**63 + 1}\n",
        {},
        f"holds '{2**63 + 1}' in data row 1, which is no 64-bit whole number",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    file, content, options, expected = REFUSED[name]
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / file, content), **options)
    assert expected in str(caught.value)
    assert str(tmp_path / file) in str(caught.value) or "format must" in expected
    assert "\n" not in str(caught.value)


def test_quotation_marks_are_text_in_tsv(tmp_path: Path) -> None:
    rows = [f"{n}\t{n % 7}\tartist {n}" for n in range(1000)]
    rows[500], rows[700] = '500\t3\t"Weird', '700\t0\t"Heroes'
    data = read(write(tmp_path / "a.tsv", "\n".join(["user\titem\tname", *rows])))
    assert data.users.tolist() == list(range(1000))
    with pytest.raises(UserError, match="line 502 has text after a closing quotation mark"):
        read(write(tmp_path / "a.csv", "\n".join(["user,item,name", *rows]).replace("\t", ",")))


def test_uuids(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=n) for n in (3, 1, 2)]
    expected = [(str(each), n) for n, each in enumerate(ids)]
    frame = pd.DataFrame({"user": ids, "item": [0, 1, 2]})
    assert pairs(read(frame)) == expected
    stored = pa.array([each.bytes for each in ids], pa.binary(16))
    for column in (stored, pa.array([str(each) for each in ids]), pa.ExtensionArray.from_storage(pa.uuid(), stored)):
        table = pa.table({"user": column, "item": [0, 1, 2]})
        pq.write_table(table, tmp_path / "a.parquet")
        assert pairs(read(table)) == pairs(read(tmp_path / "a.parquet")) == expected
    with pytest.raises(UserError, match="binary, which can be no id"):
        read(pa.table({"user": pa.array([b"a"]), "item": [0]}))
    with pytest.raises(UserError, match=r"period.* can be no id; name another column with the option user"):
        read(pd.DataFrame({"user": pd.period_range("2020", periods=2), "item": [1, 2]}))


@pytest.mark.parametrize(("kind", "limit"), [(np.float16, 2**11), (np.float32, 2**24), (np.float64, 2**53)])
def test_floats_that_may_be_rounded(kind: type, limit: int) -> None:
    good = pd.DataFrame({"user": np.array([limit - 1, 1], kind), "item": [1, 2]})
    assert pairs(read(good)) == [(limit - 1, 1), (1, 2)]
    with pytest.raises(UserError, match=rf"'user' holds {limit} as a float of .* write large ids as integers"):
        read(pd.DataFrame({"user": np.array([limit + 1, 1], kind), "item": [1, 2]}))


def test_the_reader_says_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ratings.dat", MOVIELENS + MOVIELENS[:22])
    data = read(path, min_rating=4, rating=2)
    assert data.times is not None and data.times.tolist() == [978300760]
    assert data.account() == (
        f"{path}: read as text (separator '::', quote 'none', header no) with user: number 0, item: number 1, rating:"
        " number 2, time: number 3; the first line was taken as data; user and item and time taken by place; 4 rows = 1"
        " kept + 3 dropped (2 below min_rating, 1 repeated (user, item) pairs)"
    )
    assert main(["data", "describe", str(path), "--data-min-rating", "4", "--data-rating", "2"]) == 0
    described = json.loads(capsys.readouterr().out)
    counts = [described[name] for name in ("rows", "interactions", "duplicates_dropped", "below_threshold_dropped")]
    assert counts == [4, 1, 1, 2]
    assert described["reading"]["separator"] == "::"
    assert described["reading"]["columns"]["time"] == "number 3"
    lonely = write(tmp_path / "a.txt", "0 1 2\n1\n2 3\n")
    assert "1 users without items were left out" in read(lonely).account()
    assert main(["data", "describe", str(lonely), "--data-format", "table"]) == 2
    assert (
        main(["data", "describe", str(write(tmp_path / "a.tsv", 'user\titem\n"a"\t1\n')), "--data-quote", "none"]) == 0
    )


def test_rows_are_counted() -> None:
    data = read(pd.DataFrame({"user": [1, 1], "item": [2, 2]}))
    assert (data.rows, len(data), data.duplicates) == (2, 1, 1)
    with pytest.raises(UserError, match="has 2 rows, but 1 were kept and 0 dropped"):
        Interactions(data.users, data.items, None, data.user_ids, data.item_ids, reading=data.reading)


def test_adjacency_lists_as_parts(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.txt", "0 1 2 3\n1 4 5 6\n"), write(tmp_path / "test.txt", "0 4 \n1 \n")
    parts = given_split(train, None, test, format="adjacency")
    assert (len(parts.train_users), len(parts.test_users)) == (6, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_bytes_in_pieces(size: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a", "\ufeffa::b\r\n\r\nc:::d\r\r::\n:e")
    with Bytes(path, "::") as stream:
        pieces = []
        while piece := stream.read(size + 3):  # the byte order mark stands in the first
            pieces.append(piece)
        assert b"".join(pieces) == b"a\x1fb\r\n\r\nc\x1f:d\r\r\x1f\n:e"
        assert stream.lines == 4
