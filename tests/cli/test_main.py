"""Command line: help, one-line errors, exit codes."""

import subprocess
import sys
import warnings

import pytest

from dreampose import __main__ as cli
from dreampose.errors import InputError, SubjectMismatchWarning
from dreampose.options import parser


def test_module_prints_help_without_loading_torch() -> None:
    code = (
        "import sys\n"
        "from dreampose.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "assert 'torch' not in sys.modules, 'help must not load torch'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for command in cli.COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main([command, "--help"])
    assert leave.value.code == 0
    assert f"usage: dreampose {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "dreampose: error: the following arguments are required: COMMAND"),
        (["dance"], "dreampose: error: argument COMMAND: invalid choice: 'dance'"),
        (["animate", "--seed", "x"], "dreampose animate: error: argument --seed: invalid int"),
    ],
)
def test_invalid_arguments_print_one_line_and_exit_with_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert leave.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith(expected)
    assert captured.err.count("\n") == 1


def test_input_error_prints_one_line_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise InputError("photo must be a picture,\n  got 'x'")

    assert parser.run_command("dreampose", command) == 2
    assert capsys.readouterr().err == "dreampose: error: photo must be a picture, got 'x'\n"


def test_warning_prints_one_line_and_returns_0(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        warnings.warn("weights belong to\nanother person", SubjectMismatchWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert parser.run_command("dreampose", command) == 0
    assert capsys.readouterr().err == ("dreampose: warning: weights belong to another person\n")


def test_other_exceptions_propagate() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parser.run_command("dreampose", command)
