#!/usr/bin/env python
"""Data of the catwalk benchmark v1, verified by checksums.

Writes OUT/train (96 people), OUT/val (12) and OUT/test (24), each with a walk and a turn of 48
frames at 160x128 per person and a manifest.csv. Videos and ground truth are compared with the
checksums in `catwalk-v1.sha256`. Existing clips are kept. No person, pattern or colour pair is in
two splits.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreampose import synthetic
from dreampose.errors import InputError
from dreampose.options import arguments
from dreampose.options.parser import CommandParser, run_command
from dreampose.options.progress import ProgressBar

CHECKSUMS = Path(__file__).with_name("catwalk-v1.sha256")
NUM_FRAMES, HEIGHT, WIDTH = 48, 160, 128


@dataclass(frozen=True, kw_only=True)
class Split:
    """People of a split: the first `identities` of a seed."""

    seed: int
    identities: int


SPLITS = {
    "train": Split(seed=1, identities=96),
    "val": Split(seed=2, identities=12),
    "test": Split(seed=3, identities=24),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = CommandParser(
        prog="benchmarks/data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the splits")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=list(SPLITS),
        default=list(SPLITS),
        help="splits to render (default: all)",
    )
    parser.add_argument(
        "--workers", type=arguments.positive, default=2, help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--write-checksums",
        action="store_true",
        help="write the checksums instead of comparing them, for a new version of the benchmark",
    )
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Renders the splits and compares or writes their checksums."""
    lines: list[str] = []
    for name in args.splits:
        generate(args.out / name, name, workers=args.workers)
        lines += checksums(args.out, name)
    if args.write_checksums:
        known = CHECKSUMS.read_text().splitlines() if CHECKSUMS.is_file() else []
        # Keep the checksums of other splits.
        kept = [line for line in known if line.split()[1].split("/")[0] not in args.splits]
        CHECKSUMS.write_text("".join(f"{line}\n" for line in sorted([*kept, *lines], key=_name)))
        print(f"{len(lines)} checksums in {CHECKSUMS.name}")
        return
    compare(lines)
    print(f"{len(lines)} files are those of {CHECKSUMS.name}")


def generate(out: Path, name: str, *, workers: int, identities: int | None = None) -> None:
    """Renders a split, or its first `identities` people, with a progress bar."""
    split = SPLITS[name]
    plan = synthetic.tasks(
        identities=identities or split.identities,
        frames=NUM_FRAMES,
        split=name,
        seed=split.seed,
        height=HEIGHT,
        width=WIDTH,
    )
    progress = synthetic.generate(out, plan, workers=workers)
    with ProgressBar(total=len(plan), desc=name, unit="clip") as bar:
        for done, _ in progress:
            bar.update(done - bar.n)


def checksums(root: Path, name: str) -> list[str]:
    """Checksums of the videos and ground truth of a split, in the format of `sha256sum`."""
    files = sorted(f for f in (root / name).iterdir() if f.suffix in (".mp4", ".npz"))
    return [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {name}/{f.name}" for f in files]


def _name(line: str) -> str:
    return line.split()[1]


def compare(lines: Sequence[str]) -> None:
    """Compares checksums with the recorded ones.

    Raises:
        InputError: a checksum differs.
    """
    known = set(CHECKSUMS.read_text().splitlines())
    other = [line.split()[1] for line in lines if line not in known]
    if other:
        raise InputError(
            f"clips must have the checksums of {CHECKSUMS.name}, got {len(other)} different ones "
            f"of {len(lines)}, such as {other[0]}; install the versions of constraints.txt"
        )


if __name__ == "__main__":
    sys.exit(main())
