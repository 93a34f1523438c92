#!/usr/bin/env python
"""Finetuning on many people, one Ray task each. Knows nothing of losses."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import resources
from dreampose.cli import flags
from dreampose.config import Savings
from dreampose.errors import InputError
from jobs import driver, plans, storage, subjects
from jobs.subjects import Person

MAX_RETRIES = 3
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
class Order:
    """What every task does; see `dreampose.training.finetune_subject`."""

    model: str
    out: str
    method: str
    rank: int | None
    targets: tuple[str, ...] | None
    num_steps: int | None
    num_vae_steps: int | None
    size: tuple[int, int] | None
    seed: int
    num_threads: int
    checkpoint_every: int
    precision: str
    savings: Savings


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(finetune, _parser(), argv, plan=plans.finetune)


def finetune(args: argparse.Namespace) -> int:
    """Checks everything, then finetunes on everyone who is not done; gives the exit code."""
    people = subjects.read(args.subjects)
    _check(args)
    done_before = {person.subject for person in people if _is_done(args.out, person, args.method)}
    todo = [person for person in people if person.subject not in done_before]
    failures: dict[str, str] = {}
    if todo:
        with driver.ray_session(log_to_driver=False) as total:
            failures = _run(args, todo, total)
    width = max(len(person.subject) for person in people)
    for person in people:
        state = "done before" if person.subject in done_before else "done"
        if person.subject in failures:
            state = f"failed: {failures[person.subject]}"
        print(f"{person.subject:<{width}}  {state}")
    return 1 if failures else 0


def _run(
    args: argparse.Namespace, people: Sequence[Person], total: Mapping[str, float]
) -> dict[str, str]:
    """Runs a task for each person; gives the reasons of those that failed."""
    import ray
    import torch
    from ray.exceptions import RayError, RayTaskError

    from jobs.board import Board, stop_on_sigterm

    logging.getLogger("ray").setLevel(logging.ERROR)
    use_gpu = total.get("GPU", 0) > 0 if args.gpus is None else args.gpus
    share = resources.finetuning(total, num_subjects=len(people), gpus=use_gpu)
    resources.require(total, share)
    order = Order(
        model=storage.absolute(args.model),
        out=storage.absolute(args.out),
        method=args.method,
        rank=args.rank,
        targets=_targets(args),
        num_steps=args.steps,
        num_vae_steps=args.vae_steps,
        size=args.size,
        seed=args.seed,
        num_threads=share.num_threads,
        checkpoint_every=args.checkpoint_every,
        precision=args.precision,
        savings=flags.savings(args),
    )
    board: Any = Board.options(name=f"finetune {order.out}").remote()
    # Ray's types know neither these options nor what they give.
    make_task: Any = ray.remote
    task = make_task(
        # Storage that hiccups and a GPU that others still occupy are worth another try; a dead
        # worker or node is tried again in any case. Anything else would fail again.
        max_retries=MAX_RETRIES,
        retry_exceptions=[OSError, torch.OutOfMemoryError],
        **share.remote_args,
    )(finetune_one)
    pending = {task.remote(order, person, board): person.subject for person in people}

    def progress() -> driver.Progress:
        answer: dict[str, Any] = ray.get(board.read.remote())
        facts = answer.values()
        all_steps = max((steps for _, steps in facts), default=None)
        return driver.Progress(
            done=sum(step for step, _ in facts),
            total=all_steps and all_steps * len(people),
            note=f"{len(people) - len(pending)} of {len(people)} people",
        )

    failures: dict[str, str] = {}
    with stop_on_sigterm(board) as stopped, driver.bar(progress, unit="step"):
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            subject = pending.pop(ready)
            try:
                ray.get(ready)
            except RayTaskError as error:
                failures[subject] = _reason(error.cause or error)
            except RayError as error:
                failures[subject] = _reason(error)
    if stopped.is_set():
        raise driver.Stopped
    return failures


def finetune_one(order: Order, person: Person, board: Any) -> None:
    """Finetunes on one person; returns at once where that is done, goes on where it was left.

    Raises:
        InputError: nobody is in a photo, or another subject's weights are in the way.
    """
    import torch
    from accelerate import Accelerator

    from dreampose import training, video
    from dreampose.cli import model
    from dreampose.training.savings import mixed_precision
    from jobs.board import StopWatch

    torch.set_num_threads(order.num_threads)
    stop = StopWatch(board)
    try:
        steps = training.finetune_subject(
            model.load(order.model),
            [video.read_photo(photo) for photo in person.photos],
            Path(order.out) / person.subject,
            name=person.subject,
            accelerator=Accelerator(mixed_precision=mixed_precision(order.precision)),
            method=order.method,
            lora_rank=order.rank,
            lora_targets=order.targets,
            num_steps=order.num_steps,
            num_vae_steps=order.num_vae_steps,
            size=order.size,
            seed=order.seed,
            stop=stop,
            checkpoint_every=order.checkpoint_every,
            savings=order.savings,
        )
        for report in steps:
            # Fire and forget: nobody waits for the board.
            board.put.remote({person.subject: (report.step, report.total)})
    finally:
        stop.close()


def _reason(error: BaseException) -> str:
    """One line for the table."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:300]}"


def _targets(args: argparse.Namespace) -> tuple[str, ...] | None:
    if args.lora_targets is None:
        return None
    return tuple(target.strip() for target in args.lora_targets.split(",") if target.strip())


def _is_done(out: str, person: Person, method: str) -> bool:
    """Whether the folder holds weights of these very photos, made by this method."""
    from dreampose import video
    from dreampose.subjects import photo_hash, read_subject

    folder = Path(out) / person.subject
    if not folder.exists():
        return False
    known = read_subject(folder)
    hashes = tuple(photo_hash(video.read_photo(photo)) for photo in person.photos)
    if known.method != method:
        raise InputError(
            f"out must hold no weights of {person.subject!r} by another method than {method}, got "
            f"{known.method} in {str(folder)!r}: choose another folder or delete that one"
        )
    if known.photos != hashes:
        raise InputError(
            f"out must hold no weights of other photos of {person.subject!r}, got {str(folder)!r}: "
            "choose another folder or delete that one"
        )
    return True


def _check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before Ray starts.

    Raises:
        InputError: the model cannot be loaded, or a number is out of range.
    """
    if "://" in args.out:
        raise InputError(f"out must be a folder on a disk that all nodes share, got {args.out!r}")
    if args.checkpoint_every < 1:
        raise InputError(f"checkpoint_every must be at least 1, got {args.checkpoint_every}")
    for name in ("steps", "vae_steps"):
        if (value := getattr(args, name)) is not None and value < 0:
            raise InputError(f"{name} must be at least 0, got {value}")
    if args.steps == 0 and (args.vae_steps == 0 or (args.method == "lora" and not args.vae_steps)):
        raise InputError("steps and vae_steps must not both be 0")
    if args.method != "lora" and (args.rank is not None or args.lora_targets is not None):
        raise InputError(f"rank and lora_targets must go with the method lora, got {args.method}")
    flags.savings(args)
    from dreampose import lora
    from dreampose.cli import model

    pipe = model.load(args.model)
    if args.size is not None:
        pipe.recipe.at(*args.size)
    if args.method == "lora":
        recipe, targets = pipe.recipe, _targets(args)
        lora.check(
            {"unet": pipe.unet, "adapter": pipe.adapter},
            rank=recipe.lora_rank if args.rank is None else args.rank,
            targets=recipe.lora_targets if targets is None else targets,
        )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "finetune",
        "Finetunes a model on people: UNet and adapter on their photos, then the VAE's decoder.\n"
        "Leaves a folder for each in OUT. One who fails does not stop the others: the table at\n"
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
    flags.add_size(parser, what="the frames that are trained on")
    parser.add_argument("--seed", type=int, default=0, help="of crops and noise (%(default)s)")
    parser.add_argument(
        "--gpus",
        action=argparse.BooleanOptionalAction,
        help="a GPU for each person; by default where the cluster has one",
    )
    flags.add_savings(parser)
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="STEPS", help="(%(default)s)"
    )
    return parser  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
