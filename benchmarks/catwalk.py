#!/usr/bin/env python
"""Catwalk benchmark v1: how close renders of people never seen in training come to the truth.

One command makes the test people, renders each with the model, finetunes the model on some of them,
and writes the tables. Knows nothing of Ray.

Protocol, the same for every row:
- 24 people of the test split (benchmarks/data.py), which shares no person, pattern or colour pair
  with training; a walk and a turn of 48 frames each, at 160x128. Nothing is tuned on them.
- The photo is the first frame of the walk. Poses are the exact surface of the clips, which is what
  DensePose's is to the paper; another estimator may be named. They are not aligned: they already
  are the photo's body.
- Finetuning sees the photo, and the turn at a quarter and a half of its length (side and back), as
  photos without motion, each with its pose; none of these three is scored. It is done for the
  first 8 people.
- Scored are six pairs of neighbouring frames of each clip. L1, PSNR, SSIM and lpips-lite are means
  over these frames, the temporal difference error (TDE) is of the pairs. Clips and people weigh
  the same; brackets hold 95% bootstrap intervals over people.
- copy: the photo, repeated. nearest: of 2,304 training frames, the one that is nearest to the true
  frame by L1, which no method could know. VAE: the true frame, encoded and decoded. read: the model
  as it is, with poses that BlazePose reads from the clip, which shows 33 points and no clothes.
  base: the same with the poses of the protocol. finetuned: the model that has learned the person,
  decoder included.
- Identity: everybody turns in the gait of the first test person; a person counts where the base
  render is nearer (lpips-lite) to their own true frame than to that of everybody else in that pose.
- Pose: a real walk (examples/motions/real-walk.npz) drives three people; BlazePose reads the
  renders of the base model and of the finetuned ones, and joints within 0.2 torso lengths of their
  place count (PCK@0.2).
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data, people, report
from benchmarks.people import Protocol
from dreampose.errors import InputError
from dreampose.io.files import new_file
from dreampose.models import subject
from dreampose.options import arguments
from dreampose.options.loading import load
from dreampose.options.parser import CommandParser, run_command

ROOT = Path(__file__).resolve().parents[1]
REAL_WALK = ROOT / "examples" / "motions" / "real-walk.npz"
NUM_REAL = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its tables."""
    parser = CommandParser(
        prog="benchmarks/catwalk.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_model(parser)
    arguments.add_preset(parser, default="fast")
    arguments.add_estimator(parser, default="catwalk")
    largest = data.SPLITS["test"].identities
    parser.add_argument(
        "--people", type=arguments.positive, default=largest, help="of the test split (%(default)s)"
    )
    parser.add_argument(
        "--finetuned", type=int, default=8, help="how many are finetuned on (%(default)s)"
    )
    parser.add_argument("--num-steps", type=int, help="instead of the recipe's, UNet + adapter")
    parser.add_argument("--num-vae-steps", type=int, help="instead of the recipe's, VAE decoder")
    parser.add_argument("--photos", type=int, default=3, choices=(1, 2, 3), help="to finetune on")
    parser.add_argument(
        "--workers", type=arguments.positive, default=2, help="people at a time, a core each"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmark"))
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Makes what is missing, prints and draws."""
    if args.people > data.SPLITS["test"].identities:
        raise InputError(
            f"people must be at most {data.SPLITS['test'].identities}, got {args.people}"
        )
    pipe = load(args.model)
    if (pipe.recipe.height, pipe.recipe.width) != (data.HEIGHT, data.WIDTH):
        raise InputError(
            f"model must render {data.HEIGHT}x{data.WIDTH}, "
            f"got {pipe.recipe.height}x{pipe.recipe.width}"
        )
    protocol = Protocol(
        model=str(args.model),
        fingerprint=subject.fingerprint(pipe),
        preset=args.preset,
        estimator=args.estimator,
        num_steps=args.num_steps,
        num_vae_steps=args.num_vae_steps,
        num_photos=args.photos,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    clips = find_clips(args.out, args.people, args.workers)
    names = sorted(clips)
    collect_training(args.out / "training.npy", args.workers)
    jobs: list[tuple[Any, ...]] = []
    for number, name in enumerate(names):
        folder, photo = args.out / name, clips[name]["walk"]
        if not people.is_done(folder / "result.json", protocol) or (
            number < args.finetuned and not (folder / "subject").is_dir()
        ):
            finetune = number < args.finetuned
            jobs.append((score_person, folder, clips[name], protocol, finetune))
        if not people.is_done(folder / "pose.json", protocol):
            jobs.append((people.score_pose, folder, number, photo, protocol))
        if number < NUM_REAL and not people.is_done(folder / "real.json", protocol):
            jobs.append((people.score_real, folder, photo, REAL_WALK, protocol))
    # Who is finetuned on takes longest and goes first, so that workers end together.
    jobs.sort(key=lambda job: job[0] is not score_person)
    run_jobs(jobs, args.workers)
    print(report.write(args.out, names, protocol))


def score_person(folder: Path, clips: dict[str, Path], protocol: Protocol, finetune: bool) -> None:
    """`people.score`, for a pool."""
    people.score(folder, clips, protocol, finetune=finetune)


def find_clips(out: Path, num_people: int, workers: int) -> dict[str, dict[str, Path]]:
    """Walk and turn of every test person, by subject, made where they are missing."""
    folder = out / "clips" / "test"
    data.generate(folder, "test", workers=workers, identities=num_people)
    data.compare(data.checksums(folder.parent, "test"))
    clips: dict[str, dict[str, Path]] = {}
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            clips.setdefault(row["subject"], {})[row["motion"]] = folder / row["path"]
    return clips


def collect_training(file: Path, workers: int) -> None:
    """Frames of the training people, for the nearest of them; made once."""
    if file.is_file():
        return
    numbers = range(data.SPLITS["train"].identities)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = pool.map(people.training_frames, numbers)
        frames = np.concatenate(list(tqdm(found, total=len(numbers), desc="training frames")))
    with new_file(file) as part, part.open("wb") as stream:
        np.save(stream, frames)


def run_jobs(jobs: Sequence[tuple[Callable[..., None], *tuple[Any, ...]]], workers: int) -> None:
    """Does jobs, `workers` at a time."""
    if not jobs:
        return
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(jobs), desc="people", unit="job") as bar,
    ):
        for future in as_completed([pool.submit(*job) for job in jobs]):
            future.result()
            bar.update()


if __name__ == "__main__":
    sys.exit(main())
