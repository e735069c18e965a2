"""What the library tells: records of the logger "bidistill", and a handler that shows them in a terminal.

The library prints nothing by itself. `bidistill` on the command line shows its records; a program of your own does so by
`log_to_terminal()`, or by any other handler: `logging.getLogger("bidistill").addHandler(...)`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger("bidistill")


class Terminal(logging.Handler):
    """Plain lines on stdout; warnings and errors on stderr, each in one line that names the program. Bars stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        try:
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                tqdm.write(f"bidistill: {record.levelname.lower()}: {' '.join(text.split())}", file=sys.stderr)
            else:
                tqdm.write(text, file=sys.stdout)
        except BrokenPipeError:
            raise  # who reads the output is gone: the command ends
        except Exception:
            self.handleError(record)


def log_to_terminal(level: int = logging.INFO) -> None:
    """Show what the library tells, as its command line does: lines of progress on stdout, warnings on stderr.

    Args:
        level: the least level that is shown; logging.WARNING leaves out the progress.
    """
    if not any(isinstance(each, Terminal) for each in log.handlers):
        log.addHandler(Terminal())
    log.setLevel(level)


@contextmanager
def shown_in_terminal() -> Iterator[None]:
    """`log_to_terminal` inside; afterwards the logger is as it was."""
    handlers, level = log.handlers[:], log.level
    log_to_terminal()
    try:
        yield
    finally:
        log.handlers[:], log.level = handlers, level
