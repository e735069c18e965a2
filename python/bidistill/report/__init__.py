"""What a run gave: the table of results, and report.html with curves and pictures."""

from bidistill.report.comparison import CONTROL, DISTILLED, SEPARATE, Results, results, table
from bidistill.report.finished import FinishedRun, open_run
from bidistill.report.page import write_report

__all__ = ["CONTROL", "DISTILLED", "SEPARATE", "FinishedRun", "Results", "open_run", "results", "table", "write_report"]
