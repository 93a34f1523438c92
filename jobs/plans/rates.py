"""What plans share: rates, sizes of data, the recipe that is asked for. Knows no job."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreampose import config, recipes
from dreampose.errors import InputError
from jobs.evaluation import clips

if TYPE_CHECKING:
    from dreampose.planning import Cost

UBC_FASHION = (339, 360)
"""Training videos of the paper's data set, and frames of each (about 12 s at 30 a second)."""

POSE_SECONDS = 0.05
"""Core seconds to decode a frame and to find its pose (BlazePose: 13 to 45 ms)."""
SCREEN_SECONDS = 0.011
"""Core seconds to decode a frame of 940x720 and to look for cuts (8 and 3 ms)."""
FETCH_SECONDS = 5.0
"""Seconds that a server takes for a file: a guess, some MB at 1 MB a second."""
SCORE_SECONDS = 0.2
"""Core seconds to decode two frames and to compare them by one score."""
RENDER_SECONDS = 0.8 / (640 * 512)
"""Core seconds to render a pixel of the synthetic data set."""

MP4_SHARE = 0.02
"""Bytes of a video by those of its plain frames."""

TRACED = "memory and operations: the model's own code, run on tensors without contents"
RATES = "hours: operations over what GPUs sustained in published runs; see the table of prices"
ROUGH = "CPU time is a rate per frame, measured on two cores; data is counted uncompressed"


def recipe_of(args: argparse.Namespace) -> config.Recipe:
    """The recipe that is asked for, or else the model's; at the size that is asked for."""
    name = getattr(args, "recipe", None)
    if name is None and args.model is not None:
        name = f"{args.model}/model_index.json"
    recipe = recipes.recipe(name or "catwalk")
    size = getattr(args, "size", None)
    return recipe if size is None else recipe.at(*size)


def sampling_of(recipe: config.Recipe, preset: str) -> tuple[config.Recipe, int]:
    """The recipe with a preset's scales, and how often the model is called for a frame by it."""
    from dreampose.diffusion.sampling import num_model_calls
    from dreampose.diffusion.schedulers import noise_process, scheduler_by_name

    chosen = config.PRESETS[preset]
    start = noise_process(recipe.scheduler).config
    sampler = scheduler_by_name(chosen.scheduler, start, **chosen.scheduler_kwargs)
    scales = {
        name: value
        for name in ("image_scale", "pose_scale")
        if (value := getattr(chosen, name)) is not None
    }
    return config.replace(recipe, **scales), num_model_calls(sampler, chosen.num_steps)


def larger(one: "Cost | None", other: "Cost") -> "Cost":
    """Whichever takes more of a GPU."""

    def taken(cost: "Cost") -> int:
        return cost.peak_bytes + cost.scratch_bytes

    return other if one is None else max(one, other, key=taken)


def precision_of(args: argparse.Namespace) -> str:
    """What a GPU computes in."""
    return "fp32" if args.precision == "fp32" else "bf16"


def frame_bytes(recipe: config.Recipe, *, encoded: bool) -> int:
    """Bytes of a frame in the data, see `dataset.ARRAYS`."""
    cells = math.prod(recipe.latent_size)
    views = recipe.num_crops + recipe.num_recolours
    total = 3 * recipe.height * recipe.width + 2 * views * recipe.pose_planes * cells
    if encoded:
        total += 2 * views * recipe.latent_channels * cells
        if recipe.image_encoder_frozen:
            encoder: Mapping[str, Any] = recipe.image_encoder
            tokens = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1
            total += 2 * tokens * encoder["hidden_size"]
    return total


def video_frames(path: str) -> int:
    """Frames of a video by its own word; those of the paper's where it lies elsewhere."""
    if "://" in path:
        return UBC_FASHION[1]
    try:
        return clips.measure(Path(path))[0]
    except InputError:
        # The job itself makes a row with the reason of it.
        return 0
