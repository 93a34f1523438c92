#!/usr/bin/env python
"""Subject finetuning, one Ray task per subject."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose.config import Savings
from dreampose.errors import InputError
from dreampose.options import arguments
from jobs.common import driver, paths, planning, storage, subject_table
from jobs.common.subject_table import SubjectPhotos

if TYPE_CHECKING:
    from dreampose.config import Recipe
    from dreampose.models.subject import Photo
    from dreampose.poses import Motion
    from dreampose.training import StepReport

EXAMPLES = """\
  # subjects.csv:
  #   subject,photos
  #   anna,photos/anna.jpg
  #   bert,photos/bert-1.jpg;photos/bert-2.jpg
  #   chloe,photos/chloe/*.jpg
  jobs/finetune.py --model models/catwalk --subjects subjects.csv --out subjects

  # Low-rank updates: a hundredth of the size
  jobs/finetune.py --model models/catwalk --subjects subjects.csv --out subjects --method lora

  # Then, for one of them
  python -m dreampose animate --photo photos/anna.jpg --subject subjects/anna --motion walk.npz \\
      --out anna.mp4
"""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Options of every task; see `dreampose.training.finetune_subject`."""

    model: str
    out: str
    method: str
    rank: int | None
    targets: tuple[str, ...] | None
    num_steps: int | None
    num_vae_steps: int | None
    size: tuple[int, int] | None
    seed: int
    checkpoint_every: int
    pose: str
    precision: str
    savings: Savings


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(finetune, _parser(), argv, plan=estimate)


def finetune(args: argparse.Namespace) -> int:
    """Checks everything, then finetunes every subject that is not done; returns the exit code.

    Subjects with the same photos are finetuned once, and the result is copied.
    """
    from dreampose.models.subject import copy_subject

    listed = subject_table.read(args.subjects)
    subjects = [row for row in listed if not row.error]
    _check(args)
    done_before = {row.subject for row in subjects if _is_done(args.out, row, args.method)}
    firsts = _firsts(sorted(subjects, key=lambda row: row.subject not in done_before))
    missing = [row for row in subjects if row.subject not in done_before]
    todo = [row for row in missing if firsts[row.subject] == row.subject]
    failures: dict[str, str] = {}
    if todo:
        options = FinetuneOptions(
            model=storage.model_path(args.model),
            out=storage.absolute(args.out),
            method=args.method,
            rank=args.rank,
            targets=_targets(args),
            num_steps=args.steps,
            num_vae_steps=args.vae_steps,
            size=args.size,
            seed=args.seed,
            checkpoint_every=args.checkpoint_every,
            pose=args.pose,
            precision=args.precision,
            savings=arguments.savings(args),
        )
        with driver.ray_session(
            args.profile, log_to_driver=False, local=paths.local_paths("finetune", args)
        ) as capacity:
            from jobs.common import tasks

            failures = tasks.run(
                finetune_one,
                {row.subject: (options, row) for row in todo},
                name=f"finetune {options.out}",
                noun="subjects",
                capacity=capacity,
                request=worker_requests.from_flags("finetune", capacity.profile, args),
                gpus=args.gpus,
                wait=args.wait_for_resources,
            )
    for row in missing:
        first = firsts[row.subject]
        if first == row.subject:
            continue
        if first in failures:
            failures[row.subject] = failures[first]
        else:
            copy_subject(Path(args.out) / first, Path(args.out) / row.subject, row.subject)
    failures |= {row.subject: row.error for row in listed if row.error}
    width = max(len(row.subject) for row in listed)
    for row in listed:
        state = "done before" if row.subject in done_before else "done"
        if row.subject in failures:
            state = f"failed: {failures[row.subject]}"
        print(f"{row.subject:<{width}}  {state}")
    return 1 if failures else 0


def _firsts(subjects: Sequence[SubjectPhotos]) -> dict[str, str]:
    """The first subject with the same photos, for every subject."""
    from dreampose.io import video
    from dreampose.models.subject import photo_hash

    hash_of = cache(lambda photo: photo_hash(video.read_photo(photo)))
    firsts: dict[tuple[str, ...], str] = {}
    return {
        row.subject: firsts.setdefault(tuple(hash_of(photo) for photo in row.photos), row.subject)
        for row in subjects
    }


def finetune_one(
    options: FinetuneOptions, row: SubjectPhotos, *, stop: Callable[[], bool]
) -> "Iterator[StepReport]":
    """Finetunes on one subject; returns at once where that is done, else resumes.

    Raises:
        InputError: a photo shows no person, or the folder holds another subject's weights.
    """
    from accelerate import Accelerator

    from dreampose import training
    from dreampose.io import video
    from dreampose.options import loading as model
    from dreampose.training.memory import mixed_precision

    pipe = model.load(options.model)
    photos = [video.read_photo(photo) for photo in row.photos]
    yield from training.finetune_subject(
        pipe,
        photos,
        Path(options.out) / row.subject,
        name=row.subject,
        accelerator=Accelerator(mixed_precision=mixed_precision(options.precision)),
        motions=_motions(photos, options.pose, pipe.recipe),
        method=options.method,
        lora_rank=options.rank,
        lora_targets=options.targets,
        num_steps=options.num_steps,
        num_vae_steps=options.num_vae_steps,
        size=options.size,
        seed=options.seed,
        stop=stop,
        checkpoint_every=options.checkpoint_every,
        savings=options.savings,
    )


def _motions(photos: "Sequence[Photo]", pose: str, recipe: "Recipe") -> "list[Motion] | None":
    """A motion of one frame for each photo; None leaves that to the default estimator."""
    from dreampose import data, poses
    from dreampose.types import Clip

    if pose == "blazepose":
        return None
    reader = poses.estimator(pose, channels=recipe.pose_channels)
    clips = [Clip(frames=photo[None], fps=1.0, source="photo") for photo in photos]
    sizes = [data.working_size(clip, recipe) for clip in clips]
    return [
        data.extract_motion(clip, reader, height=height, width=width, fit=recipe.frame_fit)
        for clip, (height, width) in zip(clips, sizes, strict=True)
    ]


def _targets(args: argparse.Namespace) -> tuple[str, ...] | None:
    if args.lora_targets is None:
        return None
    return tuple(target.strip() for target in args.lora_targets.split(",") if target.strip())


def _is_done(out: str, row: SubjectPhotos, method: str) -> bool:
    """Whether the folder holds weights of these very photos, made by this method."""
    from dreampose.io import video
    from dreampose.models.subject import photo_hash, read_subject

    folder = Path(out) / row.subject
    if not folder.exists():
        return False
    known = read_subject(folder)
    hashes = tuple(photo_hash(video.read_photo(photo)) for photo in row.photos)
    if known.method != method:
        raise InputError(
            f"out must hold no weights of {row.subject!r} by another method than {method}, got "
            f"{known.method} in {str(folder)!r}: choose another folder or delete that one"
        )
    if known.photos != hashes:
        raise InputError(
            f"out must hold no weights of other photos of {row.subject!r}, got {str(folder)!r}: "
            "choose another folder or delete that one"
        )
    return True


def _check(args: argparse.Namespace) -> None:
    """Checks what can be checked before Ray starts.

    Raises:
        InputError: the model cannot be loaded, or a number is out of range.
    """
    if args.checkpoint_every < 1:
        raise InputError(f"checkpoint_every must be at least 1, got {args.checkpoint_every}")
    for name in ("steps", "vae_steps"):
        if (value := getattr(args, name)) is not None and value < 0:
            raise InputError(f"{name} must be at least 0, got {value}")
    if args.steps == 0 and (args.vae_steps == 0 or (args.method == "lora" and not args.vae_steps)):
        raise InputError("steps and vae_steps must not both be 0")
    if args.method != "lora" and (args.rank is not None or args.lora_targets is not None):
        raise InputError(f"rank and lora_targets must go with the method lora, got {args.method}")
    from dreampose import poses
    from dreampose.models import lora
    from dreampose.options import loading as model

    poses.identify(args.pose)
    pipe = model.load(args.model)
    if args.size is not None:
        pipe.recipe.at(*args.size)
    if args.method == "lora":
        recipe, targets = pipe.recipe, _targets(args)
        lora.check_targets(
            {"unet": pipe.unet, "adapter": pipe.adapter},
            rank=recipe.lora_rank if args.rank is None else args.rank,
            targets=recipe.lora_targets if targets is None else targets,
        )


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of finetuning on all subjects.

    Raises:
        InputError: the table of subjects, the model or an optimizer is not valid.
    """
    savings = arguments.savings(args)
    subjects = [row for row in subject_table.read(args.subjects) if not row.error]
    recipe = planning.recipe_of(args)
    precision = planning.precision_of(args)
    is_lora = args.method == "lora"
    default = 0 if is_lora else recipe.subject_vae_stage.num_steps
    steps = recipe.subject_stage.num_steps if args.steps is None else args.steps
    decoder_steps = default if args.vae_steps is None else args.vae_steps
    costs = planning.costs_of(recipe)
    first = costs.cost(f"subject {args.method}", savings=savings, precision=precision)
    second = costs.cost("decoder", savings=savings, precision=precision)
    used = [cost for cost, number in ((first, steps), (second, decoder_steps)) if number]
    most = planning.larger(costs.cost("subject encoding"), *used)
    trained = first.num_trained + (second.num_trained if decoder_steps else 0)
    return planning.Plan(
        title=f"{len(subjects)} subjects, method {args.method}, of {recipe.name}",
        work=(
            f"{steps:,} steps of UNet and adapter for each",
            f"{decoder_steps:,} steps of the decoder for each",
        ),
        notes=(*costs.notes(recipe), "several GPUs work on several subjects, one on one"),
        parameters=costs.parameters,
        cost=replace(most, num_trained=first.num_trained),
        precision=precision,
        flops=len(subjects) * (steps * first.flops + decoder_steps * second.flops),
        read_bytes=4 * sum(costs.parameters.values()),
        written_bytes=len(subjects) * (4 if is_lora else 2) * trained,
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "finetune",
        "Finetunes a model on subjects: UNet and adapter on their photos, then the VAE's decoder.\n"
        "Leaves a folder for each in OUT. One that fails does not stop the others: the table at\n"
        "the end says why, and the exit code is 1.",
        EXAMPLES,
    )
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument(
        "--subjects",
        required=True,
        help="CSV with the columns subject and photos (paths or patterns, ';' between them, "
        "relative to the file); one photo works, three are better, more than five add little",
    )
    parser.add_argument("--out", required=True, help="folder of the results, one folder each")
    parser.add_argument(
        "--method",
        choices=("full", "lora"),
        default="full",
        help="train every weight of UNet and adapter, then the decoder; or low-rank updates, a "
        "hundredth of the size (%(default)s)",
    )
    parser.add_argument(
        "--pose",
        type=arguments.estimator,
        default="blazepose",
        metavar="NAME",
        help="as in jobs/preprocess.py: what the base model was trained with (%(default)s)",
    )
    parser.add_argument("--rank", type=int, help="of low-rank updates, instead of the recipe's")
    parser.add_argument(
        "--lora-targets",
        metavar="A,B",
        help="layers to update, by the ends of their names, e.g. to_q,to_v,project",
    )
    parser.add_argument("--steps", type=int, help="of UNet and adapter, instead of the recipe's")
    parser.add_argument(
        "--vae-steps",
        type=int,
        help="of the decoder, instead of the recipe's (0 for lora); 0 leaves it alone",
    )
    arguments.add_size(parser, what="the frames that are trained on")
    parser.add_argument("--seed", type=int, default=0, help="of crops and noise (%(default)s)")
    parser.add_argument(
        "--gpus",
        action=argparse.BooleanOptionalAction,
        help="a GPU for each subject; by default where the cluster has one",
    )
    arguments.add_savings(parser)
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="STEPS", help="(%(default)s)"
    )
    return parser  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
