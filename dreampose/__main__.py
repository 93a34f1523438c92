"""The one-machine command line: `python -m dreampose COMMAND`. Knows only which module runs what.

A command's module is imported when that command is asked for, so that help and a typing mistake
answer at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from dreampose import __version__
from dreampose.options import parser as door

COMMANDS = {
    "animate": ("dreampose.cli.animate", "photo + video (or motion file) to MP4"),
    "pose": ("dreampose.cli.pose", "video to motion file, with a preview of what was seen"),
    "catwalk": ("dreampose.cli.catwalk", "render the synthetic fashion data set"),
    "import": (
        "dreampose.cli.import_weights",
        "published weights, or a Stable Diffusion base, to model",
    ),
    "export": ("dreampose.cli.export", "model or subject to diffusers folder, LoRA files, hub"),
    "info": ("dreampose.cli.info", "what a model folder holds"),
    "verify": ("dreampose.cli.verify", "whether a video says that it is generated"),
}
"""Module and summary of every command."""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of `command` alone filled in."""
    parser = door.Parser(
        prog="dreampose",
        description="One photo of a person and a motion in, a video of that person in that "
        "motion out.",
        epilog="`dreampose COMMAND --help` explains a command.",
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
    """Runs one command line and returns its exit code (0, or 2 for input that cannot be used)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser(command)
    values = parser.parse_args(arguments)
    return door.attend("dreampose", lambda: values.run(values))


if __name__ == "__main__":
    sys.exit(main())
