"""Video generation: preparing a request and rendering its frames."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from dreampose import poses
from dreampose.config import PRESETS, Recipe
from dreampose.data.motions import extract_motion
from dreampose.data.windows import windows
from dreampose.diffusion.guidance import guide
from dreampose.diffusion.sampling import denoise, num_model_calls
from dreampose.diffusion.schedulers import scheduler_by_name
from dreampose.errors import InputError, PoseKindWarning
from dreampose.io import video
from dreampose.models import subject
from dreampose.models.adapter import (
    clip_tokens,
    encode_black_photo,
    pose_condition,
    surface_condition,
)
from dreampose.models.subject import Components, Photo
from dreampose.models.unet import Denoiser
from dreampose.models.vae import LatentCodec
from dreampose.poses import Motion
from dreampose.surface.motion import PosedPhoto, warp_motion
from dreampose.types import Clip, Conditions, Model


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything a video depends on besides the weights; tensors are float32 on the CPU.

    `prepare` makes a request once; any process with the same model can then render any of its
    frames.

    Attributes:
        photo_tokens: image condition c_I of each of the m photos.
        photo_choice: index of the photo used in each call of the model.
        noise: initial noise, shared by all frames.
        poses: pose condition c_p of every frame.
        scheduler: class name of a diffusers scheduler.
        scheduler_kwargs: options of the scheduler.
        num_inference_steps: sampling steps.
        image_scale: guidance scale s_I.
        pose_scale: guidance scale s_p.
        step_seed: seed of the noise added by stochastic schedulers, shared by all frames.
        fps: frames per second of the motion.
        null_tokens: null image condition; None stands for zeros.
        warps: photos warped into every frame, at the size of the rendered frames: red, green,
            blue, confidence and body, see `dreampose.surface.motion.warp_motion`; None for models
            without a surface condition.
    """

    photo_tokens: Float[Tensor, "m n d"]
    photo_choice: Int64[Tensor, " steps"]
    noise: Float[Tensor, "1 c h w"]
    poses: Float[Tensor, "t pc h w"]
    scheduler: str
    scheduler_kwargs: Mapping[str, Any]
    num_inference_steps: int
    image_scale: float
    pose_scale: float
    step_seed: int
    fps: float
    null_tokens: Float[Tensor, "1 n d"] | None = None
    warps: UInt8[Tensor, "t 5 H W"] | None = None

    @property
    def num_frames(self) -> int:
        """Number of frames of the video."""
        return len(self.poses)

    @property
    def num_model_calls(self) -> int:
        """Number of model calls per batch of frames."""
        return len(self.photo_choice)


@torch.no_grad()
def prepare(
    pipe: Components,
    photos: Sequence[Photo],
    motion: Motion,
    *,
    preset: str = "exact",
    scheduler: str | None = None,
    scheduler_kwargs: Mapping[str, Any] | None = None,
    num_inference_steps: int | None = None,
    image_scale: float | None = None,
    pose_scale: float | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    align: bool = True,
    check_subject: bool = True,
    size: tuple[int, int] | None = None,
    photo_poses: Sequence[Motion] | None = None,
    upscale: int | None = None,
) -> Request:
    """Encodes photos, poses and noise of a request.

    Args:
        pipe: the model.
        photos: one or several photos of one subject, any size. With several, each call of the
            model uses one picked at random (paper: 3 help, more than 5 add little).
        motion: at least as many frames as the pose window of the model.
        preset: name in `dreampose.config.PRESETS`; the next five arguments override its values.
        scheduler: class name of a diffusers scheduler.
        scheduler_kwargs: options of the scheduler.
        num_inference_steps: sampling steps, at least 1.
        image_scale: guidance scale s_I, at least 0.
        pose_scale: guidance scale s_p, at least 0.
        seed: of all randomness in the request.
        generator: a CPU generator used instead of `seed`; its state advances.
        align: move and scale the motion to the body in the first photo.
        check_subject: warn if the photos do not show the subject whose weights are loaded.
        size: height and width of the frames in pixels; by default the size of the model, or the
            one of its sizes with the aspect ratio closest to the motion's.
        photo_poses: poses of the photos, each a motion of one frame, from the estimator that the
            motion is from; by default BlazePose's. Used by models with a surface condition.
        upscale: size of the rendered frames over `size`, for models with a refiner; by default
            the recipe's; 1 where `size` is given or the poses are maps of a lower resolution.

    Raises:
        InputError: an argument is out of range; no body is found in a photo; or the poses do not
            name places of the body's surface, for models with a surface condition.
    """
    recipe = pipe.recipe.at(*(size or pipe.recipe.size_for(motion.height, motion.width)))
    if preset not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if not PRESETS[preset].num_steps and pipe.refiner is None:
        raise InputError(f"preset {preset!r} needs a model with a refiner, got one without")
    if not photos:
        raise InputError("photos must contain at least one photo, got none")
    _check_motion(motion, recipe)
    if recipe.pose_kind != "any" and (recipe.pose_kind == "painted") != motion.painted:
        _warn_pose_kind(motion, recipe)
    chosen = PRESETS[preset]
    if scheduler is None:
        scheduler = chosen.scheduler
        scheduler_kwargs = {**chosen.scheduler_kwargs, **(scheduler_kwargs or {})}
    num_steps = chosen.num_steps if num_inference_steps is None else num_inference_steps
    num_calls = 0
    if num_steps or num_inference_steps is not None:
        sampler = scheduler_by_name(scheduler, pipe.scheduler.config, **(scheduler_kwargs or {}))
        num_calls = num_model_calls(sampler, num_steps)

    if check_subject and pipe.subject is not None:
        subject.warn_on_mismatch(pipe.subject, photos)
    if align:
        # At the motion's resolution, which can be higher than the model's, as in training.
        first = photo_pose(photos[0], motion.height, motion.width, recipe.frame_fit)
        motion = poses.align(motion, first)
    warps = None
    if recipe.needs_surface:
        warps = _warps(recipe, photos, motion, photo_poses, upscale, sized=size is not None)

    photo_tokens, null_tokens = _encode_photos(pipe, photos, recipe)
    grid = poses.to_grid(motion.maps, recipe.latent_size, recipe.pose_resize, recipe.pose_detail)
    frames = torch.from_numpy(windows(motion.num_frames, recipe.num_poses))
    generator = torch.Generator().manual_seed(seed) if generator is None else generator
    noise = torch.randn(1, recipe.latent_channels, *recipe.latent_size, generator=generator)
    return Request(
        photo_tokens=photo_tokens,
        photo_choice=torch.randint(len(photos), (num_calls,), generator=generator),
        noise=noise,
        poses=pose_condition(grid[frames].float(), recipe.pose_range),
        null_tokens=null_tokens,
        scheduler=scheduler,
        scheduler_kwargs=dict(scheduler_kwargs or {}),
        num_inference_steps=num_steps,
        image_scale=_scale("image_scale", image_scale, chosen.image_scale, recipe.image_scale),
        pose_scale=_scale("pose_scale", pose_scale, chosen.pose_scale, recipe.pose_scale),
        step_seed=int(torch.randint(2**62, (), generator=generator)),
        fps=motion.fps,
        warps=warps,
    )


def _check_motion(motion: Motion, recipe: Recipe) -> None:
    if motion.num_frames < recipe.num_poses:
        raise InputError(
            f"motion must have at least num_poses = {recipe.num_poses} frames, "
            f"got {motion.num_frames}"
        )
    if motion.num_channels != recipe.pose_channels:
        raise InputError(
            f"motion must have maps of pose_channels = {recipe.pose_channels}, "
            f"got {motion.num_channels}"
        )
    ratio, expected = motion.width / motion.height, recipe.width / recipe.height
    if abs(math.log(ratio / expected)) > 0.02:
        raise InputError(
            f"motion must have the aspect ratio of the frames, {recipe.height}x{recipe.width}, "
            f"got {motion.height}x{motion.width}: extract it again at that size"
        )


def _encode_photos(
    pipe: Components, photos: Sequence[Photo], recipe: Recipe
) -> tuple[Float[Tensor, "m n d"], Float[Tensor, "1 n d"] | None]:
    """Image condition of each photo, and the null condition if it is not zeros."""
    size = (recipe.height, recipe.width)
    fitted = [video.fit(photo[None], *size, recipe.frame_fit) for photo in photos]
    images = video.to_model(np.concatenate(fitted)).to(pipe.execution_device)
    codec = LatentCodec(vae=pipe.vae, image_range=recipe.image_range)
    tokens = clip_tokens(pipe.image_encoder, images, recipe.photo_fit)
    photo_tokens = pipe.adapter(tokens.to(pipe.adapter.dtype), codec.encode(images)).float().cpu()
    if recipe.null_image != "black":
        return photo_tokens, None
    black, black_latents = encode_black_photo(
        pipe.image_encoder,
        codec,
        recipe.height,
        recipe.width,
        recipe.photo_fit,
        pipe.execution_device,
    )
    null_tokens = pipe.adapter(black.to(pipe.adapter.dtype), black_latents)
    return photo_tokens, null_tokens.float().cpu()


def _warps(
    recipe: Recipe,
    photos: Sequence[Photo],
    motion: Motion,
    photo_poses: Sequence[Motion] | None,
    upscale: int | None,
    *,
    sized: bool,
) -> UInt8[Tensor, "t 5 H2 W2"]:
    """Photos warped into every frame of a motion, at the size of the rendered frames."""
    if photo_poses is not None and len(photo_poses) != len(photos):
        raise InputError(
            f"photo_poses must be as many as the photos, {len(photos)}, got {len(photo_poses)}"
        )
    if upscale is None and sized:
        upscale = 1
    if upscale is None:
        # Maps have a resolution; points have none.
        finest = recipe.upscale if motion.painted else max(1, motion.height // recipe.height)
        upscale = min(recipe.upscale, finest)
    if upscale < 1 or (upscale > 1 and recipe.refiner is None):
        raise InputError(f"upscale must be at least 1, and 1 without a refiner, got {upscale}")
    height, width = upscale * recipe.height, upscale * recipe.width
    posed: list[PosedPhoto] = []
    for index, photo in enumerate(photos):
        picture = video.fit(photo[None], height, width, recipe.frame_fit)[0]
        if photo_poses is None:
            pose = photo_pose(photo, height, width, recipe.frame_fit)
            mask = poses.segment(picture)
        else:
            pose = photo_poses[index]
            mask = poses.segment(picture) if pose.painted else None
        posed.append(PosedPhoto(picture=picture, pose=pose, mask=mask))
    return torch.from_numpy(warp_motion(posed, motion))


def _warn_pose_kind(motion: Motion, recipe: Recipe) -> None:
    wanted = {"densepose": "DensePose maps", "painted": "maps painted from body points"}
    got = "painted from body points" if motion.painted else "read from the body's surface"
    hint = " (--estimator densepose:FILE)" if recipe.pose_kind == "densepose" else ""
    warnings.warn(
        f"the weights were trained with {wanted[recipe.pose_kind]}, the motion's maps are {got} "
        f"({motion.estimator or 'of unknown origin'}): extract the motion with what the weights "
        f"were trained with{hint}, or expect wrong limbs",
        PoseKindWarning,
        stacklevel=3,
    )


def photo_pose(photo: Photo, height: int, width: int, fit: str = "letterbox") -> Motion:
    """Extracts the pose of a photo, as a motion of one frame.

    Args:
        photo: any size; it is fitted to `height` and `width`.
        height: of the motion, in pixels.
        width: of the motion, in pixels.
        fit: how it is fitted, as `Recipe.frame_fit`.

    Raises:
        InputError: no body is found in the photo.
    """
    clip = Clip(frames=photo[None], fps=1.0, source="photo")
    reader = poses.estimator("blazepose")
    return extract_motion(clip, reader, height=height, width=width, fit=fit)


def render_frames(
    pipe: Components,
    request: Request,
    indices: Sequence[int],
    *,
    callback: Callable[[int, int], None] | None = None,
    join_branches: bool = True,
) -> UInt8[np.ndarray, "n H W 3"]:
    """Renders some frames of a request as one batch.

    A frame depends only on the request and its index. With equal batch sizes it is bitwise equal,
    with different batch sizes equal up to float rounding (one or two grey levels).

    Args:
        pipe: the model that prepared the request.
        request: result of `prepare`.
        indices: of the frames to render, in [0, request.num_frames).
        callback: called after every call of the model with (calls made, total calls).
        join_branches: compute the guidance branches as one batch; False needs less memory.

    Returns:
        Frames in the order of `indices`, 8-bit RGB.

    Raises:
        InputError: an index is out of range.
    """
    parts = [(request, indices)]
    return render_requests(pipe, parts, callback=callback, join_branches=join_branches)[0]


@torch.no_grad()
def render_requests(
    pipe: Components,
    parts: Sequence[tuple[Request, Sequence[int]]],
    *,
    callback: Callable[[int, int], None] | None = None,
    join_branches: bool = True,
) -> list[UInt8[np.ndarray, "n H W 3"]]:
    """Renders frames of several requests as one batch.

    Args:
        pipe: the model that prepared the requests.
        parts: at least one request with the indices of its frames to render; all pairs of requests
            must satisfy `can_share_batch`.
        callback: as in `render_frames`.
        join_branches: as in `render_frames`.

    Returns:
        Frames of each part, 8-bit RGB.

    Raises:
        InputError: an index is out of range, or requests cannot share a batch.
    """
    for request, indices in parts:
        for index in indices:
            if not 0 <= index < request.num_frames:
                raise InputError(f"indices must be in [0, {request.num_frames}), got {index}")
    shared, device = parts[0][0], pipe.execution_device
    if not all(can_share_batch(shared, request) for request, _ in parts[1:]):
        raise InputError(
            "parts must have the same size, scheduler, steps and scales, got different ones"
        )
    counts = [len(indices) for _, indices in parts]
    warped = _warped_photos(parts, device)
    if not shared.num_inference_steps:
        assert warped is not None
        return _to_frames(pipe, None, warped, counts)
    scheduler = scheduler_by_name(
        shared.scheduler, pipe.scheduler.config, **shared.scheduler_kwargs
    )
    codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
    surface = None
    if warped is not None and pipe.recipe.surface_detail:
        surface = warped.condition(codec, pipe.recipe, shared.noise.shape[-2])

    noise = [
        request.noise.expand(count, -1, -1, -1)
        for (request, _), count in zip(parts, counts, strict=True)
    ]
    latents = torch.cat(noise).to(device)
    for step in denoise(
        _GuidedModel(pipe, parts, surface, join_branches=join_branches),
        latents,
        scheduler,
        shared.num_inference_steps,
        seeds=[
            request.step_seed
            for (request, _), count in zip(parts, counts, strict=True)
            for _ in range(count)
        ],
    ):
        latents = step.latents
        if callback is not None:
            callback(step.index + 1, step.num_steps)
    return _to_frames(pipe, codec.decode(latents), warped, counts)


class _GuidedModel:
    """(x, t) -> guided prediction for frames of several requests.

    Each call uses the photos that the requests have chosen for it.
    """

    def __init__(
        self,
        pipe: Components,
        parts: Sequence[tuple[Request, Sequence[int]]],
        surface: Float[Tensor, "b sc h w"] | None,
        *,
        join_branches: bool,
    ) -> None:
        self._denoiser = Denoiser(unet=pipe.unet)
        self._device, self._surface = pipe.execution_device, surface
        self._requests = [request for request, _ in parts]
        self._counts = [len(indices) for _, indices in parts]
        self._join_branches = join_branches
        poses = [request.poses[list(indices)] for request, indices in parts]
        self._poses = torch.cat(poses).to(self._device)
        null_tokens = self._requests[0].null_tokens
        self._null_tokens = None if null_tokens is None else null_tokens.to(self._device)
        choices = (request.photo_choice.tolist() for request in self._requests)
        self._choices = zip(*choices, strict=True)
        # Cached, because there are fewer combinations of photos than calls.
        self._cached = lru_cache(maxsize=8)(self._with_photos)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._cached(next(self._choices))(x, t)

    def _with_photos(self, photos: tuple[int, ...]) -> Model:
        tokens = [
            request.photo_tokens[photo].expand(count, -1, -1)
            for request, photo, count in zip(self._requests, photos, self._counts, strict=True)
        ]
        shared = self._requests[0]
        return guide(
            self._denoiser,
            Conditions(
                tokens=torch.cat(tokens).to(self._device),
                poses=self._poses,
                null_tokens=self._null_tokens,
                surface=self._surface,
            ),
            shared.image_scale,
            shared.pose_scale,
            join_branches=self._join_branches,
        )


@dataclass(frozen=True, kw_only=True)
class _Warped:
    """Warped photos of a batch: pixels in [-1, 1], confidence and body in [0, 1]."""

    pictures: Float[Tensor, "b 3 H W"]
    confidence: Float[Tensor, "b 1 H W"]
    body: Float[Tensor, "b 1 H W"]

    def condition(
        self, codec: LatentCodec, recipe: Recipe, latent_height: int
    ) -> Float[Tensor, "b sc h w"]:
        """The surface condition of the UNet, on a latent grid of that height."""
        factor = self.pictures.shape[-2] // (latent_height * recipe.downscale)
        pictures, confidence = self.pictures, self.confidence
        if factor > 1:
            pictures, confidence = (
                functional.avg_pool2d(values, factor) for values in (pictures, confidence)
            )
        return surface_condition(codec, pictures, confidence, recipe.surface_detail)


def _warped_photos(
    parts: Sequence[tuple[Request, Sequence[int]]], device: torch.device
) -> _Warped | None:
    found = [
        request.warps[list(indices)] for request, indices in parts if request.warps is not None
    ]
    if not found:
        return None
    planes = torch.cat(found).to(device=device, dtype=torch.float32)
    pictures, confidence, body = planes.split([3, 1, 1], dim=1)
    return _Warped(pictures=pictures / 127.5 - 1, confidence=confidence / 255, body=body / 255)


def _to_frames(
    pipe: Components,
    decoded: Float[Tensor, "b 3 H W"] | None,
    warped: _Warped | None,
    counts: Sequence[int],
) -> list[UInt8[np.ndarray, "n H2 W2 3"]]:
    """Refines decoded pictures, or where there are none the warped photos; 8-bit RGB."""
    if pipe.refiner is not None and warped is not None:
        shown = warped.pictures
        if decoded is not None:
            shown = decoded.float().clamp(-1, 1)
            if shown.shape[-2:] != warped.pictures.shape[-2:]:
                size = tuple(warped.pictures.shape[-2:])
                shown = functional.interpolate(shown, size, mode="bilinear", align_corners=False)
        inputs = (shown, warped.pictures, warped.confidence, warped.body)
        decoded = pipe.refiner(*(values.to(pipe.refiner.dtype) for values in inputs)).float()
    assert decoded is not None
    return np.split(video.to_pixels(decoded), np.cumsum(counts)[:-1])


def can_share_batch(one: Request, other: Request) -> bool:
    """Whether frames of two requests of the same model can be rendered in one batch."""
    names = ("scheduler", "num_inference_steps", "image_scale", "pose_scale")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and dict(one.scheduler_kwargs) == dict(other.scheduler_kwargs)
        and one.noise.shape == other.noise.shape
        and one.poses.shape[1:] == other.poses.shape[1:]
        and one.photo_tokens.shape[1:] == other.photo_tokens.shape[1:]
        and _same(one.null_tokens, other.null_tokens)
        and _warp_size(one) == _warp_size(other)
    )


def _warp_size(request: Request) -> tuple[int, ...] | None:
    return None if request.warps is None else tuple(request.warps.shape[1:])


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _scale(name: str, given: float | None, preset: float | None, recipe: float) -> float:
    scale = given if given is not None else preset if preset is not None else recipe
    if not (math.isfinite(scale) and scale >= 0):
        raise InputError(f"{name} must be a number of at least 0, got {scale}")
    return float(scale)
