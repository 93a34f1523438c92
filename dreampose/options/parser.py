"""How a command line ends: a sentence for a user's mistake, a line per warning. Knows no command.

Used by `python -m dreampose` and by every script in `jobs/`.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn, TextIO

from dreampose.errors import InputError

BAD_INPUT = 2
"""Exit code where the user's input cannot be used; argparse has the same."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell reports it."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, without the usage text above it."""

    def error(self, message: str) -> NoReturn:
        """Prints `PROGRAM: error: MESSAGE` and leaves with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def attend(program: str, command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code.

    `InputError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130; warnings become
    one line each. Every other exception passes through with its trace: it is a fault of ours.
    """

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del category, filename, lineno, line
        print(f"{program}: warning: {one_line(message)}", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            command()
        except InputError as error:
            print(f"{program}: error: {one_line(error)}", file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr)
            return INTERRUPTED
    return 0


def one_line(message: object) -> str:
    """The message with every run of white space as one space."""
    return " ".join(str(message).split())
