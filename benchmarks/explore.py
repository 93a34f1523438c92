#!/usr/bin/env python
"""Comparison of training options on the validation people.

Each option changes one setting of the model's recipe. UNet and adapter start from the same random
weights; the VAE is that of the model, and so is the image encoder unless the option changes it. The
order of the data and the noise are equal. The models then render the validation people of the
benchmark v1 (photo: first frame of the walk; exact poses; walk and turn); "l1 / copy" is the L1
divided by that of the copied photo. Options that start with `decoder` continue the training of the
VAE, and score reconstructions of true frames. Finished results are kept. The test split is not
used.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data, people
from dreampose import checkpoints, metrics
from dreampose.config import Recipe
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.io.files import new_file, new_folder
from dreampose.models.vae import LatentCodec
from dreampose.options import arguments
from dreampose.options.loading import load
from dreampose.options.parser import CommandParser, run_command
from dreampose.types import Clip

ROOT = Path(__file__).resolve().parents[1]
SCORES = ("l1", "ssim", "lpips-lite")
Frames = UInt8[np.ndarray, "..."]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Changes to a recipe.

    Attributes:
        stage: the stage to train, 'base' or 'vae'.
        numbers: changed fields of that stage.
        scheduler: changed settings of the noise process.
        image_encoder: changed settings of the image encoder, which then starts from random weights;
            None keeps the model's.
    """

    stage: str = "base"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    image_encoder: Mapping[str, Any] | None = None

    def of(self, recipe: Recipe) -> Recipe:
        """Applies the changes to a recipe."""
        name = f"{self.stage}_stage"
        return replace(
            recipe,
            **{name: replace(getattr(recipe, name), **self.numbers)},
            scheduler={**recipe.scheduler, **self.scheduler},
            image_encoder={**recipe.image_encoder, **(self.image_encoder or {})},
        )


CHOICES = {
    "unchanged": Choice(),
    "min-snr": Choice(numbers={"min_snr_gamma": 5.0}),
    "epsilon": Choice(scheduler={"prediction_type": "epsilon"}),
    "zero-snr": Choice(scheduler={"rescale_betas_zero_snr": True}),
    "offset-noise": Choice(numbers={"offset_noise": 0.1}),
    "no-average": Choice(numbers={"ema_decay": 0.0}),
    "short-average": Choice(numbers={"ema_decay": 0.99}),
    "no-reading": Choice(numbers={"reading_weight": 0.0}),
    "tokens-4x4": Choice(image_encoder={"patch_size": 32}),
    "tokens-8x8": Choice(image_encoder={"patch_size": 16}),
    "tokens-16x16": Choice(image_encoder={"patch_size": 8}),
    "decoder": Choice(stage="vae"),
    "decoder-pixels": Choice(stage="vae", numbers={"perceptual_weight": 0.0}),
    "decoder-perceptual": Choice(stage="vae", numbers={"perceptual_weight": 0.5}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = CommandParser(
        prog="benchmarks/explore.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_model(parser)
    arguments.add_preset(parser, default="fast")
    parser.add_argument(
        "--data", required=True, help="data folder of jobs/preprocess.py, encoded by the model"
    )
    parser.add_argument(
        "--choices",
        nargs="+",
        choices=list(CHOICES),
        default=list(CHOICES),
        help="options to train and score (default: all)",
    )
    parser.add_argument(
        "--steps",
        type=arguments.positive,
        default=400,
        help="training steps, with the recipe's batch size (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of weights and noise (default: 0)"
    )
    parser.add_argument(
        "--people",
        type=arguments.positive,
        default=4,
        help="number of validation people (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=arguments.positive,
        default=2,
        help="processes that render clips (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/exploration"),
        help="folder of the results (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Trains and scores the options that are not finished, and prints a table."""
    if args.people > (most := data.SPLITS["val"].identities):
        raise InputError(f"people must be at most {most}, got {args.people}")
    model = load(args.model)
    out = args.out.absolute()
    clips = out / "clips" / "val"
    data.generate(clips, "val", workers=args.workers, identities=args.people)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for name in args.choices:
            folder = out / f"{name}-{seed}"
            train(folder, model, CHOICES[name], args.data, steps=args.steps, seed=seed)
            found = score(folder, CHOICES[name], clips, args.people, args.preset)
            rows.setdefault(name, []).append(found)
    print("\n".join(table(rows)))


def train(folder: Path, model: Any, choice: Choice, latents: str, *, steps: int, seed: int) -> None:
    """Trains an option with `jobs/train.py` into `folder/run/model`."""
    recipe, start = choice.of(model.recipe), folder / "start"
    if not start.is_dir():
        pipe = checkpoints.build(recipe, seed=seed)
        pipe.register_modules(vae=model.vae)
        if choice.image_encoder is None:
            pipe.register_modules(image_encoder=model.image_encoder)
        with new_folder(start) as part:
            checkpoints.save(pipe, part)
    command = [
        *(sys.executable, str(ROOT / "jobs" / "train.py"), "--stage", choice.stage),
        *("--model", str(start), "--data", latents, "--out", str(folder / "run")),
        *("--steps", str(steps), "--seed", str(seed), "--track"),
    ]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"training of {folder.name!r} failed; its error is printed above")


def score(
    folder: Path, choice: Choice, clips: Path, num_people: int, preset: str
) -> dict[str, float]:
    """Mean scores over people and clips; `l1 / copy` is the mean of the people's ratios."""
    file = folder / f"scores-{num_people}-{preset}.json"
    if not file.is_file():
        pipe, networks = load(str(folder / "run" / "model")), metrics.Networks()
        shown = reconstructed if choice.stage == "vae" else partial(rendered, preset=preset)
        found = [
            _score(clips, number, partial(shown, pipe), networks) for number in range(num_people)
        ]
        means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        with new_file(file) as part:
            part.write_text(json.dumps(means, indent=1))
    return json.loads(file.read_text())


def rendered(pipe: Any, photo: Frames, film: Clip, *, preset: str) -> Frames:
    """Scored frames of a clip, rendered from a photo and exact poses."""
    protocol = people.Protocol(
        model="", fingerprint="", preset=preset, estimator="catwalk", num_steps=None,
        num_vae_steps=None, num_photos=1,
    )  # fmt: skip
    motion = people.extract(film, pipe, "catwalk")
    return people.render(pipe, [photo], motion, people.SCORED, protocol)


def reconstructed(pipe: Any, _photo: Frames, film: Clip) -> Frames:
    """Scored frames of a clip, encoded and decoded by the VAE; the photo is not used."""
    codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
    return people.reconstruct(codec, film.frames[list(people.SCORED)])


def _score(
    clips: Path, number: int, shown: Callable[[Frames, Clip], Frames], networks: metrics.Networks
) -> dict[str, float]:
    stem = f"val-{data.SPLITS['val'].seed}-{number:05d}"
    films = {motion: video.read(clips / f"{stem}-{motion}.mp4") for motion in ("walk", "turn")}
    photo = films["walk"].frames[0]
    sums = dict.fromkeys((*SCORES, "copy"), 0.0)
    for film in films.values():
        truth = film.frames[list(people.SCORED)]
        scores = people.measure(shown(photo, film), truth, networks)
        copied = people.measure(np.repeat(photo[None], len(truth), axis=0), truth, networks)
        for name in SCORES:
            sums[name] += scores[name] / len(films)
        sums["copy"] += copied["l1"] / len(films)
    return {"l1 / copy": sums["l1"] / sums.pop("copy")} | sums


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """Markdown lines: means over seeds, with minimum and maximum if there are several."""
    names = ("l1 / copy", *SCORES)
    yield f"| choice | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for choice, runs in rows.items():
        cells = [np.array([run[name] for run in runs]) for name in names]
        texts = [
            f"{values.mean():.4f}"
            + (f" [{values.min():.4f}, {values.max():.4f}]" if len(values) > 1 else "")
            for values in cells
        ]
        yield f"| {choice} | {' | '.join(texts)} |"


if __name__ == "__main__":
    sys.exit(main())
