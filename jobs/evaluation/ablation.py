"""Variants of an ablation study, their training and scoring.

Every function resumes where an earlier call ended.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from scipy.ndimage import gaussian_filter1d

from dreampose import checkpoints, metrics, poses, training
from dreampose import data as dataset
from dreampose.config import Recipe
from dreampose.diffusion import generation
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.subject import Photo
from dreampose.options.loading import load
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses import Motion
from dreampose.synthetic.generate import DEFAULT_MOTIONS
from dreampose.training import StepReport
from dreampose.types import Clip
from jobs.common import storage

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "clip_only": {"photo_latents": False},
    "one_pose": {"num_poses": 1},
}
"""Base models, and what each changes in the recipe."""

SMOOTHING = 2.0
"""Deviation, in frames, of the Gaussian that smooths pose maps over time."""
REACH = 3.0
"""Deviations at which it is cut off."""

PHOTOS = (("walk", 0.0), ("turn", 0.25), ("turn", 0.5), ("turn", 0.75), ("walk", 0.5))
"""Where the photos of a subject are taken: clip, and share of its length."""
NUM_PAIRS = 6
"""Pairs of neighbouring frames of each clip that are scored."""
MIN_FRAMES = 48
"""Of a clip, so that no photo is among the frames that are scored."""
METRICS = ("l1", "ssim", "lpips-lite", "psnr", "tde")

CHUNK = 8
"""Frames denoised together."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        name: name in files.
        title: title in the table, the same as that of the paper's row.
        base: key of `VARIANTS`.
        num_photos: number of photos for finetuning and rendering.
        decoder: whether to use the finetuned decoder instead of the base model's.
        smoothed: whether pose maps are smoothed over time.
        own_noise: whether each frame has its own initial noise instead of a common one.
    """

    name: str
    title: str
    base: str = "full"
    num_photos: int = 3
    decoder: bool = True
    smoothed: bool = False
    own_noise: bool = False


FULL = "full"
ROWS = {
    row.name: row
    for row in (
        Row(name="clip_only", title="CLIP only", base="clip_only"),
        Row(name="no_decoder", title="no VAE-decoder finetune", decoder=False),
        Row(name="one_pose", title="one pose", base="one_pose"),
        Row(name="smoothed", title="smoothed poses", smoothed=True),
        Row(name=FULL, title="full"),
        Row(name="one_photo", title="full, 1 photo", num_photos=1),
        Row(name="five_photos", title="full, 5 photos", num_photos=5),
        Row(
            name="own_noise",
            title="one pose, each frame its own noise",
            base="one_pose",
            own_noise=True,
        ),
    )
}
"""In the order of the table."""


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Settings of all results, equal for all rows.

    model: whose VAE and image encoder all share. fingerprint: of its weights. data: what bases are
    trained on. truth: folder of the test subjects' clips.
    """

    model: str
    fingerprint: str
    data: str
    truth: str
    estimator: str
    preset: str
    base_steps: int
    num_steps: int
    num_vae_steps: int
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class HeldOutSubject:
    """A test subject and the files of their clips, by motion."""

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Base:
    """One training of a variant."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.variant}-{self.seed}"

    def is_done(self, out: Path) -> bool:
        """Whether its training is finished."""
        return (out / "bases" / self.name / "model").is_dir()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One subject finetuned on some photos, from one base model, and rendered for some rows."""

    base: Base
    num_photos: int
    subject: HeldOutSubject

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.base.name}-{self.num_photos}/{self.subject.name}"

    @property
    def rows(self) -> list[Row]:
        """Rows of the table that use it."""
        key = (self.base.variant, self.num_photos)
        return [row for row in ROWS.values() if (row.base, row.num_photos) == key]

    def result(self, out: Path) -> Path:
        """Path of its scores; the file is written last."""
        return out / "scores" / f"{self.name}.json"


def cells(seeds: Sequence[int], subjects: Sequence[HeldOutSubject]) -> list[Cell]:
    """All finetuning runs that the rows need."""
    kinds = dict.fromkeys((row.base, row.num_photos) for row in ROWS.values())
    return [
        Cell(base=Base(variant=variant, seed=seed), num_photos=num_photos, subject=subject)
        for seed in seeds
        for variant, num_photos in kinds
        for subject in subjects
    ]


def recipe_of(recipe: Recipe, variant: str) -> Recipe:
    """The recipe of a variant.

    Raises:
        InputError: the recipe already lacks what the variants take away.
    """
    if recipe.num_poses == 1 or not recipe.photo_latents:
        raise InputError(
            "vae-model must have a recipe with several poses and the photo's latents, got "
            f"num_poses {recipe.num_poses} and photo_latents {recipe.photo_latents}"
        )
    return replace(recipe, **VARIANTS[variant])


def train_base(
    plan: AblationOptions, base: Base, out: Path, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[StepReport]:
    """Trains one variant into `out/bases/NAME/model`.

    VAE and image encoder are those of the plan's model; UNet and adapter start from the seed.
    Data order and noise depend only on the seed, so they are equal for all variants.

    Raises:
        InputError: the data were not encoded by the model.
    """
    if base.is_done(out):
        return
    folder = out / "bases" / base.name
    start = folder / "start"
    source = load(plan.model)
    recipe = recipe_of(source.recipe, base.variant)
    if not start.is_dir():
        fresh = checkpoints.build(recipe, seed=base.seed)
        fresh.vae, fresh.image_encoder = source.vae, source.image_encoder
        checkpoints.save(fresh, start, dtype=None)
    yield from training.train(
        "base",
        recipe=recipe,
        data=plan.data,
        out=folder,
        accelerator=Accelerator(),
        model=start,
        max_steps=plan.base_steps,
        seed=base.seed,
        stop=stop,
        keep=1,
    )
    if base.is_done(out):
        # These are not needed any more and take five times the space of the model.
        for name in ("start", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)


def score(
    plan: AblationOptions, cell: Cell, out: Path, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[StepReport]:
    """Finetunes on one subject and scores their clips in every row of the cell.

    Finetuned weights are deleted afterwards.

    Raises:
        InputError: a clip shows no person.
    """
    result = cell.result(out)
    subject = out / "subjects" / cell.name
    if result.is_file():
        shutil.rmtree(subject, ignore_errors=True)
        return
    accelerator = Accelerator()
    pipe = load(out / "bases" / cell.base.name / "model")
    films = {motion: video.read(cell.subject.files[motion]) for motion in DEFAULT_MOTIONS}
    motions = {
        motion: _motion(out / "motions" / f"{cell.subject.name}-{motion}.npz", film, pipe, plan)
        for motion, film in films.items()
    }
    taken = [(name, int(at * len(films[name].frames))) for name, at in PHOTOS[: cell.num_photos]]
    photos = [films[name].frames[index] for name, index in taken]
    for report in training.finetune_subject(
        pipe,
        photos,
        subject,
        name=cell.subject.name,
        accelerator=accelerator,
        motions=[motions[name].between(index, index + 1) for name, index in taken],
        num_steps=plan.num_steps,
        num_vae_steps=plan.num_vae_steps,
        seed=cell.base.seed,
        stop=stop,
    ):
        yield report
        if report.stopped:
            return
    pipe = pipe.to(accelerator.device)
    networks = metrics.Networks(device=str(accelerator.device))
    chosen = [metrics.METRICS[name] for name in METRICS]
    scores: dict[str, dict[str, float]] = {}
    tuned = pipe.with_subject(subject)
    decoder = tuned.vae
    for row in cell.rows:
        tuned.vae = decoder if row.decoder else pipe.vae
        found: list[dict[str, float]] = []
        for name, film in films.items():
            indices = scored_frames(len(film.frames))
            truth = video.fit(film.frames, pipe.recipe.height, pipe.recipe.width)[indices]
            frames = render(
                tuned, photos, motions[name], indices, row, preset=plan.preset, seed=cell.base.seed
            )
            found.append(metrics.pair_scores(chosen, frames, truth, networks))
        scores[row.name] = {
            name: float(np.mean([clip[name] for clip in found])) for name in METRICS
        }
    storage.write_text(result, json.dumps({"scores": scores, "plan": asdict(plan)}, indent=1))
    shutil.rmtree(subject)


def scored_frames(num_frames: int) -> list[int]:
    """Frames of a clip that are scored: pairs of neighbours spread over it, no photo among them."""
    starts = [int((k + 0.75) * num_frames / NUM_PAIRS) for k in range(NUM_PAIRS)]
    return [start + step for start in starts for step in (0, 1)]


def smooth(motion: Motion) -> Motion:
    """The motion with maps smoothed over time; the clip's first and last map are repeated."""
    maps = gaussian_filter1d(motion.maps, SMOOTHING, axis=0, mode="nearest", truncate=REACH)
    return replace(motion, maps=maps, painted=False)


def render(
    pipe: DreamPosePipeline,
    photos: Sequence[Photo],
    motion: Motion,
    indices: Sequence[int],
    row: Row,
    *,
    preset: str,
    seed: int,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Renders frames of a motion for a row, without alignment.

    Args:
        pipe: the finetuned model.
        photos: photos; every call of the model uses a random one.
        motion: motion of the whole clip.
        indices: indices of the frames to render.
        row: row with the settings of poses and noise.
        preset: sampling preset.
        seed: seed of the noise.
    """
    if row.smoothed:
        motion = smooth(motion)
    request = generation.prepare(pipe, photos, motion, preset=preset, seed=seed, align=False)
    if not row.own_noise:
        chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
        return np.concatenate([generation.render_frames(pipe, request, chunk) for chunk in chunks])
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn(request.num_frames, *request.noise.shape[1:], generator=generator)
    frames = [
        generation.render_frames(pipe, replace(request, noise=noises[i : i + 1]), [i])
        for i in indices
    ]
    return np.concatenate(frames)


def _motion(file: Path, film: Clip, pipe: DreamPosePipeline, plan: AblationOptions) -> Motion:
    """Motion of a clip, extracted once and cached."""
    if not file.is_file():
        height, width = dataset.working_size(film, pipe.recipe)
        estimator = poses.estimator(plan.estimator, channels=pipe.recipe.pose_channels)
        poses.extract(film, estimator, height=height, width=width).save(file)
    return Motion.load(file)
