"""Any table that pandas writes comes back equal, with ids as they are written, or is refused: never a part of it."""

from __future__ import annotations

import csv
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bidistill.data import read
from bidistill.errors import UserError
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st

NASTY = (
    "NA",
    "nan",
    "",
    " ",
    "1E5",
    "12E5",
    "100000",
    "0047583311587E59",
    "007",
    "7",
    "1",
    "1.0",
    "2.5",
    "-0",
    "+5",
    " 7",
)
NASTY += (
    '"',
    'a"',
    '"a',
    '"a"',
    '""',
    "a\nb",
    "a\r\nb",
    "\r",
    "a,b",
    "a\tb",
    "a;b",
    " a",
    "a ",
    "é東",
    "\\",
    'a\\"b',
    "\\N",
    "#",
)
NASTY += (
    "2020-01-01",
    "user",
    "1\n2",
    "1,2",
    '5"\n3,4,"x',
    "\ufeff1",
    "a\u2028b",
    "\x1f",
    "a::b",
    str(2**63),
    str(2**53 + 1),
)
TEXTS = st.one_of(st.sampled_from(NASTY), st.text("ab,\t\n\r\"'\\ 1.é", max_size=5))
WORDS = st.text("abcé-_", min_size=1, max_size=5)
INTS = st.one_of(st.integers(0, 4), st.integers(0, 2**63 - 1), st.sampled_from([2**24 + 1, 2**53 + 1, 2**31]))
KINDS = ("text", "words", "categories", "int", "nullable", "float64", "float32", "float16", "uuid")
FORMATS = ("csv", "csv.gz", "tsv", "txt", "jsonl", "jsonl.gz", "parquet", "frame")
QUOTINGS = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE)


@st.composite
def columns(draw: st.DrawFn, length: int) -> pd.Series:
    """A column of ids of one kind."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "uuid":
        values = [uuid.UUID(int=n) for n in draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))]
        return pd.Series(values, dtype=object)
    strategy = TEXTS if kind == "text" else WORDS if kind in ("words", "categories") else INTS
    values = draw(st.lists(strategy, min_size=length, max_size=length))
    if kind.startswith("float"):
        largest = {"float16": 60000, "float32": 2**30, "float64": 2**63}[kind]
        return pd.Series(np.array([value % largest for value in values], np.float64).astype(kind))
    types = {"categories": "category", "int": "int64", "nullable": "Int64"}
    return pd.Series(values, dtype=types.get(kind, object))


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """A user, a text that is not read, an item, and sometimes times."""
    length = draw(st.integers(1, 6))
    lists = {"min_size": length, "max_size": length}
    frame = pd.DataFrame({"user_id": draw(columns(length)), "note": draw(st.lists(TEXTS, **lists))})
    frame["item_id"] = draw(columns(length))
    time = draw(st.sampled_from(["none", "int", "float", "date"]))
    if time == "int":
        frame["timestamp"] = draw(st.lists(st.integers(-(2**62), 2**62), **lists))
    elif time == "float":
        frame["timestamp"] = draw(st.lists(st.floats(-1e12, 1e12), **lists))
    elif time == "date":
        seconds = draw(st.lists(st.integers(0, 2**31), **lists))
        frame["timestamp"] = pd.to_datetime(np.array(seconds) * 10**6, unit="us")
    return frame


def write(frame: pd.DataFrame, kind: str, folder: Path, quoting: int, header: bool, end: str) -> Any:
    if kind == "frame":
        return frame
    path = folder / f"a.{kind}"
    if kind.startswith("jsonl"):
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        escape = "\\" if quoting == csv.QUOTE_NONE else None
        sep = "," if kind.startswith("csv") else "\t"
        frame.to_csv(path, index=False, sep=sep, quoting=quoting, escapechar=escape, header=header, lineterminator=end)
    return path


def as_written(ids: pd.Series, text: bool) -> list[str]:
    """What the ids are; in a text file whole numbers are numbers."""
    if ids.dtype.kind == "f":
        return [str(int(value)) for value in ids]
    words = [str(value) for value in ids]
    if text and all(re.fullmatch(r"(0|-?[1-9][0-9]*)(\.0+)?", word.strip()) for word in words):
        return [str(int(word.strip().split(".")[0])) for word in words]
    return words


def table(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(columns)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    frame=tables(),
    kind=st.sampled_from(FORMATS),
    quoting=st.sampled_from(QUOTINGS),
    header=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
@example(
    frame=table(user_id=[1, 2, 3], note=['"Weird', "b", 'Al"'], item_id=[1, 2, 3]),
    kind="tsv",
    quoting=csv.QUOTE_NONE,
    header=True,
    end="\n",
)
@example(
    frame=table(user_id=["1E5", "100000"], note=["", ""], item_id=[1, 1]),
    kind="csv",
    quoting=csv.QUOTE_MINIMAL,
    header=True,
    end="\n",
)
@example(
    frame=table(user_id=[" a", "a"], note=["", ""], item_id=[1, 1]),
    kind="csv",
    quoting=csv.QUOTE_MINIMAL,
    header=True,
    end="\n",
)
@example(
    frame=table(user_id=[1], note=["x\n3\t4\ty"], item_id=[2]),
    kind="tsv",
    quoting=csv.QUOTE_MINIMAL,
    header=True,
    end="\n",
)
@example(
    frame=table(user_id=["a,b"], note=["'\t1"], item_id=[2]),
    kind="tsv",
    quoting=csv.QUOTE_NONNUMERIC,
    header=False,
    end="\n",
)
def test_what_pandas_writes_comes_back_or_is_refused(
    frame: pd.DataFrame, kind: str, quoting: int, header: bool, end: str, tmp_path: Path
) -> None:
    text = kind not in ("jsonl", "jsonl.gz", "parquet", "frame")
    if kind.startswith("jsonl"):
        for name in frame.columns:
            if frame[name].dtype.kind in "M" or isinstance(frame[name].iloc[0], uuid.UUID):
                frame[name] = frame[name].astype(str)
    try:
        source = write(frame, kind, tmp_path, quoting, header, end)
    except (csv.Error, OverflowError, ValueError) as error:  # pandas writes no such table
        event(f"not written: {type(error).__name__}")
        return
    named = (
        {} if header or not text else {"header": False, "user": 0, "item": 2, "time": 3 if frame.shape[1] > 3 else ""}
    )
    try:
        data = read(source, **named)
    except UserError as error:
        event(f"refused: {kind}")
        one_line = "\n" not in str(error)
        assert one_line
        return
    event(f"equal: {kind}")
    users, items = (as_written(frame[name], text) for name in ("user_id", "item_id"))
    times = [0] * len(frame)
    if "timestamp" in frame:
        dates = pd.to_datetime(frame["timestamp"]) if frame["timestamp"].dtype.kind not in "if" else None
        times = (frame["timestamp"] if dates is None else dates.astype("datetime64[us]").astype("int64")).tolist()
        assert data.times is not None
    expected: dict[tuple[str, str], Any] = {}
    for user, item, time in zip(users, items, times, strict=True):
        expected[user, item] = max(time, expected.get((user, item), time))
    got = zip(data.user_ids[data.users], data.item_ids[data.items], strict=True)
    found = data.times.tolist() if "timestamp" in frame else [0] * len(data)  # type: ignore[union-attr]
    came = {(str(user), str(item)): time for (user, item), time in zip(got, found, strict=True)}
    # pandas writes floats to JSON with 15 digits, after the point where they are small
    assert came == (pytest.approx(expected, rel=1e-13, abs=1e-14) if kind.startswith("jsonl") else expected)
    assert data.rows == len(frame)
