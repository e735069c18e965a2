"""bidistill recommend: the best unseen items for given users, under their original ids."""

from __future__ import annotations

import argparse
import csv
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
from bidistill.data.files import replacing
from bidistill.errors import UserError
from bidistill.evaluate import MAPPED_USERS, PAIRS
from bidistill.models import Recommender
from bidistill.report import open_run

COLUMNS = ("user_id", "rank", "item_id", "score")
ABOUT = """Print the K items that a finished run's model ranks best for the users you name. Users and items go by the ids of your
data. Every item that the data already shows for a user (also what was held out) is left out. One row an item: user_id,
rank (1 = best), item_id, score; a user with fewer than K unseen items gets fewer rows."""
EXAMPLES = """  bidistill recommend runs/ml --users 196 22 -k 5
  bidistill recommend runs/ml --users-file users.txt --model teacher --out top.parquet"""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(subparsers, "recommend", run, "the best unseen items for given users", ABOUT, EXAMPLES)
    parser.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    users = parser.add_mutually_exclusive_group(required=True)
    users.add_argument("--users", nargs="+", metavar="ID", help="ids of users")
    users.add_argument("--users-file", metavar="FILE", help="text file with one user id a line")
    users.add_argument("--all-users", action="store_true", help="every user of the data")
    parser.add_argument(
        "--model", choices=("teacher", "student"), default="student", help="which model ranks (default: student)"
    )
    parser.add_argument("-k", default=10, type=int, metavar="N", help="items for each user (default: 10)")
    add_mapped(parser)
    parser.add_argument("--out", metavar="FILE", help="write a .csv or .parquet file instead of printing CSV")


def run(arguments: argparse.Namespace) -> None:
    """Recommend for the users, in the order given."""
    if arguments.out is not None and Path(arguments.out).suffix not in (".csv", ".parquet"):
        raise UserError(f"--out must end in .csv or .parquet, found {arguments.out!r}")
    ids = arguments.users if arguments.users_file is None else _read_ids(arguments.users_file)
    finished = open_run(arguments.run_folder)
    if not 1 <= arguments.k <= finished.split.n_items:
        raise UserError(f"-k must lie between 1 and the catalog's {finished.split.n_items} items, found {arguments.k}")
    users = torch.arange(finished.split.n_users) if ids is None else _numbers(ids, finished.split.user_ids)
    model = finished.model(arguments.model, mapped=arguments.mapped)
    batch = max(finished.config.eval.batch, min(MAPPED_USERS, PAIRS // arguments.k) if arguments.mapped else 0)
    tables = best_items(model, finished.split, users, arguments.k, batch=batch)
    if arguments.out is None:
        _write_csv(sys.stdout, tables)
        return
    with replacing(arguments.out) as temporary:
        if Path(arguments.out).suffix == ".parquet":
            pq.write_table(pa.concat_tables(tables), temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                _write_csv(file, tables)


def best_items(
    model: Recommender, split: Split, users: torch.Tensor, k: int, *, batch: int = 256
) -> Iterator[pa.Table]:
    """Tables of COLUMNS with original ids, for users [n] int64 (internal numbers), `batch` users each."""
    parts = [split.part(name) for name in ("train", "val", "test")]
    known_users, known_items = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    seen = Seen.from_pairs(known_users, known_items, split.n_users)
    for some in users.split(batch):
        found = topk(model.factors(some), k, seen.rows(some))
        row, column = (each.numpy() for each in torch.nonzero(found.ids >= 0, as_tuple=True))
        values = (split.user_ids[some.numpy()[row]], column + 1, split.item_ids[found.ids.numpy()[row, column]])
        yield pa.table([pa.array(v) for v in (*values, found.scores.numpy()[row, column])], names=list(COLUMNS))


def _write_csv(file: Any, tables: Iterator[pa.Table]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        for user, place, item, score in zip(*(column.to_pylist() for column in table.columns), strict=True):
            writer.writerow((user, place, item, f"{score:.6g}"))


def _read_ids(path: str) -> list[str]:
    try:
        ids = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the user ids of {path}: {error}; give a text file with one id a line") from error
    if not ids:
        raise UserError(f"{path} holds no user id: give one id a line")
    return ids


def _numbers(ids: list[str], user_ids: np.ndarray) -> torch.Tensor:
    """Internal numbers of original ids, each once. Raises UserError that names the ids that the run does not know."""
    known = {str(user): number for number, user in enumerate(user_ids.tolist())}
    wanted = list(dict.fromkeys(ids))
    unknown = [user for user in wanted if user not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(
            f"users that are not in the data of the run: {', '.join(unknown[:5])}{more};"
            f" give ids as they stand there, such as {user_ids[0]}"
        )
    return torch.tensor([known[user] for user in wanted])
