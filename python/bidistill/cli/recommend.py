"""bidistill recommend: the best unseen items for given users, under their original ids."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bdkernels import Seen, topk
from bidistill.cli.parser import add_command, add_mapped
from bidistill.data import Split
from bidistill.data.splits import PARTS
from bidistill.errors import UserError
from bidistill.evaluation.ranks import MAPPED_USERS, PAIRS
from bidistill.files.access import replacing
from bidistill.models import Recommender
from bidistill.models.scoring import scorer_of
from bidistill.report import open_run

COLUMNS = ("user_id", "rank", "item_id", "score")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what makes a spreadsheet take a cell for a formula
LISTED = 100  # unknown users that a message names

ABOUT = """Print the K items that a finished run's model ranks best for the users you name. Users and items go by the ids of your
data. Every item that the data already shows for a user (also what was held out) is left out. One row an item: user_id,
rank (1 = best), item_id, score; a user with fewer than K unseen items gets fewer rows, and stderr says for how many.

Exit status: 0; 3 where users are not in the data of the run and were left out (--unknown skip, the default), while the others
were written; 2 for a mistake, with nothing written. Stderr counts and lists the unknown users."""
EXAMPLES = """  bidistill recommend runs/ml --users 196 22 -k 5
  bidistill recommend runs/ml --users=-a7 --users=--b     ids that look like flags
  bidistill recommend runs/ml --users-file users.txt --model teacher --out top.parquet
  bidistill recommend runs/ml --users-file users.txt --unknown popular --escape-formulas --out top.csv"""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(subparsers, "recommend", run, "the best unseen items for given users", ABOUT, EXAMPLES)
    parser.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    users = parser.add_mutually_exclusive_group(required=True)
    users.add_argument("--users", nargs="+", action="extend", metavar="ID", help="ids of users")
    parser.lists_of_ids = ("--users",)
    users.add_argument("--users-file", metavar="FILE", help="text file (UTF-8) with one user id a line")
    users.add_argument("--all-users", action="store_true", help="every user of the data")
    parser.add_argument(
        "--unknown",
        choices=("skip", "popular", "error"),
        default="skip",
        help="users that are not in the data: skip = leave them out, with exit status 3; popular = the K most popular items,"
        " with an empty score; error = write nothing (default: skip)",
    )
    parser.add_argument(
        "--model", choices=("teacher", "student"), default="student", help="which model ranks (default: student)"
    )
    parser.add_argument("-k", default=10, type=int, metavar="N", help="items for each user (default: 10)")
    add_mapped(parser)
    parser.add_argument("--out", metavar="FILE", help="write a .csv or .parquet file instead of printing CSV")
    parser.add_argument(
        "--escape-formulas",
        action="store_true",
        help="in CSV: put ' before ids that a spreadsheet takes for formulas (those that begin with = + - @)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Recommend for the users, in the order given. Returns the exit status."""
    parquet = arguments.out is not None and Path(arguments.out).suffix == ".parquet"
    if arguments.out is not None and Path(arguments.out).suffix not in (".csv", ".parquet"):
        raise UserError(f"--out must end in .csv or .parquet, found {arguments.out!r}")
    if parquet and arguments.escape_formulas:
        raise UserError("--escape-formulas is for CSV: leave it out, since a .parquet file keeps texts as texts")
    ids = arguments.users if arguments.users_file is None else _read_ids(arguments.users_file)
    finished = open_run(arguments.run_folder)
    split = finished.split
    if not 1 <= arguments.k <= split.n_items:
        raise UserError(f"-k must lie between 1 and the catalog's {split.n_items} items, found {arguments.k}")
    users, unknown = (torch.arange(split.n_users), []) if ids is None else _numbers(ids, split.user_ids)
    if unknown:
        _tell_unknown(unknown, len(users), arguments.unknown, split)
        if arguments.unknown == "skip":
            users = users[users >= 0]
    model = finished.model(arguments.model, mapped=arguments.mapped)
    batch = max(finished.config.eval.batch_size, min(MAPPED_USERS, PAIRS // arguments.k) if arguments.mapped else 0)
    tables = _tables(model, split, users, unknown, arguments.k, batch)
    if arguments.out is None:
        _write_csv(sys.stdout, tables, arguments.escape_formulas)
    else:
        with replacing(arguments.out) as temporary:
            if parquet:
                pq.write_table(pa.concat_tables(tables), temporary)
            else:
                with temporary.open("w", newline="", encoding="utf-8") as file:
                    _write_csv(file, tables, arguments.escape_formulas)
    _tell_short(split, users, arguments.k)
    return 3 if unknown and arguments.unknown == "skip" else 0


def _tables(
    model: Recommender, split: Split, users: torch.Tensor, unknown: list[str], k: int, batch: int
) -> Iterator[pa.Table]:
    """Tables of COLUMNS for users [n] in their order; -1 is the next unknown one, who gets the most popular items.

    With an unknown user the column of users is text.
    """
    if not bool((users < 0).any()):
        yield from best_items(model, split, users, k, batch=batch)
        return
    counts = np.bincount(np.concatenate([split.part(name)[1] for name in PARTS]), minlength=split.n_items)
    popular = split.item_ids[np.argsort(-counts, kind="stable")[:k]]
    rank = np.arange(1, len(popular) + 1)
    left = iter(unknown)
    change = np.flatnonzero(np.diff((users < 0).numpy())) + 1
    for some in users.tensor_split(change.tolist()):
        if some[0] >= 0:
            for table in best_items(model, split, some, k, batch=batch):
                yield table.set_column(0, COLUMNS[0], table.column(0).cast(pa.string()))
            continue
        for _ in range(len(some)):
            columns = (pa.array([next(left)] * len(popular)), pa.array(rank), pa.array(popular))
            yield pa.table([*columns, pa.nulls(len(popular), pa.float32())], names=list(COLUMNS))


def best_items(
    model: Recommender, split: Split, users: torch.Tensor, k: int, *, batch: int = 256
) -> Iterator[pa.Table]:
    """Tables of COLUMNS with original ids, for users [n] int64 (internal numbers), `batch` users each."""
    parts = [split.part(name) for name in PARTS]
    known_users, known_items = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    seen = Seen.from_pairs(known_users, known_items, split.n_users)
    for some in users.split(batch):
        found = topk(scorer_of(model, some, split.n_items), k, seen.rows(some))
        row, column = (each.numpy() for each in torch.nonzero(found.ids >= 0, as_tuple=True))
        values = (split.user_ids[some.numpy()[row]], column + 1, split.item_ids[found.ids.numpy()[row, column]])
        yield pa.table([pa.array(v) for v in (*values, found.scores.numpy()[row, column])], names=list(COLUMNS))


def _write_csv(file: Any, tables: Iterator[pa.Table], escape: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        for user, place, item, score in zip(*(column.to_pylist() for column in table.columns), strict=True):
            ids = [f"'{each}" if escape and str(each).startswith(FORMULA) else each for each in (user, item)]
            writer.writerow((ids[0], place, ids[1], "" if score is None else f"{score:.6g}"))


def _read_ids(path: str) -> list[str]:
    try:
        content = Path(path).read_bytes()
        if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
            raise UserError(f"{path} is not UTF-8 text but looks like UTF-16; save it as UTF-8")
        lines = re.split("\r\n|\n|\r", content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the user ids of {path}: {error}; give a text file with one id a line") from error
    if not (ids := [line.strip() for line in lines if line.strip()]):
        raise UserError(f"{path} holds no user id: give one id a line")
    return ids


def _numbers(ids: list[str], user_ids: np.ndarray) -> tuple[torch.Tensor, list[str]]:
    """Internal numbers of original ids, each once, -1 where the run does not know one; and the ids that it does not know."""
    known = {str(user): number for number, user in enumerate(user_ids.tolist())}
    wanted = list(dict.fromkeys(ids))
    if len(wanted) < len(ids):
        print(
            f"bidistill: {len(ids) - len(wanted):,} of {len(ids):,} ids are repeated; each user is listed once",
            file=sys.stderr,
        )
    return torch.tensor([known.get(user, -1) for user in wanted]), [user for user in wanted if user not in known]


def _tell_unknown(unknown: list[str], asked: int, rule: str, split: Split) -> None:
    """Say which users are unknown. Raises UserError where that is a mistake: the rule "error", or nobody is left."""
    named = ", ".join(unknown[:LISTED]) + (f" and {len(unknown) - LISTED:,} more" if len(unknown) > LISTED else "")
    what = f"{len(unknown):,} of {asked:,} users are not in the data of the run: {named}"
    if rule == "error" or (rule == "skip" and len(unknown) == asked):
        raise UserError(f"{what}; give ids as they stand there, such as {split.user_ids[0]}, or use --unknown popular")
    done = "they are left out" if rule == "skip" else "they get the most popular items, with an empty score"
    print(f"bidistill: {what}; {done}", file=sys.stderr)


def _tell_short(split: Split, users: torch.Tensor, k: int) -> None:
    """Say how many users have fewer than k unseen items."""
    met = np.bincount(np.concatenate([split.part(name)[0] for name in PARTS]), minlength=split.n_users)
    short = int((split.n_items - met[users[users >= 0].numpy()] < k).sum())
    if short:
        print(f"bidistill: {short:,} users have fewer than {k:,} unseen items and get fewer rows", file=sys.stderr)
