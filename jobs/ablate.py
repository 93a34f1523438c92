#!/usr/bin/env python
"""Ablation study of the model with Ray tasks."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose.errors import InputError
from dreampose.io import tables
from dreampose.options import arguments
from dreampose.synthetic.generate import DEFAULT_MOTIONS, MANIFEST
from jobs.common import driver, paths, planning, storage
from jobs.evaluation import clips

if TYPE_CHECKING:
    from cluster.capacity import Capacity
    from jobs.evaluation import ablation

PLAN = "plan.json"
"""File with the options of the results in a folder."""
EXAMPLES = """\
  # Test subjects, and training data encoded by a model
  python -m dreampose catwalk --out clips/test --identities 8 --frames 48 --split test --seed 3
  jobs/preprocess.py --videos clips/train/manifest.csv --model runs/vae/model --out data/latents

  # Three variants with three seeds each, 1,500 steps a training
  jobs/ablate.py --data data/latents --vae-model runs/vae/model --truth clips/test \\
      --out out/ablation --base-steps 1500
"""


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(ablate, _parser(), argv, plan=estimate)


def ablate(args: argparse.Namespace) -> int:
    """Validates, computes missing results and writes the report; returns the exit code."""
    plan, seeds, subjects = check(args)
    from jobs.evaluation import ablation, ablation_report

    out = Path(args.out).expanduser().absolute()
    _check_same_options(plan, out)
    cells = ablation.cells(seeds, subjects)
    todo = [cell for cell in cells if not cell.result(out).is_file()]
    bases = list(dict.fromkeys(cell.base for cell in todo if not cell.base.is_done(out)))
    print(
        f"{len(subjects)} subjects, seeds {', '.join(map(str, seeds))}: {len(bases)} trainings and "
        f"{len(todo)} of {len(cells)} finetunings are to be done"
    )
    failures: dict[str, str] = {}
    if todo:
        with driver.ray_session(
            args.profile, log_to_driver=False, local=paths.local_paths("ablate", args)
        ) as capacity:
            failures = _run(args, plan, bases, todo, out, capacity)
    for name, reason in failures.items():
        print(f"failed {name}: {reason}")
    if failures:
        print(f"no report: {len(failures)} parts failed; the same command tries them again")
        return 1
    print(ablation_report.write(plan, subjects, seeds, out))
    print(f"report: {out / 'report.md'}")
    return 0


def check(
    args: argparse.Namespace,
) -> "tuple[ablation.AblationOptions, list[int], list[ablation.HeldOutSubject]]":
    """Options, seeds and test subjects of the study.

    Raises:
        InputError: packages, subjects, model, data or scores are missing or do not match.
    """
    try:
        for name in ("ablation", "ablation_report"):
            importlib.import_module(f"jobs.evaluation.{name}")
    except ModuleNotFoundError as error:
        raise driver.missing_extra("metrics", error) from error
    seeds = list(dict.fromkeys(args.seeds))
    if min(seeds) < 0:
        raise InputError(f"seeds must not be negative, got {min(seeds)}")
    subjects = find_subjects(args.truth, args.people)
    return _options(args), seeds, subjects


def _run(
    args: argparse.Namespace,
    plan: "ablation.AblationOptions",
    bases: "Sequence[ablation.Base]",
    cells: "Sequence[ablation.Cell]",
    out: Path,
    capacity: "Capacity",
) -> dict[str, str]:
    """Trains, then finetunes from every trained base; returns failures and reasons."""
    from jobs.common import tasks
    from jobs.evaluation import ablation

    options: dict[str, Any] = {
        "capacity": capacity,
        "request": worker_requests.from_flags("finetune", capacity.profile, args),
        "gpus": args.gpus,
        "wait": args.wait_for_resources,
    }
    failures: dict[str, str] = {}
    if bases:
        failures = tasks.run(
            ablation.train_base,
            {base.name: (plan, base, out) for base in bases},
            name=f"ablation bases {out}",
            noun="trainings",
            **options,
        )
    ready = [cell for cell in cells if cell.base.name not in failures]
    if ready:
        failures |= tasks.run(
            ablation.score,
            {cell.name: (plan, cell, out) for cell in ready},
            name=f"ablation subjects {out}",
            noun="finetunings",
            **options,
        )
    return failures


def _options(args: argparse.Namespace) -> "ablation.AblationOptions":
    """Options of the study, with defaults from the recipe.

    Raises:
        InputError: model, data or weights of the scores are missing or do not match.
    """
    from dreampose import checkpoints, metrics, poses
    from dreampose.data import Dataset, encoders_fingerprint
    from dreampose.options import loading
    from jobs.evaluation import ablation

    poses.identify(args.estimator)
    pipe = loading.load(args.vae_model)
    for variant in ablation.VARIANTS:
        ablation.recipe_of(pipe.recipe, variant)
    expected = encoders_fingerprint(pipe)
    got = Dataset(args.data, recipe=pipe.recipe, columns=()).fingerprint
    if got != expected:
        raise InputError(
            f"data must be encoded by the model {args.vae_model!r} ({expected}), got {got} in "
            f"{args.data!r}: run jobs/preprocess.py with that model"
        )
    metrics.Networks().check([metrics.METRICS[name] for name in ablation.METRICS])
    base_steps = args.base_steps or pipe.recipe.base_stage.num_steps
    if not base_steps:
        raise InputError("base-steps must be given where the recipe counts epochs, got none")
    return ablation.AblationOptions(
        model=storage.model_path(args.vae_model),
        fingerprint=checkpoints.fingerprint(pipe),
        data=storage.absolute(args.data),
        truth=storage.absolute(args.truth),
        estimator=args.estimator,
        preset=args.preset,
        base_steps=base_steps,
        num_steps=args.steps or pipe.recipe.subject_stage.num_steps,
        num_vae_steps=args.vae_steps or pipe.recipe.subject_vae_stage.num_steps,
    )


def _check_same_options(plan: "ablation.AblationOptions", out: Path) -> None:
    """Writes the options, or compares them with those of earlier results.

    Raises:
        InputError: the results were made with other options.
    """
    asked, file = asdict(plan), out / PLAN
    if file.is_file():
        known = json.loads(file.read_text())
        for name, value in asked.items():
            if known.get(name) != value:
                raise InputError(
                    f"out must be a new folder or hold results of {name} {value}, got "
                    f"{known.get(name)} in {str(out)!r}"
                )
    storage.write_text(file, json.dumps(asked, indent=1) + "\n")


def find_subjects(truth: str, count: int | None) -> "list[ablation.HeldOutSubject]":
    """The first subjects of a folder of catwalk clips, or all.

    Raises:
        InputError: it has no manifest, too few subjects or training subjects, or a walk or turn is
            missing or too short.
    """
    from jobs.evaluation import ablation

    manifest = Path(truth) / MANIFEST
    if not manifest.is_file():
        raise InputError(
            f"truth must be a folder of catwalk clips with a {MANIFEST}, got {truth!r}: make it "
            "with python -m dreampose catwalk --split test"
        )
    files: dict[str, dict[str, str]] = {}
    columns = ("path", "subject", "split", "motion")
    for row in tables.read(manifest, required=columns, name=MANIFEST).rows:
        if row.error:
            raise InputError(f"{MANIFEST}: {row.error}")
        if row.cells["split"] == "train":
            raise InputError(
                "truth must hold subjects that no training has seen, got "
                f"{row.cells['subject']!r} of the split 'train'"
            )
        path = str(manifest.parent / row.cells["path"])
        files.setdefault(row.cells["subject"], {})[row.cells["motion"]] = path
    if len(files) < (count or 1):
        raise InputError(f"truth must hold at least {count or 1} subjects, got {len(files)}")
    subjects = [ablation.HeldOutSubject(name=name, files=found) for name, found in files.items()][
        :count
    ]
    for subject in subjects:
        for motion in DEFAULT_MOTIONS:
            path = Path(subject.files.get(motion, ""))
            if not path.is_file():
                raise InputError(f"truth must hold a {motion} of {subject.name!r}, got none")
            if (got := clips.measure(path)[0]) < ablation.MIN_FRAMES:
                raise InputError(
                    f"clips must have at least {ablation.MIN_FRAMES} frames, got {got} in "
                    f"{path.name!r}"
                )
    return subjects


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of the whole study; results of earlier runs are counted as well.

    Raises:
        InputError: as for the job itself.
    """
    options, seeds, subjects = check(args)
    # Imported here: it needs the packages of the scores, which `check` verifies.
    from jobs.evaluation import ablation

    recipe = planning.recipe_of(argparse.Namespace(model=args.vae_model))
    costs = planning.costs_of(recipe)
    cells = ablation.cells(seeds, subjects)
    base, subject, decoder = (
        costs.cost(name, precision="fp32") for name in ("base", "subject full", "decoder")
    )
    calls, branches = planning.sampling_of(recipe, options.preset)
    clips_rendered = len(DEFAULT_MOTIONS) * sum(len(cell.rows) for cell in cells)
    per_clip = len(ablation.scored_frames(ablation.MIN_FRAMES))
    frames = clips_rendered * per_clip
    rendering = costs.rendering(
        num_frames=frames, num_calls=calls, branches=branches, chunk=ablation.CHUNK
    )
    trainings = len(seeds) * len(ablation.VARIANTS)
    stage = recipe.base_stage
    samples = trainings * options.base_steps * stage.gradient_accumulation * stage.batch_size
    steps, decoder_steps = options.num_steps, options.num_vae_steps
    finetuning = steps * subject.flops + decoder_steps * decoder.flops
    clip_frames = sum(
        planning.video_frames(file) for one in subjects for file in one.files.values()
    )
    model_bytes = 4 * sum(costs.parameters.values())
    return planning.Plan(
        title=f"ablations of {recipe.name}: {len(subjects)} subjects, {len(seeds)} seeds",
        work=(
            f"{trainings} trainings of {options.base_steps:,} steps",
            f"{len(cells)} finetunings of {steps:,} steps, then {decoder_steps:,} of the decoder",
            f"{clips_rendered} clips rendered, {per_clip} frames of each",
        ),
        notes=(*costs.notes(recipe), "in float32; every variant is counted as the full model"),
        parameters=costs.parameters,
        cost=planning.larger(costs.cost("subject encoding"), base, subject, decoder, rendering),
        flops=samples * base.flops + len(cells) * finetuning + rendering.flops,
        core_seconds=clip_frames * planning.POSE_SECONDS
        + frames * len(ablation.METRICS) * planning.SCORE_SECONDS,
        read_bytes=samples * planning.frame_bytes(recipe, encoded=True),
        written_bytes=trainings * model_bytes,
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "ablate",
        "Trains the model and two that lack a part of it, with several seeds, finetunes each on\n"
        "test subjects, and compares their renders with the true frames: CLIP only, no decoder\n"
        "finetune, one pose, smoothed poses, full; 1, 3 and 5 photos. All have equal budgets. The\n"
        "table has the paper's figures beside it, and says where its ordering holds.",
        EXAMPLES,
    )
    parser.add_argument(
        "--data", required=True, help="data folder of jobs/preprocess.py, encoded by --vae-model"
    )
    parser.add_argument(
        "--vae-model",
        required=True,
        metavar="MODEL",
        help="model folder whose recipe, VAE and image encoder all share; UNet and adapter start "
        "anew from each seed",
    )
    parser.add_argument(
        "--truth",
        required=True,
        metavar="CLIPS",
        help="folder of python -m dreampose catwalk --split test",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of trainings (0 1 2)"
    )
    parser.add_argument(
        "--people", type=arguments.positive, help="how many, by default all of CLIPS"
    )
    parser.add_argument(
        "--base-steps", type=arguments.positive, help="of each training, instead of the recipe's"
    )
    parser.add_argument(
        "--steps", type=arguments.positive, help="of UNet and adapter, instead of the recipe's"
    )
    parser.add_argument(
        "--vae-steps", type=arguments.positive, help="of the decoder, instead of the recipe's"
    )
    arguments.add_preset(parser, default="fast")
    arguments.add_estimator(parser)
    parser.add_argument(
        "--gpus",
        action=argparse.BooleanOptionalAction,
        help="a GPU for each task; by default where the cluster has one",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
