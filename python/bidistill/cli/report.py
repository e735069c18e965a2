"""bidistill report: write report.html of a finished run anew."""

from __future__ import annotations

import argparse
from typing import Any

from bidistill.cli.parser import add_command
from bidistill.report import write_report

ABOUT = """Write RUN/report.html again: results with the control (if one was trained), learning curves, and where the student
beats the teacher. One file that needs nothing else, for desktop, phone, light and dark."""
EXAMPLES = "  bidistill report runs/ml"


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(subparsers, "report", run, "write report.html of a finished run again", ABOUT, EXAMPLES)
    parser.add_argument("run_folder", metavar="RUN", help="folder of a finished run")


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print its path."""
    print(write_report(arguments.run_folder))
