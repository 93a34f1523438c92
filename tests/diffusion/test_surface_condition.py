"""Models with surface condition and refiner."""

import numpy as np
import pytest
import torch
from PIL import Image

from dreampose import DreamPosePipeline, checkpoints, poses, synthetic
from dreampose.config import replace
from dreampose.diffusion import generation
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.adapter import drop_conditions, null_conditions
from dreampose.models.unet import Denoiser
from dreampose.synthetic.identity import identity
from dreampose.types import Clip, Conditions

FEW = {"scheduler": "DDIMScheduler", "num_inference_steps": 2, "align": False, "seed": 3}
REFINER = {"width": 8, "deep_width": 8}


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Frames and exact motion of a synthetic walk."""
    clip = synthetic.render_clip(
        identity(5, "train"), motion="walk", num_frames=6, height=128, width=96
    )
    path = synthetic.write_clip(clip, tmp_path_factory.mktemp("walk"), "walk")
    read = Clip(frames=clip.frames, fps=clip.fps, source=str(path))
    return clip.frames, poses.extract(read, poses.estimator("catwalk"), height=128, width=96)


@pytest.fixture(scope="module")
def surface_recipe(tiny_recipe):
    return replace(tiny_recipe, surface_detail=2, refiner=REFINER, upscale=2)


@pytest.fixture
def pipe(surface_recipe):
    torch.manual_seed(0)
    return checkpoints.build(surface_recipe)


def prepare(pipe, walk, **options):
    frames, motion = walk
    return generation.prepare(
        pipe, [frames[0]], motion, photo_poses=[motion.between(0, 1)], **{**FEW, **options}
    )


def test_a_new_condition_changes_nothing_at_first(tiny_recipe, walk):
    old = checkpoints.build(tiny_recipe)
    new = checkpoints.build(replace(tiny_recipe, surface_detail=2), seed=1)
    kept = checkpoints.take_over(new, old)
    assert all(name.startswith("vae.") for name in kept)
    new.vae.load_state_dict(old.vae.state_dict())
    frames = generation.render_frames(old, prepare(old, walk), [0, 3])
    request = prepare(new, walk)
    assert request.warps is not None
    assert np.array_equal(generation.render_frames(new, request, [0, 3]), frames)
    # And the condition does reach the UNet: other weights, other frames.
    with torch.no_grad():
        new.unet.conv_in.weight[:, -5:] = 0.5
    assert not np.array_equal(generation.render_frames(new, request, [0, 3]), frames)


def test_it_is_there_only_with_photo_and_pose():
    ones = torch.ones(4, 2, 3, 3)
    conditions = Conditions(tokens=torch.ones(4, 2, 3), poses=ones, surface=ones)
    for image, pose in ((True, True), (True, False), (False, True)):
        assert not null_conditions(conditions, image=image, pose=pose).surface.any()
    assert null_conditions(conditions, image=False, pose=False).surface.all()
    many = Conditions(
        tokens=torch.ones(400, 1, 1), poses=torch.ones(400, 1, 1, 1),
        surface=torch.ones(400, 1, 1, 1),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    dropped = drop_conditions(many, generator, pose=0.2, image=0.2, both=0.2)
    either = (dropped.tokens.flatten() == 0) | (dropped.poses.flatten() == 0)
    assert 0.4 < either.float().mean() < 0.8
    assert torch.equal(dropped.surface.flatten() == 0, either)


def test_without_a_warp_the_unet_sees_zeros(pipe):
    x = torch.randn(2, 8, 8, 6)
    shared = {"tokens": torch.randn(2, 5, 16), "poses": torch.randn(2, 10, 8, 6)}
    missing = Denoiser(unet=pipe.unet)(x, torch.tensor(5), Conditions(**shared))
    zeros = torch.zeros(2, pipe.recipe.surface_channels, 8, 6)
    given = Denoiser(unet=pipe.unet)(x, torch.tensor(5), Conditions(**shared, surface=zeros))
    assert torch.equal(missing, given)


def test_frames_have_the_upscaled_size_and_do_not_depend_on_chunks(pipe, walk):
    request = prepare(pipe, walk)
    whole = generation.render_frames(pipe, request, range(6))
    assert whole.shape == (6, 128, 96, 3)
    pairs = [generation.render_frames(pipe, request, [i, i + 1]) for i in (0, 2, 4)]
    assert np.abs(np.concatenate(pairs).astype(int) - whole).max() <= 2
    small = prepare(pipe, walk, upscale=1)
    assert generation.render_frames(pipe, small, [0]).shape == (1, 64, 48, 3)
    with pytest.raises(InputError, match="same size"):
        generation.render_requests(pipe, [(request, [0]), (small, [0])])


def test_the_preview_needs_no_diffusion(pipe, walk):
    for parameter in pipe.unet.parameters():
        parameter.data.fill_(float("nan"))
    frames, _ = walk
    request = prepare(pipe, walk, preset="preview", num_inference_steps=None, scheduler=None)
    assert request.num_model_calls == 0
    found = generation.render_frames(pipe, request, range(6))
    # An untrained refiner shows the warp, which for the photo's own pose is the photo.
    warp = request.warps[:, :3].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, warp)
    photo = video.fit(frames[:1], 128, 96)[0].astype(int)
    assert np.abs(found[0].astype(int) - photo).mean() < 6
    assert (
        np.abs(found[3].astype(int) - photo).mean()
        > np.abs(found[3].astype(int) - video.fit(frames[3:4], 128, 96)[0]).mean()
    )


def test_the_preview_of_a_model_without_refiner_is_rejected(tiny_pipeline, walk):
    with pytest.raises(InputError, match="refiner"):
        prepare(tiny_pipeline, walk, preset="preview", num_inference_steps=None)


def test_the_folder_keeps_the_refiner(pipe, walk, tmp_path):
    with torch.no_grad():
        torch.nn.init.normal_(pipe.refiner.leave.weight, std=0.1)
    checkpoints.save(pipe, tmp_path / "model", dtype=None)
    loaded = checkpoints.load(tmp_path / "model")
    request = prepare(pipe, walk)
    expected = generation.render_frames(pipe, request, [1])
    assert np.array_equal(generation.render_frames(loaded, request, [1]), expected)
    assert checkpoints.num_parameters(loaded)["refiner"] > 0


def test_a_recipe_and_its_refiner_belong_together(pipe, tiny_pipeline):
    parts = dict(tiny_pipeline.components)
    with pytest.raises(InputError, match="refiner"):
        DreamPosePipeline(
            **{**parts, "refiner": pipe.refiner}, recipe=tiny_pipeline.config["recipe"]
        )


def test_the_result_states_the_share_backed_by_a_photo(pipe, walk):
    frames, motion = walk
    result = pipe(
        Image.fromarray(frames[0]), motion, photo_poses=[motion.between(0, 1)], **FEW,
        output_type="np",
    )  # fmt: skip
    assert result.backed.shape == (6,)
    assert 0.5 < result.backed[0] <= 1
    assert result.backed[0] > result.backed[3]


def test_uv_without_parts_is_rejected(pipe, walk):
    frames, motion = walk
    other = poses.Motion(
        maps=motion.maps, joints=motion.joints[:, :24], confidence=motion.confidence,
        fps=motion.fps, estimator="densepose",
    )  # fmt: skip
    with pytest.raises(InputError, match="part, U and V"):
        generation.prepare(pipe, [frames[0]], other, photo_poses=[other.between(0, 1)], **FEW)


def test_photos_without_poses_are_read_by_blazepose(pipe):
    clip = synthetic.render_clip(
        identity(5, "train"), motion="walk", num_frames=6, height=320, width=240
    )
    read = Clip(frames=clip.frames, fps=clip.fps, source="walk")
    motion = poses.extract(read, poses.estimator("blazepose"), height=128, width=96)
    request = generation.prepare(pipe, [clip.frames[0]], motion, **FEW)
    shown = request.warps[0, :3].permute(1, 2, 0).numpy().astype(int)
    body = request.warps[0, 4].numpy() > 0
    truth = video.fit(clip.frames[:1], 128, 96)[0]
    parts = video.fit(
        np.repeat(clip.parts[:1, ..., None] > 0, 3, -1).astype(np.uint8) * 255, 128, 96
    )
    person = parts[0, ..., 0] > 127
    assert (body & person).sum() > 0.8 * person.sum()
    assert (body & ~person).sum() < 0.2 * person.sum()
    assert np.abs(shown - truth)[person].mean() < 12
