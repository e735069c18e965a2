"""Which column is the user, the item, the rating, the time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bidistill.errors import UserError

Column = str | int | None

# Names recognised when none is given, best first, as `plain` writes them.
KNOWN = {
    "user": ("user", "userid", "uid", "users", "visitorid", "customerid", "reviewerid"),
    "item": (
        "item",
        "itemid",
        "iid",
        "items",
        "movieid",
        "productid",
        "parentasin",
        "asin",
        "businessid",
        "songid",
        "bookid",
        "artistid",
        "trackid",
    ),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "time": ("time", "timestamp", "times", "ts", "datetime", "date", "unixreviewtime"),
}


def plain(name: str) -> str:
    """A column name without case, punctuation and RecBole's `:type`: "User_ID:token" -> "userid"."""
    return re.sub(r"[^a-z0-9]", "", name.split(":")[0].lower())


def number_of(column: Column) -> int | None:
    """The number if the column is given by number (0, or "0" from a command line), else None."""
    if isinstance(column, int):
        return column
    return int(column) if column is not None and column.isdecimal() else None


def find(where: str, names: Sequence[str], header: bool, role: str, column: Column, needed: bool) -> int | None:
    """The place (from 0) of the column that plays `role` ("user", "item", "rating", "time").

    where: the file, for messages. names: its columns; without a header they are "0", "1", ... and the user is taken to
    be column 0 and the item column 1. column: its name or number as the caller gave it; None: recognised by name.
    Returns None for a column that is neither given nor recognised nor needed.
    """
    if column is not None:
        return _given(where, names, header, role, column)
    if not header:
        place = {"user": 0, "item": 1}.get(role)
        if place is not None and place < len(names):
            return place
    else:
        plains = [plain(name) for name in names]
        for known in KNOWN[role]:
            if known in plains:
                return plains.index(known)
    if not needed:
        return None
    found = f"the columns are {listing(names)}" if header else f"it has no header and {len(names)} column(s)"
    raise UserError(f"{where}: no column recognised as the {role}: {found}; say which it is with the option {role}")


def _given(where: str, names: Sequence[str], header: bool, role: str, column: str | int) -> int:
    before_colon = [name.split(":")[0] for name in names]
    for candidates in (names, before_colon):
        if header and column in candidates:
            return list(candidates).index(str(column))
    place = number_of(column)
    if place is None and not header:
        raise UserError(f"{where}: has no header, so {role}={column!r} names nothing; give the column's number, from 0")
    if place is None:
        raise UserError(f"{where}: {role}={column!r} is no column of it; the columns are {listing(names)}")
    if not 0 <= place < len(names):
        raise UserError(f"{where}: {role}={place} is no column of it; it has {len(names)} column(s), numbered from 0")
    return place


def listing(names: Sequence[str]) -> str:
    """The names for a message, the first twenty of them."""
    return ", ".join(repr(name) for name in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
