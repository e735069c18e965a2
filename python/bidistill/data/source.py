"""What every kind of source offers: names of columns, and the columns when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bidistill.data.ids import Suspect


@dataclass(frozen=True)
class Loaded:
    """Columns, how many rows the source has by its own count, what their ids may be instead, and notes about them."""

    columns: list[pa.ChunkedArray]
    rows: int
    suspects: Sequence[Suspect] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """Named columns, read when asked for. `where` names the source in messages; `text`: all columns are strings.

    format, details, notes: see Reading. time: the place of a column without a name that looks like times, or None.
    """

    where: str
    names: list[str]
    header: bool
    text: bool
    load: Callable[[Sequence[int]], Loaded]
    format: str
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    time: int | None = None
