"""How a source was read: what was taken for what, and how many rows it had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """What a reader took a source for.

    source: the file, or the kind of table. format: "text", "adjacency list", "JSON lines", "Parquet", ...
    details: what that format leaves open, such as separator, quote and header. columns: {role: name of the column}.
    ignored: columns that were not read. rows: rows in the source. notes: sentences about what was guessed.
    """

    source: str
    format: str
    details: Mapping[str, Any]
    columns: Mapping[str, str]
    ignored: tuple[str, ...]
    rows: int
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {
            "source": self.source,
            "format": self.format,
            **self.details,
            "columns": dict(self.columns),
            "ignored_columns": list(self.ignored),
            "notes": list(self.notes),
        }

    def sentence(self) -> str:
        """All of it in one line."""
        details = ", ".join(f"{name} {_plain(value)}" for name, value in self.details.items())
        columns = ", ".join(f"{role}: {name}" for role, name in self.columns.items())
        ignored = f"; not read: {', '.join(self.ignored[:8])}" if self.ignored else ""
        more = f" and {len(self.ignored) - 8} more" if len(self.ignored) > 8 else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"read as {self.format}{f' ({details})' if details else ''} with {columns}{ignored}{more}{notes}"


def _plain(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else repr(value)
