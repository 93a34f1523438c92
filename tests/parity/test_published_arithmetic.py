"""A request with imported weights against the published arithmetic.

What the published training did is the truth: photos and poses in [-1, 1], or in [0, 1] with later
scripts, CLIP's centre square, a black photo as the null image; the sampler is PNDM's linear
multistep (arXiv 2202.09778, eq. 12).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import UNet2DConditionModel

from dreampose import convert
from dreampose.diffusion import generation
from dreampose.io import video
from dreampose.models.adapter import (
    CLIP_MEAN,
    CLIP_STD,
    drop_conditions,
    encode_black_photo,
    pose_condition,
)
from dreampose.models.unet import Denoiser
from dreampose.models.vae import LatentCodec
from dreampose.poses import Motion
from dreampose.types import Conditions

NUM_STEPS = 6


@pytest.fixture
def adapter():
    return {
        "vae2clip.weight": torch.randn(16, 20) / 5,
        "vae2clip.bias": torch.randn(16) / 5,
        "linear1.weight": torch.eye(5, 9) + torch.randn(5, 9) / 10,
        "linear1.bias": torch.randn(5) / 10,
    }


@pytest.fixture(params=[(-1.0, 1.0), convert.LATER_RANGE], ids=["released", "later"])
def limits(request):
    """Range of photos and poses in training."""
    return request.param


@pytest.fixture
def pipe(sd_folder, sd_recipe, adapter, tmp_path, limits):
    unet = UNet2DConditionModel(**{**sd_recipe.unet, "in_channels": 14}).state_dict()
    torch.save({f"module.{key}": value for key, value in unet.items()}, tmp_path / "unet.pth")
    torch.save(adapter, tmp_path / "adapter.pth")
    stated = {} if limits == (-1.0, 1.0) else {"image_range": limits, "pose_range": limits}
    pipe, _ = convert.import_model(
        sd_folder, unet=tmp_path / "unet.pth", adapter=tmp_path / "adapter.pth", **stated
    )
    assert pipe.recipe.image_range == pipe.recipe.pose_range == limits
    return pipe


@pytest.fixture
def motion():
    return Motion(
        maps=np.random.default_rng(0).random((6, 2, 80, 64), np.float32),
        joints=np.zeros((6, 3, 4), np.float32),
        confidence=np.ones(6, np.float32),
        fps=10.0,
        estimator="drawn",
    )


@pytest.fixture
def photo():
    return np.random.default_rng(1).integers(0, 256, (80, 64, 3)).astype(np.uint8)


def close(actual, expected):
    """To 1e-5 of the largest value."""
    error = (actual.double() - expected.double()).abs().max() / expected.abs().max()
    assert error <= 1e-5, float(error)


def published_tokens(pipe, adapter, pixels, limits, dropped=False):
    """c_I of pixels (1 3 80 64) in [0, 1]: encoders, then the adapter as sums.

    The VAE sees them in the range of training; a dropped photo is zeros to it in either range.
    """
    square = pixels[..., 8:72, :]
    small = F.interpolate(square, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    normal = (small - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[
        :, None, None
    ]
    clip = pipe.image_encoder(normal).last_hidden_state[0]
    low, high = limits
    seen = pixels * 0 if dropped else pixels * (high - low) + low
    latents = pipe.vae.encode(seen).latent_dist.mode()[0] * 0.18215
    pooled = latents.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2)).reshape(4, 20)
    vae_tokens = pooled @ adapter["vae2clip.weight"].T + adapter["vae2clip.bias"]
    tokens = torch.cat([clip, vae_tokens])
    return (adapter["linear1.weight"] @ tokens + adapter["linear1.bias"][:, None])[None]


def plms(eps, latents, betas, num_steps):
    """PNDM without its Runge-Kutta start, on 1000 training steps with an offset of 1."""
    alphas = (1 - betas).cumprod(0)
    ratio = 1000 // num_steps
    times = [index * ratio + 1 for index in range(num_steps)]
    times = [*times[:-1], times[-2], times[-1]][::-1]

    def move(x, e, t, s):
        a, b = alphas[t], alphas[s] if s >= 0 else alphas[0]
        scale = a * (1 - b).sqrt() + (a * (1 - a) * b).sqrt()
        return (b / a).sqrt() * x - (b - a) * e / scale

    past, start = [], latents
    for index, t in enumerate(times):
        e = eps(latents, t)
        if index == 1:  # the first step again, by the mean of both ends: Heun
            latents = move(start, (e + past[-1]) / 2, t + ratio, t)
            continue
        past.append(e)
        if index == 0:
            mixed = e
        elif len(past) == 2:
            mixed = (3 * past[-1] - past[-2]) / 2
        elif len(past) == 3:
            mixed = (23 * past[-1] - 16 * past[-2] + 5 * past[-3]) / 12
        else:
            mixed = (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24
        latents = move(latents, mixed, t, t - ratio)
    return latents


@torch.no_grad()
def test_a_request_is_the_published_arithmetic(pipe, adapter, photo, motion, monkeypatch, limits):
    request = generation.prepare(
        pipe, [photo], motion, num_inference_steps=NUM_STEPS, seed=3, align=False
    )
    assert (request.image_scale, request.pose_scale) == (8.0, 3.0)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    tokens = published_tokens(pipe, adapter, pixels, limits)
    null = published_tokens(pipe, adapter, torch.zeros_like(pixels), limits, dropped=True)
    close(request.photo_tokens, tokens)
    close(request.null_tokens, null)

    # Five poses around each frame, the ends repeated; every eighth pixel of each map.
    low, high = limits
    poses = {}
    for frame in range(3):
        around = [min(max(frame + step, 0), 5) for step in range(-2, 3)]
        window = np.concatenate([motion.maps[i] for i in around])[:, ::8, ::8]
        poses[frame] = torch.from_numpy(window.copy())[None] * (high - low) + low
        close(request.poses[frame : frame + 1], poses[frame])

    decoded = []
    decode = LatentCodec.decode

    def record(self, latents):
        decoded.append(latents)
        return decode(self, latents)

    monkeypatch.setattr(LatentCodec, "decode", record)
    pipe.unet.double()
    frames = generation.render_frames(pipe, request, [0, 1, 2])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32).double() ** 2
    errors = []
    for frame in range(3):

        def eps(latents, t, pose=poses[frame]):
            """The published order of branches: none, both, image alone."""
            branches = [torch.cat([latents, p], 1) for p in (pose * 0, pose, pose * 0)]
            conditions = torch.cat([null, tokens, tokens]).double()
            guess = pipe.unet(torch.cat(branches), t, encoder_hidden_states=conditions).sample
            none, both, image = guess.chunk(3)
            return none + 8 * (image - none) + 3 * (both - image)

        latents = plms(eps, request.noise.double(), betas, NUM_STEPS)
        close(decoded[0][frame : frame + 1], latents)
        image = (pipe.vae.decode(latents.float() / 0.18215).sample - low) / (high - low)
        expected = (image.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
        errors.append(np.abs(frames[frame] - expected))
    # One grey level where rounding falls the other way, on average below a thousandth.
    assert np.max(errors) <= 1 and np.mean(errors) / 255 <= 1e-3


@torch.no_grad()
def test_ranges_can_be_others(pipe):
    codec = LatentCodec(vae=pipe.vae, image_range=(-2.0, 6.0))
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    plain = LatentCodec(vae=pipe.vae)
    close(codec.encode(images), plain.encode(images * 4 + 2))
    latents = torch.randn(1, 4, 2, 2)
    close(codec.decode(latents), (plain.decode(latents) - 2) / 4)
    close(codec.encode_zeros(16, 16), plain.encode(torch.zeros(1, 3, 16, 16)))
    windows = torch.rand(1, 5, 2, 4, 3)
    close(pose_condition(windows, (-1.0, 1.0)), (windows.flatten(1, 2) - 0.5) / 0.5)


@torch.no_grad()
def test_dropped_photos_are_black_photos_in_training(pipe, adapter, limits):
    recipe = pipe.recipe
    codec = LatentCodec(vae=pipe.vae, image_range=recipe.image_range)
    blank = encode_black_photo(pipe.image_encoder, codec, 80, 64, recipe.photo_fit)
    null = pipe.adapter(*blank)
    close(null, published_tokens(pipe, adapter, torch.zeros(1, 3, 80, 64), limits, dropped=True))
    conditions = Conditions(
        tokens=torch.randn(4, 5, 16), poses=torch.rand(4, 10, 10, 8), null_tokens=null
    )
    dropped = drop_conditions(
        conditions, torch.Generator().manual_seed(0), pose=0.0, image=1.0, both=0.0
    )
    assert torch.equal(dropped.tokens, null.expand(4, -1, -1))
    assert torch.equal(dropped.poses, conditions.poses)
    kept = drop_conditions(
        conditions, torch.Generator().manual_seed(0), pose=1.0, image=0.0, both=0.0
    )
    assert torch.equal(kept.tokens, conditions.tokens)
    assert not kept.poses.any()


def test_white_stays_white(pipe):
    """The published sampler's washed-out frames come from mixing ranges; one range has none."""
    codec = LatentCodec(vae=pipe.vae, image_range=(0.0, 1.0))
    white = torch.ones(1, 3, 8, 8)
    assert torch.equal(codec.to_range(white), white)
    assert torch.equal(codec.to_range(-white), torch.zeros_like(white))
    assert (video.to_pixels(white) == 255).all()


@torch.no_grad()
def test_the_adapter_and_the_input_of_the_unet(pipe, adapter, limits):
    """Their parts, one by one: c_I as sums, and latents before five poses of U and V."""
    clip, latents = torch.randn(1, 5, 16), torch.randn(1, 4, 10, 8)
    pooled = latents[0].unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2)).reshape(4, 20)
    vae_tokens = pooled @ adapter["vae2clip.weight"].T + adapter["vae2clip.bias"]
    stacked = torch.cat([clip[0], vae_tokens])
    expected = adapter["linear1.weight"] @ stacked + adapter["linear1.bias"][:, None]
    close(pipe.adapter(clip, latents)[0], expected)

    seen = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    windows = torch.rand(1, 5, 2, 10, 8)
    low, high = limits
    conditions = Conditions(tokens=expected[None], poses=pose_condition(windows, limits))
    Denoiser(unet=pipe.unet)(latents, torch.tensor(9), conditions)
    wanted = torch.cat([latents, windows.reshape(1, 10, 10, 8) * (high - low) + low], dim=1)
    close(seen[0], wanted)


@torch.no_grad()
def test_the_vae_sees_frames_in_the_usual_memory_layout(pipe, photo):
    """Channels last, its normalisation is off by thousandths on the CPU."""
    images = video.to_model(photo[None])
    assert not images.is_contiguous()
    codec = LatentCodec(vae=pipe.vae)
    assert torch.equal(codec.encode(images), codec.encode(images.contiguous()))


@torch.no_grad()
def test_the_range_of_training_has_the_smaller_loss(pipe, photo, motion, monkeypatch, limits):
    """A UNet that knows the noise of latents in one range is measured to be of that range."""
    codec = LatentCodec(vae=pipe.vae, image_range=limits)
    clean = codec.encode(video.to_model(photo[None]))
    alphas = pipe.scheduler.alphas_cumprod

    def predict(self, x, t, conditions):
        assert conditions.poses.min() >= limits[0] - 1e-6 or conditions.poses.min() < 0
        return (x - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt()

    monkeypatch.setattr(Denoiser, "__call__", predict)
    losses = convert.compare_ranges(pipe, photo, motion)
    assert set(losses) == {(-1.0, 1.0), (0.0, 1.0)}
    assert losses[limits] < 1e-6 < min(v for k, v in losses.items() if k != limits)
