"""Reasons for failed rows and items, one line each."""

import sys
import traceback

from dreampose.errors import InputError

MAX_LENGTH = 400
"""Characters of a reason."""


def reason_of(error: BaseException) -> str:
    """Why a row or an item failed, on one line: the sentence of an `InputError`, else its type too.

    Whatever is not an `InputError` is a fault of the program or of the machine: its trace goes to
    stderr, and the other rows go on.
    """
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {text[:MAX_LENGTH]}".removesuffix(": ")
