"""What a run gave: the table of results, and report.html with curves and pictures."""

from bidistill.report.comparison import CONTROL, DISTILLED, SEPARATE, Results, results, table
from bidistill.report.page import write_report
from bidistill.training.finished import FinishedRun, open_run

__all__ = ["CONTROL", "DISTILLED", "SEPARATE", "FinishedRun", "Results", "open_run", "results", "table", "write_report"]
