"""Model folders: new models, saving and loading. Knows nothing of training or sampling."""

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from dreampose.config import Recipe
from dreampose.diffusion.schedulers import noise_process
from dreampose.errors import InputError
from dreampose.io.files import new_folder
from dreampose.models import lora
from dreampose.models import stable_diffusion as bases
from dreampose.models.adapter import ImageAdapter
from dreampose.models.refiner import Refiner
from dreampose.models.subject import (
    MODELS,
    Subject,
    describe_subject,
    fingerprint,
    read_subject,
    save_subject,
)
from dreampose.models.unet import widen
from dreampose.models.vae import VAE, init_cosine_transform, is_cosine_encoder
from dreampose.pipeline import DreamPosePipeline

__all__ = [
    "Subject",
    "build",
    "describe_subject",
    "fingerprint",
    "from_stable_diffusion",
    "load",
    "num_parameters",
    "read_subject",
    "save",
    "save_subject",
    "take_over",
]


def build(recipe: Recipe, *, seed: int = 0) -> DreamPosePipeline:
    """A model of the recipe with random weights.

    Inside `with torch.device("meta"):` it takes no memory, whatever its size.

    Args:
        recipe: sizes of every part.
        seed: of the weights; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: VAE = getattr(diffusers, recipe.vae_class)(**recipe.vae)
        if isinstance(vae, AutoencoderTiny) and is_cosine_encoder(vae):
            init_cosine_transform(vae)
        encoder = CLIPVisionModel(CLIPVisionConfig(**recipe.image_encoder))
        unet = UNet2DConditionModel(**recipe.unet)
        return assemble(recipe, vae, encoder, unet)


def from_stable_diffusion(
    recipe: Recipe, base: str | Path, image_encoder: str | Path
) -> DreamPosePipeline:
    """A model of the recipe with published weights, ready for base training (the paper's start).

    Args:
        recipe: such as `sd14()`.
        base: a Stable Diffusion model in any form that
            `dreampose.models.stable_diffusion.read` accepts.
        image_encoder: folder or hub id of a CLIP vision model (`openai/clip-vit-base-patch32`).

    Raises:
        InputError: there are no such models, or they do not have the recipe's sizes.
    """
    parts = bases.read(base, image_encoder)
    vae, unet, encoder = parts.vae, parts.unet, parts.image_encoder
    for name, actual, expected in (
        ("unet channels", unet.config["in_channels"], recipe.unet["in_channels"]),
        ("vae latent_channels", vae.config["latent_channels"], recipe.latent_channels),
        ("unet width", unet.config["cross_attention_dim"], recipe.unet["cross_attention_dim"]),
        ("encoder width", encoder.config.hidden_size, recipe.image_encoder["hidden_size"]),
    ):
        if actual != expected:
            raise InputError(f"{name} must be {expected} for recipe {recipe.name}, got {actual}")
    return assemble(recipe, vae, encoder, unet)


def assemble(
    recipe: Recipe, vae: VAE, image_encoder: CLIPVisionModel, unet: UNet2DConditionModel
) -> DreamPosePipeline:
    """Widens the UNet and adds a new adapter: a pipeline that starts as plain CLIP conditioning."""
    config = image_encoder.config
    side, patch = config.image_size, config.patch_size
    assert isinstance(side, int)
    assert isinstance(patch, int)
    height, width = recipe.latent_size
    adapter = ImageAdapter(
        num_tokens=(side // patch) ** 2 + 1,
        token_width=config.hidden_size,
        latent_channels=recipe.latent_channels if recipe.photo_latents else 0,
        latent_height=height,
        latent_width=width,
    )
    pipe = DreamPosePipeline(
        vae=vae,
        image_encoder=image_encoder,
        adapter=adapter,
        unet=widen(unet, recipe.unet_channels - recipe.latent_channels),
        scheduler=noise_process(recipe.scheduler),
        recipe=recipe.to_dict(),
        refiner=None if recipe.refiner is None else Refiner(**recipe.refiner),
    )
    for name in component_names(pipe):
        getattr(pipe, name).eval()
    return pipe


def save(
    pipe: DreamPosePipeline,
    folder: str | Path,
    dtype: torch.dtype | None = torch.float16,
    *,
    text: str | None = None,
) -> None:
    """Writes a model folder of safetensors; it appears whole or not at all.

    Args:
        pipe: left untouched; low-rank updates in it are merged into the weights.
        folder: replaced when it exists.
        dtype: of the tensors on disk; None keeps the model's own.
        text: of a model card, written as README.md.
    """
    parts: dict[str, Any] = {
        name: lora.merge(getattr(pipe, name)) for name in component_names(pipe)
    }
    if dtype is not None:
        parts = {name: _cast(module, dtype) for name, module in parts.items()}
    copied = DreamPosePipeline(**parts, scheduler=pipe.scheduler, recipe=pipe.config["recipe"])
    with new_folder(folder) as part:
        copied.save_pretrained(part, safe_serialization=True)
        if text is not None:
            (part / "README.md").write_text(text, "utf-8")
        for path in part.glob("*/config.json"):
            values = json.loads(path.read_text("utf-8"))
            # Where a part was loaded from is no property of it, and often somebody's folder.
            values.pop("_name_or_path", None)
            if isinstance(pipe.vae, AutoencoderTiny) and path.parent.name == "vae":
                # It saves one key that it would complain of when it is loaded.
                values.pop("block_out_channels", None)
            path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if all(tensor.dtype == dtype for tensor in module.state_dict().values()):
        return module
    # Not the module's own `to`: diffusers' warns, even where no part has to stay in float32.
    return nn.Module.to(copy.deepcopy(module), dtype)


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> DreamPosePipeline:
    """Reads a model folder onto the CPU.

    Args:
        folder: written by `save` or `DreamPosePipeline.save_pretrained`.
        dtype: of the tensors in memory.

    Raises:
        InputError: it is not such a folder.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"model must be a folder with a model_index.json, got {str(folder)!r}")
    try:
        return DreamPosePipeline.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"model must be one this package wrote, got {folder}: {error}") from error


@torch.no_grad()
def take_over(pipe: DreamPosePipeline, source: DreamPosePipeline) -> list[str]:
    """Copies every weight of `source` that has the same name and shape in `pipe`, VAE aside.

    A new model, with other latents say, then starts from what an earlier one has learned. Where it
    differs in `pose_detail`, a finer one takes the old kernels over for all squares of a cell
    alike, so that it reads the mean of a cell as before.

    Args:
        pipe: changed in place.
        source: left untouched.

    Returns:
        Names of the weights of `pipe` that stayed as they were, as 'unet.conv_in.weight'.
    """
    kept: list[str] = []
    for part in component_names(pipe):
        if part == "refiner" and source.refiner is None:
            kept += [f"refiner.{name}" for name in getattr(pipe, part).state_dict()]
            continue
        if part == "vae":
            continue
        theirs = getattr(source, part).state_dict()
        if part == "unet":
            theirs = _spread_poses(theirs, source.recipe, pipe.recipe)
            theirs = _without_surface(theirs, source.recipe, pipe.recipe)
        for name, tensor in getattr(pipe, part).state_dict().items():
            if name in theirs and theirs[name].shape == tensor.shape:
                tensor.copy_(theirs[name])
            else:
                kept.append(f"{part}.{name}")
    return kept


def _spread_poses(weights: dict[str, Tensor], old: Recipe, new: Recipe) -> dict[str, Tensor]:
    """The weights of a UNet made for one square a cell, for one made for more."""
    if old.pose_detail != 1 or old.latent_channels != new.latent_channels:
        return weights
    squares = new.pose_detail**2
    latents, poses = weights["conv_in.weight"].tensor_split([old.latent_channels], dim=1)
    spread = torch.cat([latents, poses.repeat_interleave(squares, dim=1) / squares], dim=1)
    return {**weights, "conv_in.weight": spread}


def _without_surface(weights: dict[str, Tensor], old: Recipe, new: Recipe) -> dict[str, Tensor]:
    """The weights of a UNet without the surface condition, for one that has it: zeros for it."""
    if old.surface_detail or not new.surface_detail:
        return weights
    kernel = weights["conv_in.weight"]
    zeros = kernel.new_zeros(len(kernel), new.surface_channels, *kernel.shape[2:])
    return {**weights, "conv_in.weight": torch.cat([kernel, zeros], dim=1)}


def num_parameters(pipe: DreamPosePipeline) -> dict[str, int]:
    """Parameters of each part, for reports."""
    return {
        name: sum(parameter.numel() for parameter in getattr(pipe, name).parameters())
        for name in component_names(pipe)
    }


def component_names(pipe: DreamPosePipeline) -> tuple[str, ...]:
    """Names of the models of a pipeline: `MODELS`, and the refiner where there is one."""
    return MODELS if pipe.refiner is None else (*MODELS, "refiner")
