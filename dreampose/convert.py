"""The paper's published checkpoints as a model: their names, their shapes and their quirks.

The published code saved `unet_epoch_N.pth`, `adapter_N.pth` and `vae_N.pth`. What those weights
were trained on differs from this project's conventions; `QUIRKS` says how, and the model's recipe
carries it, so that sampling and further training do likewise. Knows nothing of how.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dreampose import checkpoints
from dreampose.config import Recipe, replace
from dreampose.errors import InputError
from dreampose.io import weights
from dreampose.models import stable_diffusion as bases
from dreampose.pipeline import DreamPosePipeline

ADAPTER_NAMES = {"vae2clip": "project", "linear1": "mix"}
"""The published adapter's layers, and ours."""

QUIRKS: Mapping[str, Any] = {
    "image_range": (0.0, 1.0),
    "pose_range": (0.0, 1.0),
    "photo_fit": "crop",
    "pose_resize": "nearest",
    "null_image": "black",
}
"""What the published weights were trained on, as fields of the recipe.

Pixels go into the VAE, and come out of it, in [0, 1]; pose maps are raw; CLIP sees the centre
square; maps come onto the latent grid by nearest neighbour; a dropped photo is a black one. The
published sampler does otherwise (photo in 0 to 255, poses in [-1, 1]) and then stretches every
frame by its own minimum and maximum; none of that is repeated.
"""


def import_model(
    base: str | Path,
    *,
    unet: str | Path | None = None,
    adapter: str | Path | None = None,
    vae: str | Path | None = None,
    image_encoder: str | Path | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
    image_range: tuple[float, float] | None = None,
    pose_range: tuple[float, float] | None = None,
) -> tuple[DreamPosePipeline, str]:
    """A model of the published weights on their base, or of the base alone (the paper's start).

    Args:
        base: see `dreampose.models.stable_diffusion.read`, like `image_encoder`, `revision` and
            `config`.
        unet: `unet_epoch_N.pth`; goes with `adapter`.
        adapter: `adapter_N.pth`.
        vae: `vae_N.pth`, whose decoder is finetuned; without it the base's VAE stays.
        image_encoder: CLIP.
        revision: of the base on the hub.
        config: of a base in a single file.
        height: of frames; by default from the base, or else what the adapter was made for.
        width: likewise.
        image_range: instead of that of `QUIRKS`.
        pose_range: likewise.

    Returns:
        The model, and one line that says what base it was made from.

    Raises:
        InputError: a file is missing or damaged, or does not fit the base; all that is missing,
            unknown or of another shape is named.
    """
    if (unet is None) != (adapter is None):
        raise InputError(
            "unet and adapter must be given together, since they were trained together, got only "
            f"{'the adapter' if unet is None else 'the unet'}"
        )
    files = {"unet": unet, "adapter": adapter, "vae": vae}
    values = {
        name: _NAMES[name](weights.unwrap(weights.read(path, name), name))
        for name, path in files.items()
        if path is not None
    }
    parts = bases.read(base, image_encoder, revision=revision, config=config)
    recipe = bases.recipe_of(parts, height=height, width=width)
    if values:
        ranges = {"image_range": image_range, "pose_range": pose_range}
        stated = {name: value for name, value in ranges.items() if value is not None}
        recipe = replace(recipe, **{**QUIRKS, **stated})
    if "adapter" in values and height is None and width is None:
        recipe = _sized(recipe, values["adapter"])
    pipe = checkpoints.assemble(recipe, parts.vae, parts.image_encoder, parts.unet)
    for name, found in values.items():
        path = files[name]
        assert path is not None
        weights.fit(getattr(pipe, name), found, name, path)
    return pipe, parts.source


def adapter_names(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published adapter's tensors under our names."""
    renamed: dict[str, Tensor] = {}
    for key, value in values.items():
        layer, _, rest = key.partition(".")
        renamed[f"{ADAPTER_NAMES.get(layer, layer)}.{rest}" if rest else key] = value
    return renamed


def _sized(recipe: Recipe, adapter: Mapping[str, Tensor]) -> Recipe:
    """The recipe at the frame size an adapter was made for, if that has the paper's 5:4.

    The adapter's projection reads half the latent grid in each direction: (h/2) (w/2) cells.
    """
    weight = adapter.get("project.weight")
    if weight is None or weight.ndim != 2:
        return recipe
    cells = weight.shape[1]
    rows, columns = recipe.latent_size
    if (rows // 2) * (columns // 2) == cells or cells % 20:
        return recipe
    unit = math.isqrt(cells // 20)
    if 20 * unit**2 != cells:
        return recipe
    side = 2 * unit * recipe.downscale
    return replace(recipe, height=5 * side, width=4 * side)


_NAMES = {"unet": dict, "adapter": adapter_names, "vae": bases.modern_names}
