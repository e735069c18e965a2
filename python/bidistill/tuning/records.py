"""What the folder of a search says about it."""

from __future__ import annotations

from typing import Any

from bidistill.files.records import Record


class Search(Record):
    """tune.json: what a search is for, so that only the same search goes on there.

    model: that is tuned. distill: whether its distillation is. space: see `space.space_values`. config: `Config.values()`.
    split: the fingerprint of the data without the test.
    """

    FORMAT = "bidistill search 1"
    REMEDY = "restore the file from a copy, or choose another folder for the search"
    model: str
    distill: bool
    prune: str
    space: dict[str, Any]
    config: dict[str, Any]
    split: str
    versions: dict[str, str]
