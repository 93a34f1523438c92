"""Preparation of requests and rendering of frames."""

import pickle

import numpy as np
import pytest
import torch

from dreampose import checkpoints
from dreampose.config import replace
from dreampose.diffusion import generation
from dreampose.errors import InputError
from dreampose.poses import Motion

FEW = {"scheduler": "DDIMScheduler", "num_inference_steps": 2, "align": False}


def motion(num_frames=7, height=64, width=48):
    maps = np.random.default_rng(0).random((num_frames, 2, height, width), dtype=np.float32)
    joints = np.zeros((num_frames, 33, 4), np.float32)
    return Motion(maps=maps, joints=joints, confidence=np.ones(num_frames, np.float32), fps=12.5)


def photos(count=1):
    return list(np.random.default_rng(1).integers(0, 256, (count, 80, 50, 3), dtype=np.uint8))


@pytest.fixture
def request_(tiny_pipeline):
    return generation.prepare(tiny_pipeline, photos(), motion(), seed=4, **FEW)


def test_a_request_is_all_a_video_depends_on(tiny_pipeline, request_):
    assert request_.num_frames == 7
    assert request_.fps == 12.5
    assert request_.noise.shape == (1, 8, 8, 6)
    assert request_.poses.shape == (7, 10, 8, 6)
    copied = pickle.loads(pickle.dumps(request_))
    frames = generation.render_frames(tiny_pipeline, request_, [2, 5])
    assert frames.shape == (2, 64, 48, 3)
    assert np.array_equal(generation.render_frames(tiny_pipeline, copied, [2, 5]), frames)


def test_windows_repeat_the_edges(request_):
    """Channels 4 and 5 of ten are the frame's own pose; the edges repeat the nearest one."""
    own = request_.poses[:, 4:6]
    assert torch.equal(request_.poses[0, 0:2], own[0])
    assert torch.equal(request_.poses[0, 2:4], own[0])
    assert torch.equal(request_.poses[0, 8:10], own[2])
    assert torch.equal(request_.poses[3, 0:2], own[1])
    assert torch.equal(request_.poses[6, 8:10], own[6])


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_frames_do_not_depend_on_the_chunks(tiny_pipeline, scheduler):
    options = {**FEW, "scheduler": scheduler}
    request = generation.prepare(tiny_pipeline, photos(2), motion(), seed=4, **options)
    whole = generation.render_frames(tiny_pipeline, request, range(7)).astype(int)
    by_two = [generation.render_frames(tiny_pipeline, request, [i, i + 1]) for i in (0, 2, 4)]
    assert np.abs(np.concatenate(by_two) - whole[:6]).max() <= 2
    pair = generation.render_frames(tiny_pipeline, request, [2, 3])
    assert np.array_equal(pair, by_two[1]), "same batch shape: bitwise"
    swapped = generation.render_frames(tiny_pipeline, request, [3, 2])
    assert np.abs(swapped[::-1].astype(int) - pair).max() <= 2


@pytest.mark.parametrize("null_image", ["zeros", "black"])
@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_requests_rendered_together_give_the_frames_of_each(tiny_recipe, scheduler, null_image):
    """Other photos, other numbers of them, other motions, other seeds: each keeps its own."""
    frozen = {"image_encoder_frozen": True} if null_image == "black" else {}
    pipe = checkpoints.build(replace(tiny_recipe, null_image=null_image, **frozen))
    options = {**FEW, "scheduler": scheduler, "num_inference_steps": 4}
    first = generation.prepare(pipe, photos(1), motion(7), seed=4, **options)
    second = generation.prepare(pipe, photos(3)[1:], motion(9), seed=5, **options)
    parts = [(first, [6, 0]), (second, [8, 3, 5]), (first, [2])]
    calls = []
    together = generation.render_requests(pipe, parts, callback=lambda *at: calls.append(at))
    assert len(calls) == first.num_model_calls
    for (request, indices), frames in zip(parts, together, strict=True):
        alone = generation.render_frames(pipe, request, indices).astype(int)
        assert np.abs(frames - alone).max() <= 2
    swapped = generation.render_frames(pipe, second, [0]).astype(int)
    assert np.abs(swapped - together[0][1:]).max() > 10, "the test could not tell them apart"


@pytest.mark.parametrize(
    "other",
    [
        {"scheduler": "PNDMScheduler"},
        {"scheduler_kwargs": {"timestep_spacing": "trailing"}},
        {"num_inference_steps": 3},
        {"image_scale": 1.5},
        {"pose_scale": 1.5},
        {"size": (96, 72)},
    ],
)
def test_what_does_not_agree_is_not_rendered_together(tiny_pipeline, request_, other):
    another = generation.prepare(tiny_pipeline, photos(), motion(), seed=4, **FEW | other)
    assert not generation.can_share_batch(request_, another)
    with pytest.raises(InputError, match="parts must have the same size, scheduler"):
        generation.render_requests(tiny_pipeline, [(request_, [0]), (another, [0])])


def test_branches_one_by_one_give_the_same(tiny_pipeline, request_):
    joined = generation.render_frames(tiny_pipeline, request_, [1, 2])
    apart = generation.render_frames(tiny_pipeline, request_, [1, 2], join_branches=False)
    assert np.abs(joined.astype(int) - apart).max() <= 2


def test_equal_poses_give_equal_frames(tiny_pipeline):
    """One start noise for the whole video: a person who stands still does not flicker."""
    still = motion(7)
    still = Motion(**{**still.__dict__, "maps": np.repeat(still.maps[:1], 7, axis=0)})
    options = {**FEW, "scheduler": "EulerAncestralDiscreteScheduler"}
    request = generation.prepare(tiny_pipeline, photos(), still, **options)
    frames = generation.render_frames(tiny_pipeline, request, range(7)).astype(int)
    assert np.abs(frames - frames[:1]).max() <= 1
    assert frames.std() > 1


def test_seeds_are_independent_of_earlier_renders(tiny_pipeline, request_):
    generation.prepare(tiny_pipeline, photos(), motion(), seed=9, **FEW)
    again = generation.prepare(tiny_pipeline, photos(), motion(), seed=4, **FEW)
    other = generation.prepare(tiny_pipeline, photos(), motion(), seed=5, **FEW)
    assert torch.equal(again.noise, request_.noise)
    assert again.step_seed == request_.step_seed
    assert not torch.equal(other.noise, request_.noise)
    generator = torch.Generator().manual_seed(4)
    drawn = generation.prepare(tiny_pipeline, photos(), motion(), generator=generator, **FEW)
    assert torch.equal(drawn.noise, request_.noise)


def test_one_of_several_photos_is_used_in_each_step(tiny_pipeline):
    options = {**FEW, "num_inference_steps": 20}
    request = generation.prepare(tiny_pipeline, photos(3), motion(), seed=1, **options)
    assert request.photo_tokens.shape[0] == 3
    assert len(request.photo_choice) == 20
    assert set(request.photo_choice.tolist()) == {0, 1, 2}
    alone = generation.prepare(tiny_pipeline, photos(3)[:1], motion(), seed=1, **options)
    frames = [generation.render_frames(tiny_pipeline, r, [0]) for r in (request, alone)]
    assert not np.array_equal(*frames)


def test_progress_counts_calls_of_the_model(tiny_pipeline, request_):
    seen = []
    generation.render_frames(tiny_pipeline, request_, [0], callback=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "best"}, "preset must be one of exact, balanced, fast, preview, got 'best'"),
        ({"motion": motion(4)}, "motion must have at least num_poses = 5 frames, got 4"),
        (
            {"motion": motion(7, 64, 64)},
            "motion must have the aspect ratio of the frames, 64x48, got 64x64",
        ),
        ({"photos": []}, "photos must contain at least one photo"),
        ({"image_scale": -1.0}, "image_scale must be a number of at least 0, got -1.0"),
        ({"pose_scale": float("nan")}, "pose_scale must be a number of at least 0, got nan"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"scheduler": "PNMDScheduler"}, "PNDMScheduler.*got 'PNMDScheduler'"),
    ],
)
def test_bad_input_is_named(tiny_pipeline, changes, message):
    arguments = {**FEW, "photos": photos(), "motion": motion(), **changes}
    with pytest.raises(InputError, match=message):
        generation.prepare(
            tiny_pipeline, arguments.pop("photos"), arguments.pop("motion"), **arguments
        )


def test_missing_frames_are_rejected(tiny_pipeline, request_):
    with pytest.raises(InputError, match=r"indices must be in \[0, 7\), got 7"):
        generation.render_frames(tiny_pipeline, request_, [6, 7])


def test_presets_can_be_changed_in_part(tiny_pipeline):
    request = generation.prepare(
        tiny_pipeline, photos(), motion(), preset="fast", num_inference_steps=3, align=False
    )
    assert request.scheduler == "DPMSolverMultistepScheduler"
    assert request.scheduler_kwargs["timestep_spacing"] == "trailing"
    assert request.num_model_calls == 3
    assert request.image_scale == tiny_pipeline.recipe.image_scale


@pytest.mark.slow
def test_the_papers_recipe_with_a_tenth_of_its_channels_renders():
    """Paper scale in all but width: 640x512, 50 CLIP tokens, 14 channels, PNDM, s_I 8, s_p 3."""
    from dreampose import checkpoints, recipes

    pipe = checkpoints.build(recipes.shrink(recipes.sd14(), 10))
    request = generation.prepare(
        pipe, photos(), motion(5, 640, 512), num_inference_steps=1, align=False
    )
    assert (request.image_scale, request.pose_scale) == (8.0, 3.0)
    assert request.photo_tokens.shape[1] == 50
    frames = generation.render_frames(pipe, request, [0])
    assert frames.shape == (1, 640, 512, 3)


def test_finer_poses_reach_the_model_square_by_square(tiny_recipe):
    pipe = checkpoints.build(replace(tiny_recipe, pose_detail=4))
    made = generation.prepare(pipe, photos(), motion(), seed=4, **FEW)
    assert made.poses.shape == (7, 5 * 2 * 16, 8, 6)
    # The third pose of a window is the frame's own; its V follows 16 squares of U.
    squares = motion().maps[3, 1].reshape(8, 4, 2, 6, 4, 2).mean(axis=(2, 5))
    for row in range(4):
        for column in range(4):
            plane = made.poses[3, 2 * 32 + 16 + 4 * row + column].numpy()
            np.testing.assert_allclose(plane, squares[:, row, :, column], rtol=1e-5)
    assert generation.render_frames(pipe, made, [3]).shape == (1, 64, 48, 3)
