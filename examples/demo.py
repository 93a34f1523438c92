"""Demo: motion extraction, finetuning, and a catalogue of three videos.

Prints and runs the commands that a user would type. A second run only does unfinished steps.
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
    """Runs the demo; returns 1 if a video does not have the frames and rate of its motion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/catwalk", help="model folder")
    args = parser.parse_args()
    out = Path("out/demo")  # the catalogue refers to the motion in this folder
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
    print(f"\nFinished in {time.monotonic() - start:.0f} s. Open {out / 'index.html'}")
    return 1 if faults else 0


def run(*words: str) -> None:
    """Prints and runs a command; exits with its exit code if it fails."""
    print(f"\n$ {shlex.join(['python', *words])}", flush=True)
    result = subprocess.run([sys.executable, *words], check=False)
    if result.returncode:
        sys.exit(result.returncode)


def check(out: Path) -> list[str]:
    """Differences between the videos and the frames and rates of their motions."""
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
