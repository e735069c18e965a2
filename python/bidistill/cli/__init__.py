"""The command `bidistill`: one file a subcommand; mistakes end in one sentence, Ctrl-C in a way to go on."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from bdkernels import BackendError
from bdkernels.distributed.catalog import ShardError
from bidistill.cli import data, demo, evaluate, experiment, plan, recommend, report, train, tune
from bidistill.cli.parser import Parser, with_flags
from bidistill.errors import UserError, enough_memory
from bidistill.logs import log, shown_in_terminal
from bidistill.runs.folder import versions

COMMANDS = (demo, train, tune, plan, evaluate, recommend, report, experiment, data)

ABOUT = """Train a large recommender (the teacher) and a small one (the student) that improve each other:
bidirectional distillation for top-K recommendation from clicks, purchases or ratings."""
EXAMPLES = """first steps:
  bidistill demo                                        see it work on MovieLens-100K (a few minutes)
  bidistill data describe ratings.csv                   what is in a file of your own
  bidistill train --data-path ratings.csv --control     train on it; the control shows what distillation adds
  bidistill tune --data-path ratings.csv                better settings of the student, by validation
  bidistill recommend runs/ratings --users 17 42 -k 10  the student's ten best unseen items for two users

`bidistill COMMAND --help` explains a command."""


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="bidistill", description=ABOUT, epilog=EXAMPLES)
    words = ", ".join(f"{name} {version}" for name, version in versions().items())
    parser.add_argument("--version", action="version", version=f"bidistill of {words}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for command in COMMANDS:
        command.add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for a user's mistake, 3 where a part of what was asked is
    left out, 130 for Ctrl-C, 141 for a closed pipe.

    Where another process of the run is lost, this one ends with status 1, so that torchrun can start all of them again.
    """
    with warnings.catch_warnings(), shown_in_terminal():
        warnings.showwarning = _show  # type: ignore[assignment]
        return _main(argv)


def _show(message: Warning | str, *_: Any) -> None:
    """A warning as the errors are shown, without a place in the code."""
    log.warning("%s", message)


def _main(argv: Sequence[str] | None) -> int:
    arguments = None
    try:
        arguments = build_parser().parse_args(argv)
        with enough_memory():
            status: int = arguments.run(arguments) or 0
        sys.stdout.flush()
    except (UserError, BackendError) as error:
        text = with_flags(str(error), arguments.parser.prog if arguments is not None else "")
        print(f"bidistill: error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except ShardError as error:
        print(f"bidistill: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(1)  # a group that lost a process cannot be taken down
    except KeyboardInterrupt as interrupt:
        print(f"bidistill: {str(interrupt) or 'stopped; nothing was saved'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails too
        return 141
    return status
