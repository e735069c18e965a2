"""The one error type for mistakes that a user can make and mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's input: a file, a column, an option.

    The message is one sentence that names the file, column or option, says what was found and what to do about it.
    The command line prints it as `bidistill: error: <sentence>` and exits with status 2, without a traceback.
    """
