#!/usr/bin/env python
"""Catwalk benchmark v1: renders of people unseen in training against ground truth.

Renders the test people, renders them with the model, finetunes the model on some of them, and
writes the tables.

Protocol:
- Data: 24 people of the test split (benchmarks/data.py), which shares no person, pattern or colour
  pair with the training data; a walk and a turn of 48 frames each, at 160x128. No hyperparameter is
  tuned on them.
- Input: the photo is the first frame of the walk. Poses are the exact surface maps of the clips,
  the counterpart of the paper's DensePose; --estimator selects another source. They are not
  aligned, because they belong to the body in the photo.
- Finetuning: on the first 8 people, from the photo and from the turn at a quarter and a half of its
  length (side and back view), each with its pose. None of these frames is scored.
- Scores: six pairs of consecutive frames of each clip. L1, PSNR, SSIM and lpips-lite are averaged
  over the frames, the temporal difference error (TDE) over the pairs. Clips and people have equal
  weight; brackets are 95% bootstrap intervals over people.
- Rows. copy: the photo, repeated. nearest: the nearest of 2,304 training frames to the true frame
  by L1 (an oracle). VAE: the true frame, encoded and decoded. read: the base model with poses that
  BlazePose extracts from the clip (33 points without clothes). base: the base model with the poses
  of the protocol. finetuned: the model finetuned on the person, including the decoder.
- Identity: all people turn with the gait of the first test person. Identity is kept if the base
  render is nearer (lpips-lite) to the true frame of the same person than to that of any other.
- Pose: a real walk (examples/motions/real-walk.npz) drives three people. BlazePose extracts the
  poses of the renders; joints within 0.2 torso lengths are correct (PCK@0.2).
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data, people, report
from benchmarks.people import Protocol
from dreampose.errors import InputError
from dreampose.io.files import new_file
from dreampose.models import subject
from dreampose.options import arguments
from dreampose.options.loading import load
from dreampose.options.parser import CommandParser, run_command
from dreampose.options.progress import ProgressBar

ROOT = Path(__file__).resolve().parents[1]
REAL_WALK = ROOT / "examples" / "motions" / "real-walk.npz"
NUM_REAL = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
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
        "--people",
        type=arguments.positive,
        default=largest,
        help="number of test people (default: %(default)s)",
    )
    parser.add_argument(
        "--finetuned",
        type=int,
        default=8,
        help="number of people to finetune on (default: %(default)s)",
    )
    parser.add_argument(
        "--num-steps", type=int, help="finetuning steps of UNet and adapter (default: the recipe's)"
    )
    parser.add_argument(
        "--num-vae-steps", type=int, help="finetuning steps of the decoder (default: the recipe's)"
    )
    parser.add_argument(
        "--photos",
        type=int,
        default=3,
        choices=(1, 2, 3),
        help="photos per person to finetune on (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=arguments.positive,
        default=2,
        help="processes, one core each (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/benchmark"),
        help="folder of the results (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Computes missing results, prints the tables and draws the pictures."""
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
    # People with finetuning take longest: start them first, so that all workers end together.
    jobs.sort(key=lambda job: job[0] is not score_person)
    run_jobs(jobs, args.workers)
    print(report.write(args.out, names, protocol))


def score_person(folder: Path, clips: dict[str, Path], protocol: Protocol, finetune: bool) -> None:
    """`people.score` with positional arguments, for a process pool."""
    people.score(folder, clips, protocol, finetune=finetune)


def find_clips(out: Path, num_people: int, workers: int) -> dict[str, dict[str, Path]]:
    """Paths of walk and turn of each test person; missing clips are rendered."""
    folder = out / "clips" / "test"
    data.generate(folder, "test", workers=workers, identities=num_people)
    data.compare(data.checksums(folder.parent, "test"))
    clips: dict[str, dict[str, Path]] = {}
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            clips.setdefault(row["subject"], {})[row["motion"]] = folder / row["path"]
    return clips


def collect_training(file: Path, workers: int) -> None:
    """Renders the training frames for the row `nearest`, once."""
    if file.is_file():
        return
    numbers = range(data.SPLITS["train"].identities)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = pool.map(people.training_frames, numbers)
        frames = np.concatenate(
            list(ProgressBar(found, total=len(numbers), desc="training frames"))
        )
    with new_file(file) as part, part.open("wb") as stream:
        np.save(stream, frames)


def run_jobs(jobs: Sequence[tuple[Callable[..., None], *tuple[Any, ...]]], workers: int) -> None:
    """Runs functions with their arguments in a process pool."""
    if not jobs:
        return
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        ProgressBar(total=len(jobs), desc="people", unit="job") as bar,
    ):
        for future in as_completed([pool.submit(*job) for job in jobs]):
            future.result()
            bar.update()


if __name__ == "__main__":
    sys.exit(main())
