"""The options of [data]: which file, and how it is read and split."""

from __future__ import annotations

from dataclasses import dataclass

from bidistill.options import option


@dataclass(frozen=True)
class DataConfig:
    path: str | None = option(
        None,
        "file of interactions: .csv .tsv .txt .inter .dat .data .jsonl .json .parquet or .npz, also one already split",
    )
    user: str | None = option(None, "column of the user id (a name, or a number where there is no header)")
    item: str | None = option(None, "column of the item id")
    rating: str | None = option(None, "column of the rating, used with min_rating only")
    time: str | None = option(None, "column of the time, needed by the split leave_last")
    min_rating: float | None = option(None, "keep the interactions rated at least this; unset: keep all")
    header: bool | None = option(None, "whether the first line names the columns; unset: find out")
    sep: str | None = option(None, "what separates columns; unset: from the file's ending")
    quote: str = option(
        "auto",
        'what encloses fields of text: a character; none: quotation marks are text; auto: " in .csv, none in .tsv .txt .inter'
        " .dat .data",
    )
    format: str = option(
        "auto",
        "format of a text file: table; adjacency: each line is a user and the user's items; auto: found out",
        choices=("auto", "table", "adjacency"),
    )
    split: str = option(
        "leave_last",
        "what is held out: each user's last two by time, two at random, or shares of them (ratio)",
        choices=("leave_last", "leave_one", "ratio"),
    )
    val: float | None = option(
        None, "how much of each user validates: a number (unset: 1), or with ratio a share (unset: 0.1)", least=0
    )
    test: float | None = option(None, "how much of each user is the test, said likewise", least=0)
    split_seed: int = option(0, "seed of what is random in a split: ties of equal times too", least=0)
    min_per_user: int | None = option(None, "users with fewer interactions are trained on but not evaluated", least=1)
    train_path: str | None = option(None, "file of training interactions, if already split (instead of path)")
    val_path: str | None = option(None, "file of validation interactions, if already split")
    test_path: str | None = option(None, "file of test interactions, if already split")
    drop_seen_pairs: bool = option(
        False, "already split: drop and count held-out rows whose pair is in an earlier part"
    )
    drop_cold_users: bool = option(False, "already split: drop and count held-out rows of users without a training row")
