"""`python -m dreampose.catwalk`: the data set's own command line. Knows nothing of frames."""

import argparse
import sys

from dreampose.catwalk import cli
from dreampose.errors import InputError


def main() -> int:
    """Parses the flags and runs; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m dreampose.catwalk", description=cli.__doc__)
    cli.add_arguments(parser)
    try:
        return cli.run(parser.parse_args())
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
