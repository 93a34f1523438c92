"""The model without weights, and inputs without contents. Knows nothing of what they cost.

A model is built without weights and its own code is run on `trace`'s tensors.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dreampose import checkpoints
from dreampose.config import Recipe
from dreampose.diffusion.schedulers import noise_process
from dreampose.models.subject import Subject
from dreampose.models.vae import LatentCodec
from dreampose.pipeline import DreamPosePipeline
from dreampose.training.photo_crops import PhotoCrops


def without_weights(recipe: Recipe) -> DreamPosePipeline:
    """A recipe's model whose parameters take no memory."""
    # A black null photo would be encoded when a stage is made, of weights that are not there. It
    # costs nothing to speak of.
    with torch.device("meta"):
        pipe = checkpoints.build(replace(recipe, null_image="zeros"))
    # The noise process is no weights: without its values nothing could be run on real tensors.
    pipe.register_modules(scheduler=noise_process(recipe.scheduler))
    return pipe


def give_memory(module: nn.Module) -> None:
    """Puts parameters and buffers that have memory in the place of those that have none."""
    for layer in module.modules():
        for name, value in layer.named_parameters(recurse=False):
            made = torch.empty(value.shape, dtype=value.dtype)
            layer.register_parameter(name, nn.Parameter(made, requires_grad=value.requires_grad))
        for name, value in layer.named_buffers(recurse=False):
            # Zeros, since some are indices.
            setattr(layer, name, torch.zeros(value.shape, dtype=value.dtype))


def codec_of(pipe: DreamPosePipeline) -> LatentCodec:
    """The model's VAE, on its recipe's range of pixels."""
    return LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)


def token_shape(recipe: Recipe) -> tuple[int, int]:
    """Tokens of a photo, and their length."""
    encoder = recipe.image_encoder
    return (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1, encoder["hidden_size"]


def latents(recipe: Recipe, count: int) -> Tensor:
    """Of frames (count c h w)."""
    return torch.zeros(count, recipe.latent_channels, *recipe.latent_size)


def batch_of(recipe: Recipe, size: int) -> dict[str, Tensor]:
    """A batch of the base stage."""
    cells = recipe.latent_size
    batch = {
        "latents": latents(recipe, size),
        "poses": torch.zeros(size, recipe.num_poses, recipe.pose_planes, *cells),
        "photo_latents": latents(recipe, size),
    }
    if recipe.image_encoder_frozen:
        return {**batch, "tokens": torch.zeros(size, *token_shape(recipe))}
    return {
        **batch,
        "photo_poses": torch.zeros(size, recipe.pose_planes, *cells),
        "photos": torch.zeros(size, 3, recipe.height, recipe.width),
    }


def views_of(recipe: Recipe) -> PhotoCrops:
    """Two views of one photo: what finetuning keeps on the CPU and draws from."""
    cells = recipe.latent_size
    return PhotoCrops(
        pixels=np.zeros((1, 2, recipe.height, recipe.width, 3), np.uint8),
        latents=torch.zeros(1, 2, recipe.latent_channels, *cells),
        tokens=torch.zeros(1, 2, *token_shape(recipe)),
        poses=torch.zeros(1, 2, recipe.num_poses, recipe.pose_planes, *cells),
    )


def nobody(method: str) -> Subject:
    """A subject for stages that want one."""
    return Subject(name="", recipe="", base="", photos=(), looks=(), method=method, rank=0)
