"""argparse with one-sentence errors, and flags made from the options of a Config."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Container, Sequence
from typing import Any, NoReturn, TextIO

from bidistill.config import options
from bidistill.data import Split
from bidistill.errors import UserError

METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "K,K", bool: "{true,false}", dict: "NAME=VALUE,..."}


class Once(argparse.Action):
    """Store a value; the same flag a second time is an error, since one of the two would be lost."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = vars(namespace).setdefault("given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} is given twice; give it once")
        if option_string is not None:
            given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing usage; texts keep their line breaks; no abbreviated flags.

    A flag of one value may be given once; those of a list take all that they are given (action "extend").
    """

    def __init__(self, **settings: Any) -> None:
        self.lists_of_ids: tuple[str, ...] = ()
        super().__init__(
            **settings,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
        )
        self.register("action", None, Once)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """What argparse does, for lists of ids that may begin with a minus."""
        return super().parse_known_args(None if args is None else self._joined(args), namespace)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The words, in which ids behind a flag of `lists_of_ids` are written --flag=ID, up to the next flag.

        A word of two minuses is a flag, also an unknown one; one of a single minus only if it is a flag of this command.
        """
        known = self.flags()

        def is_flag(word: str) -> bool:
            return word.startswith("--") or (word[:2] in known and (len(word) == 2 or word[2:].isdecimal()))

        found: list[str] = []
        ids_of = ""
        for word, following in zip(words, [*words, "--"][1:], strict=True):
            if not is_flag(word):
                found.append(f"{ids_of}={word}" if ids_of else word)
                continue
            ids_of = word if word in self.lists_of_ids else ""
            if not ids_of or is_flag(following):
                found.append(word)
        return found

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse everything. An unknown flag is an error that names the closest one that exists."""
        found: argparse.Namespace
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(flag, found.parser.flags(), n=1)
            advice = f"did you mean {close[0]}?" if close else f"see {found.parser.prog} --help"
            raise UserError(f"{found.parser.prog} does not know {unknown[0]!r}: {advice}")
        return found

    def flags(self) -> list[str]:
        """Every flag of this command."""
        return [flag for action in self._actions for flag in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a wrong command line."""
        if message.endswith(("expected one argument", "expected at least one argument")):
            message += " (write --flag=VALUE for a value that begins with -)"
        raise UserError(f"{message}; see {self.prog} --help")


def add_command(
    subparsers: Any, name: str, run: Any, summary: str, about: str, examples: str, usage: str = ""
) -> Parser:
    """A subcommand with its help; `run` gets the parsed arguments."""
    parser: Parser = subparsers.add_parser(
        name,
        usage=f"bidistill {name} {usage}" if usage else None,
        help=summary,
        description=about,
        epilog=f"examples:\n{examples}",
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_mapped(parser: Parser) -> None:
    """The flag of commands that read models."""
    parser.add_argument(
        "--mapped", action="store_true", help="read the models' tables from disk, slice by slice, not into memory"
    )


def add_options(parser: Parser, names: Container[str] | None = None) -> None:
    """A flag for every option of a Config (or for these "section.option"s), in a group for each section."""
    groups: dict[str, Any] = {}
    for each in options():
        if names is not None and each.name not in names:
            continue
        if each.section not in groups:
            groups[each.section] = parser.add_argument_group(f"[{each.section}] {each.section_help}")
        text = each.help.replace("%", "%%") + ("" if each.default is None else f" (default: {_plain(each.default)})")
        more = ["..."] if hasattr(each.choices, "also") else []  # of a ClassRegistry
        allowed = [*each.choices, *each.words, *more]
        metavar = "{" + ",".join(allowed) + "}" if len(each.choices) else METAVARS[each.type]
        groups[each.section].add_argument(each.flag, dest=each.name, metavar=metavar, help=text)


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """{"section.option": value} of the flags that were given. Raises UserError for a wrong value."""
    given = [(each, getattr(arguments, each.name, None)) for each in options()]
    return {each.name: each.parse(text) for each, text in given if text is not None}


def with_flags(message: str, prog: str) -> str:
    """A message whose arguments in backticks, which are those of a Python function, are named by the command's flags."""
    if prog.endswith(" generate"):
        flags = {f"n_{name}": f"--{name}" for name in ("users", "items", "interactions")}
        flags |= {name: f"--{name}" for name in ("dim", "seed", "zipf", "tastes")}
    else:
        flags = {each.field: each.flag for each in options() if each.section == "data"}
        flags |= {"seed": flags["split_seed"], "method": flags["split"]}
    return re.sub("`([a-z_]+)`", lambda found: flags.get(found[1], found[0]), message)


def tell(split: Split, file: TextIO) -> None:
    """Print what happened to the rows on the way into a split, a line each."""
    for sentence in [] if split.origin is None else split.origin.sentences():
        print(f"  {with_flags(sentence, '')}", file=file)


def count(text: str) -> int:
    """The type of a flag that takes a whole number, also as 1e6."""
    try:
        return int(text)
    except ValueError:
        number = float(text) if re.fullmatch(r"[0-9.]+e[0-9]+", text) else 0.5
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(number)


def _plain(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, dict):
        return ",".join(f"{name}={_plain(each)}" for name, each in value.items()) or "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
