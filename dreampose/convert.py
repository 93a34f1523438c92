"""Conversion of the paper's published checkpoints to a model.

The published code saves `unet_epoch_N.pth`, `adapter_N.pth` and `vae_N.pth`. These weights were
trained with other conventions than this project's. `QUIRKS` lists them; they become part of the
recipe, so that sampling and further training follow them.
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
"""Layers of the published adapter and their names in this project."""

QUIRKS: Mapping[str, Any] = {
    "image_range": (0.0, 1.0),
    "pose_range": (0.0, 1.0),
    "photo_fit": "crop",
    "pose_resize": "nearest",
    "null_image": "black",
}
"""Conventions of the published weights, as fields of the recipe.

VAE inputs and outputs are in [0, 1]; pose maps are not rescaled; CLIP gets the central square; pose
maps are resized to the latent grid by nearest neighbour; the null image is black. The published
sampler deviates (photo in 0 to 255, poses in [-1, 1], each frame stretched to its own minimum and
maximum); that is not reproduced.
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
    """Builds a model from published weights and their base, or from the base alone.

    Args:
        base: Stable Diffusion 1.x; see `dreampose.models.stable_diffusion.read`.
        unet: `unet_epoch_N.pth`; requires `adapter`.
        adapter: `adapter_N.pth`; requires `unet`.
        vae: `vae_N.pth` with a finetuned decoder; default: the VAE of the base.
        image_encoder: folder or hub id of CLIP; see `dreampose.models.stable_diffusion.read`.
        revision: revision of the base on the hub.
        config: architecture of a base in a single file.
        height: frame height in pixels; default: that of the adapter, else that of the base.
        width: frame width in pixels; default: as for `height`.
        image_range: values of black and white; default: `QUIRKS`.
        pose_range: values of 0 and 1 of a pose map; default: `QUIRKS`.

    Returns:
        The model, and a description of its base.

    Raises:
        InputError: a file is missing or damaged, or does not fit the base; the message names
            missing and unknown tensors and those of another shape.
    """
    if (unet is None) != (adapter is None):
        raise InputError(
            "unet and adapter must be given together, because they were trained together, got "
            f"only {'the adapter' if unet is None else 'the unet'}"
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
    """Renames the tensors of the published adapter."""
    renamed: dict[str, Tensor] = {}
    for key, value in values.items():
        layer, _, rest = key.partition(".")
        renamed[f"{ADAPTER_NAMES.get(layer, layer)}.{rest}" if rest else key] = value
    return renamed


def _sized(recipe: Recipe, adapter: Mapping[str, Tensor]) -> Recipe:
    """Recipe with the frame size of an adapter, if it has the paper's aspect ratio of 5:4.

    The adapter's projection has (h/2) (w/2) inputs for a latent grid of h x w.
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
