"""Reasons for failed rows and items, one line each."""

import sys
import traceback

from dreampose.errors import InputError

MAX_LENGTH = 400
"""Maximum number of characters of a reason."""


def reason_of(error: BaseException) -> str:
    """Reason of a failed row or item in one line: the message, with the type of other errors.

    Errors other than `InputError` are faults of the program or the machine: their traceback goes to
    stderr, and the other rows continue.
    """
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {text[:MAX_LENGTH]}".removesuffix(": ")
