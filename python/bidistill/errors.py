"""The one error type for mistakes that a user can make and mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the user's input: a file, a column, an option.

    The message is one sentence that names the file, column or option, says what was found and what to do about it.
    The command line prints it as `bidistill: error: <sentence>` and exits with status 2, without a traceback.
    """


@contextmanager
def enough_memory() -> Iterator[None]:
    """Inside, an allocation that fails is a UserError: of Python, numpy, torch or a GPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if not isinstance(error, MemoryError) and not any(each in words for each in ALLOCATORS):
            raise
        raise UserError(
            "there is not enough memory for this: give smaller data, lower teacher.dim, student.dim, distill.pool,"
            " train.batch_size, train.negatives, distill.samples or eval.batch_size, or see what `bidistill plan` says"
        ) from error


# What torch's allocators say, which raise plain RuntimeErrors on CPUs.
ALLOCATORS = ("out of memory", "allocate memory", "not enough memory", "storage size calculation overflowed")
