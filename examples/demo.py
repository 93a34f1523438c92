"""The demo: a motion from an MP4, one person finetuned, three videos, one page to look at.

Runs the commands that a user would type and shows them; a second run does only what is missing.
Knows nothing that is not in those commands.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from dreampose import poses
from dreampose.io import video

ROOT = Path(__file__).resolve().parent.parent
CATALOG = "examples/catalog.csv"


def main() -> int:
    """Runs the demo; exit code 0 if every video is as long and as fast as its motion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/catwalk", help="model folder")
    args = parser.parse_args()
    out = Path("out/demo")  # the catalogue names the motion in it
    os.chdir(ROOT)
    start = time.monotonic()
    motion = out / "motion.npz"
    if not motion.exists():
        run("-m", "dreampose", "pose", "examples/clip.mp4", "--out", str(motion))
    run(
        "jobs/finetune.py",
        *("--model", args.model),
        *("--subjects", "examples/subjects.csv"),
        *("--out", str(out / "subjects")),
    )
    run(
        "jobs/render.py",
        *("--model", args.model),
        *("--catalog", CATALOG),
        *("--subjects", str(out / "subjects")),
        *("--out", str(out)),
    )
    faults = check(out)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"\n{time.monotonic() - start:.0f} s. Look at {out / 'index.html'}")
    return 1 if faults else 0


def run(*words: str) -> None:
    """Shows a command and runs it; leaves with its exit code where it fails."""
    print(f"\n$ {shlex.join(['python', *words])}", flush=True)
    result = subprocess.run([sys.executable, *words], check=False)
    if result.returncode:
        sys.exit(result.returncode)


def check(out: Path) -> list[str]:
    """What is wrong with the videos: nothing, if each has its motion's frames and rate."""
    faults: list[str] = []
    print()
    with Path(CATALOG).open(newline="") as file:
        for row in csv.DictReader(file):
            beside = Path(CATALOG).parent / row["motion"]
            motion = poses.Motion.load(beside if beside.exists() else row["motion"])
            clip = video.read(out / f"{row['item']}.mp4")
            got = f"{len(clip.frames)} frames at {clip.fps:g} fps"
            wanted = f"{motion.num_frames} frames at {motion.fps:g} fps"
            print(f"{row['item']}.mp4: {got}")
            if got != wanted:
                faults.append(f"{row['item']}.mp4 must have {wanted}, got {got}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
