"""Argument parser and error reporting of command lines."""

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn, TextIO

from dreampose.errors import InputError

BAD_INPUT = 2
"""Exit code for invalid input, the same as argparse's."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, the same as a shell's."""


class CommandParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Prints `PROGRAM: error: MESSAGE` and exits with code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def run_command(program: str, command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code.

    `InputError` prints one line on stderr and gives exit code 2; Ctrl-C gives exit code 130.
    A warning prints one line. Other exceptions are bugs and propagate.

    Args:
        program: name at the start of each line.
        command: function to run.
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
    """Message with runs of white space replaced by one space."""
    return " ".join(str(message).split())
