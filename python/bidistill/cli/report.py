"""bidistill report: write report.html of a finished run, or of an experiment, anew."""

from __future__ import annotations

import argparse
from typing import Any

from bidistill.cli.parser import add_command
from bidistill.report import write_report
from bidistill.report.experiment import is_experiment, write_experiment_report
from bidistill.report.experiment_tables import brief

ABOUT = """Write RUN/report.html again: results with the control (if one was trained), learning curves, and where the student
beats the teacher. One file that needs nothing else, for desktop, phone, light and dark.

Of the folder of an experiment: report.html, results.md and results.json with the cells that are finished, means and spread over
seeds, gains over the control and their p values; the student's table is printed too."""
EXAMPLES = "  bidistill report runs/ml\n  bidistill report runs/study       an experiment, also while it is going on"


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers, "report", run, "write the report of a finished run or of an experiment again", ABOUT, EXAMPLES
    )
    parser.add_argument("run_folder", metavar="FOLDER", help="of a finished run, or of an experiment")


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print its path."""
    if is_experiment(arguments.run_folder):
        show_experiment(arguments.run_folder)
    else:
        print(write_report(arguments.run_folder))


def show_experiment(folder: str) -> None:
    """Write the report of an experiment, and print the students' tables and its path."""
    path, found = write_experiment_report(folder)
    for each in brief(found):
        print(f"\n{each.title}\n{each.text()}")
    print("".join(f"\nnote: {note}" for note in found.notes))
    print(f"\nreport: {path}, with results.md and results.json beside it")
