"""Command line: `python -m dreampose COMMAND`.

Only the module of the given command is imported, so that `--help` and typing errors are fast.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from dreampose import __version__
from dreampose.options.parser import CommandParser, run_command

COMMANDS = {
    "animate": ("dreampose.cli.animate", "render a video from a photo and a motion"),
    "pose": ("dreampose.cli.pose", "extract a motion file from a video"),
    "catwalk": ("dreampose.cli.catwalk", "render the synthetic fashion data set"),
    "import": ("dreampose.cli.import_weights", "convert published weights to a model folder"),
    "export": ("dreampose.cli.export", "convert a model or subject to diffusers or LoRA files"),
    "info": ("dreampose.cli.info", "describe a model or subject folder"),
    "verify": ("dreampose.cli.verify", "check whether a video is marked as generated"),
}
"""Module and summary of each command."""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Parser of all commands; only `command` gets its arguments."""
    parser = CommandParser(
        prog="dreampose",
        description="Pose-driven fashion video: renders a person in a photo with a given motion.",
        epilog="`dreampose COMMAND --help` describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"dreampose {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0, or 2 for invalid input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser(command)
    values = parser.parse_args(arguments)
    return run_command("dreampose", lambda: values.run(values))


if __name__ == "__main__":
    sys.exit(main())
