"""Creation, saving and loading of models."""

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
    """Creates a model with random weights.

    Inside `with torch.device("meta"):` it needs no memory.

    Args:
        recipe: configuration of the model.
        seed: seed of the weights; the global random generator is not changed.
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
    """Creates a model with published weights: the paper's initialisation for base training.

    Args:
        recipe: configuration of the model, such as `sd14()`.
        base: Stable Diffusion model; see `dreampose.models.stable_diffusion.read`.
        image_encoder: folder or hub id of a CLIP vision model (`openai/clip-vit-base-patch32`).

    Raises:
        InputError: a model is missing, or does not have the sizes of the recipe.
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
    """Widens the UNet and adds a new adapter, which is initialised to plain CLIP conditioning."""
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
    """Writes a model folder with safetensors, atomically.

    Args:
        pipe: the model; LoRA weights are merged into the written weights.
        folder: path of the folder; an existing one is replaced.
        dtype: dtype of the written weights; None keeps that of the model.
        text: model card, written as README.md.
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
            # The path from which a component was loaded is private.
            values.pop("_name_or_path", None)
            if isinstance(pipe.vae, AutoencoderTiny) and path.parent.name == "vae":
                # AutoencoderTiny saves a key about which it warns when it is loaded.
                values.pop("block_out_channels", None)
            path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if all(tensor.dtype == dtype for tensor in module.state_dict().values()):
        return module
    # diffusers overrides `to` with one that warns even if no module has to stay in float32.
    return nn.Module.to(copy.deepcopy(module), dtype)


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> DreamPosePipeline:
    """Loads a model onto the CPU.

    Args:
        folder: folder written by `save` or `DreamPosePipeline.save_pretrained`.
        dtype: dtype of the weights in memory.

    Raises:
        InputError: the folder is not a model folder of this package.
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
    """Copies the weights of `source` that have the same name and shape in `pipe`, except the VAE.

    Training of a changed model can thus start from an existing one. If `pose_detail` becomes finer,
    the kernel of a cell is copied to all of its squares, divided by their number, so the initial
    output is the same.

    Args:
        pipe: model to change in place.
        source: model to copy from.

    Returns:
        Names of the weights of `pipe` that were not copied, such as 'unet.conv_in.weight'.
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
    """Adapts the weights of a UNet with one square per cell to one with more."""
    if old.pose_detail != 1 or old.latent_channels != new.latent_channels:
        return weights
    squares = new.pose_detail**2
    latents, poses = weights["conv_in.weight"].tensor_split([old.latent_channels], dim=1)
    spread = torch.cat([latents, poses.repeat_interleave(squares, dim=1) / squares], dim=1)
    return {**weights, "conv_in.weight": spread}


def _without_surface(weights: dict[str, Tensor], old: Recipe, new: Recipe) -> dict[str, Tensor]:
    """Adds zero weights for the surface condition to those of a UNet without it."""
    if old.surface_detail or not new.surface_detail:
        return weights
    kernel = weights["conv_in.weight"]
    zeros = kernel.new_zeros(len(kernel), new.surface_channels, *kernel.shape[2:])
    return {**weights, "conv_in.weight": torch.cat([kernel, zeros], dim=1)}


def num_parameters(pipe: DreamPosePipeline) -> dict[str, int]:
    """Number of parameters of each component."""
    return {
        name: sum(parameter.numel() for parameter in getattr(pipe, name).parameters())
        for name in component_names(pipe)
    }


def component_names(pipe: DreamPosePipeline) -> tuple[str, ...]:
    """Names of the components with weights: `MODELS`, and the refiner if the model has one."""
    return MODELS if pipe.refiner is None else (*MODELS, "refiner")
