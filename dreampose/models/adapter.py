"""Image adapter, pose condition, null conditions and condition dropout."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPVisionModel

from dreampose.errors import InputError
from dreampose.models.vae import LatentCodec
from dreampose.types import Conditions

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per-channel statistics of CLIP's training images, for pixels in [0, 1] (Radford et al. 2021)."""


class ImageAdapter(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Image condition c_I = A(c_CLIP, c_VAE) from CLIP tokens and VAE latents of the photo.

    Latents are max-pooled by 2, flattened to one token per channel and projected to the CLIP
    width. A linear map over the token axis, initialised as eye(n, n + c), mixes the n CLIP tokens
    and c latent tokens to n tokens, so at initialisation the output equals the CLIP tokens. Only
    the mixing weights of the latent tokens start at zero: if the projection were zero too, neither
    would receive a gradient. With `latent_channels=0` only the CLIP tokens are mixed.

    If the photo's size differs from the size the adapter was built for, the pooled latents are
    resampled (bilinear, antialiased) to the grid of the projection. At the adapter's own size
    nothing is resampled.

    Args:
        num_tokens: CLIP tokens per photo, class token included.
        token_width: width of a token.
        latent_channels: channels of the VAE latents; 0 leaves them out.
        latent_height: rows of the latent grid.
        latent_width: columns of the latent grid.
    """

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 50,
        token_width: int = 768,
        latent_channels: int = 4,
        latent_height: int = 80,
        latent_width: int = 64,
    ) -> None:
        super().__init__()
        self.grid = (latent_height // 2, latent_width // 2)
        cells = self.grid[0] * self.grid[1]
        self.project = nn.Linear(cells, token_width) if latent_channels else None
        self.mix = nn.Linear(num_tokens + latent_channels, num_tokens)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(num_tokens, num_tokens + latent_channels))
            self.mix.bias.zero_()

    def forward(
        self, clip_tokens: Float[Tensor, "b n d"], photo_latents: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b n d"]:
        """Returns the image condition of each photo.

        Args:
            clip_tokens: `last_hidden_state` of the image encoder.
            photo_latents: scaled latents of the same photos, of any height and width.
        """
        if self.project is None:
            return self.mix(clip_tokens.transpose(1, 2)).transpose(1, 2)
        pooled = F.max_pool2d(photo_latents.to(clip_tokens), 2)
        if tuple(pooled.shape[-2:]) != self.grid:
            pooled = F.interpolate(
                pooled.float(), self.grid, mode="bilinear", antialias=True, align_corners=False
            ).to(clip_tokens)
        latent_tokens = self.project(rearrange(pooled, "b c h w -> b c (h w)"))
        tokens = torch.cat([clip_tokens, latent_tokens], dim=1)
        return self.mix(tokens.transpose(1, 2)).transpose(1, 2)


def clip_tokens(
    image_encoder: CLIPVisionModel, photos: Float[Tensor, "b 3 H W"], fit: str = "letterbox"
) -> Float[Tensor, "b n d"]:
    """Encodes photos into CLIP tokens; differentiable.

    Args:
        image_encoder: its `last_hidden_state` is returned.
        photos: pixels in [-1, 1], any size.
        fit: 'letterbox' pads the photo to a square with its mean border colour; 'crop' takes the
            centre square, as the published code does.

    Raises:
        InputError: `fit` is neither 'letterbox' nor 'crop'.
    """
    if fit == "letterbox":
        square = _letterbox(photos)
    elif fit == "crop":
        side = min(photos.shape[-2:])
        top, left = (photos.shape[-2] - side) // 2, (photos.shape[-1] - side) // 2
        square = photos[..., top : top + side, left : left + side]
    else:
        raise InputError(f"photo_fit must be 'letterbox' or 'crop', got {fit!r}")
    side = image_encoder.config.image_size
    assert isinstance(side, int)
    resized = F.interpolate(
        square.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)
    mean = resized.new_tensor(CLIP_MEAN)[:, None, None]
    deviation = resized.new_tensor(CLIP_STD)[:, None, None]
    pixels = ((resized + 1) / 2 - mean) / deviation
    return image_encoder(pixels.to(image_encoder.dtype)).last_hidden_state


def patch_means(
    maps: Float[Tensor, "b c h w"], fit: str, num_patches: int
) -> tuple[Float[Tensor, "b n c"], Float[Tensor, " n"]]:
    """Averages maps over the image patches that the tokens of `clip_tokens` stand for.

    Args:
        maps: values over the photo on any grid, such as its latents.
        fit: as for `clip_tokens`.
        num_patches: tokens without the class token, a square number.

    Returns:
        The mean of each patch in token order, and the fraction of each patch inside the photo.
    """
    height, width = maps.shape[-2:]
    inside = torch.ones_like(maps[:1, :1])
    if fit == "letterbox":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        margins = (left, side - width - left, top, side - height - top)
        maps, inside = F.pad(maps, margins), F.pad(inside, margins)
    else:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        area = (..., slice(top, top + side), slice(left, left + side))
        maps, inside = maps[area], inside[area]
    grid = math.isqrt(num_patches)
    seen = F.adaptive_avg_pool2d(inside, grid)
    means = F.adaptive_avg_pool2d(maps, grid) / seen.clamp_min(1e-6)
    return rearrange(means, "b c h w -> b (h w) c"), seen.flatten()


def _letterbox(photos: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 s s"]:
    height, width = photos.shape[-2:]
    side = max(height, width)
    border = torch.cat(
        [photos[..., 0, :], photos[..., -1, :], photos[..., :, 0], photos[..., :, -1]], dim=-1
    )
    square = border.mean(-1)[..., None, None].expand(-1, -1, side, side).clone()
    top, left = (side - height) // 2, (side - width) // 2
    square[..., top : top + height, left : left + width] = photos
    return square


def pose_condition(
    windows: Float[Tensor, "b p u h w"], pose_range: tuple[float, float] = (0.0, 1.0)
) -> Float[Tensor, "b pc h w"]:
    """Concatenates the maps of a pose window along the channels: c_p = [p_{i-2} … p_{i+2}].

    Args:
        windows: pose maps in [0, 1].
        pose_range: values that 0 and 1 are mapped to.
    """
    low, high = pose_range
    joined = rearrange(windows, "b p c h w -> b (p c) h w")
    return joined if (low, high) == (0.0, 1.0) else joined * (high - low) + low


def surface_condition(
    codec: LatentCodec,
    warped: Float[Tensor, "b 3 H W"],
    confidence: Float[Tensor, "b 1 H W"],
    detail: int,
) -> Float[Tensor, "b sc h w"]:
    """Surface condition of the UNet: latents of the warped photo and its confidence.

    Args:
        codec: encodes the warped photo.
        warped: photo warped into the pose of each frame, in [-1, 1], at the size of the model.
        confidence: of each pixel of `warped`, in [0, 1].
        detail: rows and columns that a latent cell is divided into for the confidence; each part
            is a channel.
    """
    latents = codec.encode(warped)
    fine = (detail * latents.shape[-2], detail * latents.shape[-1])
    parts = F.interpolate(confidence.to(latents), fine, mode="area")
    return torch.cat([latents, F.pixel_unshuffle(parts, detail)], dim=1)


@torch.no_grad()
def encode_black_photo(
    image_encoder: CLIPVisionModel,
    codec: LatentCodec,
    height: int,
    width: int,
    fit: str,
    device: torch.device | None = None,
) -> tuple[Float[Tensor, "1 n d"], Float[Tensor, "1 c h w"]]:
    """Encodes a black photo: the adapter's input for the null image condition 'black'.

    The published code drops the photo by setting its pixels to zero before both encoders.

    Args:
        image_encoder: encodes the black pixels.
        codec: encodes an image whose values are 0 in the VAE's own range.
        height: in pixels.
        width: in pixels.
        fit: as for `clip_tokens`.
        device: where to compute, by default the device of the models.

    Returns:
        Tokens of the black photo and its scaled latents.
    """
    black = torch.full((1, 3, height, width), -1.0, device=device or image_encoder.device)
    return clip_tokens(image_encoder, black, fit), codec.encode_zeros(height, width, device)


def null_conditions(conditions: Conditions, *, image: bool = True, pose: bool = True) -> Conditions:
    """Replaces image tokens, pose maps or both by the null condition ∅.

    The surface condition needs both and becomes zero with either.

    Args:
        conditions: of one batch.
        image: replace the tokens by `null_tokens`, or by zeros where these are None.
        pose: replace the pose maps by zeros.
    """
    null = conditions.null_tokens
    if null is None:
        null = torch.zeros_like(conditions.tokens)
    return Conditions(
        tokens=null.to(conditions.tokens).expand_as(conditions.tokens)
        if image
        else conditions.tokens,
        poses=torch.zeros_like(conditions.poses) if pose else conditions.poses,
        null_tokens=conditions.null_tokens,
        surface=None
        if conditions.surface is None
        else torch.zeros_like(conditions.surface)
        if image or pose
        else conditions.surface,
    )


def drop_conditions(
    conditions: Conditions,
    generator: torch.Generator,
    *,
    pose: float,
    image: float,
    both: float,
) -> Conditions:
    """Drops the pose, the image or both at random, independently for each sample.

    The surface condition is dropped with either.

    Args:
        conditions: of a training batch.
        generator: a CPU generator; one uniform number is drawn per sample.
        pose: probability that only the pose is dropped.
        image: probability that only the image is dropped.
        both: probability that both are dropped; the three probabilities sum to at most 1.
    """
    assert pose + image + both <= 1
    draw = torch.rand(len(conditions.tokens), generator=generator)
    drop_pose = (draw < pose) | ((draw >= pose + image) & (draw < pose + image + both))
    drop_image = (draw >= pose) & (draw < pose + image + both)
    tokens = _zero(conditions.tokens, drop_image)
    if conditions.null_tokens is not None:
        tokens = tokens + _zero(conditions.null_tokens.expand_as(tokens), ~drop_image)
    return Conditions(
        tokens=tokens,
        poses=_zero(conditions.poses, drop_pose),
        null_tokens=conditions.null_tokens,
        surface=None
        if conditions.surface is None
        else _zero(conditions.surface, drop_pose | drop_image),
    )


def _zero(values: Float[Tensor, "b ..."], dropped: Bool[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    mask = dropped.to(values.device).reshape(-1, *[1] * (values.ndim - 1))
    return values.masked_fill(mask, 0)
