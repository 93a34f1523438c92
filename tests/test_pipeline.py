"""The whole call, as a library user makes it."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dreampose import DreamPosePipeline
from dreampose.errors import InputError, SubjectMismatchWarning
from dreampose.models import subject
from dreampose.poses import Motion

FEW = {"scheduler": "DDIMScheduler", "num_inference_steps": 1, "align": False}


@pytest.fixture
def motion():
    maps = np.random.default_rng(0).random((5, 2, 64, 48), dtype=np.float32)
    joints = np.zeros((5, 33, 4), np.float32)
    return Motion(maps=maps, joints=joints, confidence=np.ones(5, np.float32), fps=12.5)


@pytest.fixture
def photo():
    return np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)


@pytest.fixture
def pipe(tiny_pipeline):
    tiny_pipeline.set_progress_bar_config(disable=True)
    return tiny_pipeline


def test_every_kind_of_photo_and_motion_gives_the_same_video(pipe, photo, motion, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    motion.save(tmp_path / "motion.npz")
    motion = Motion.load(tmp_path / "motion.npz")
    expected = pipe(photo, motion, output_type="np", **FEW)
    assert expected.fps == 12.5
    assert expected.frames.shape == (5, 64, 48, 3)
    for one in (Image.fromarray(photo), tmp_path / "photo.png", [photo]):
        actual = pipe(one, tmp_path / "motion.npz", **FEW).frames
        assert [frame.size for frame in actual] == [(48, 64)] * 5
        assert np.array_equal(np.stack([np.array(frame) for frame in actual]), expected.frames)


def test_chunks_and_seeds(pipe, photo, motion):
    def render(**options):
        return pipe(photo, motion, output_type="np", **FEW, **options).frames.astype(int)

    base = render(seed=3)
    assert np.array_equal(base, render(generator=torch.Generator().manual_seed(3)))
    assert np.abs(base - render(seed=3, chunk_size=2)).max() <= 2
    assert np.abs(base - render(seed=4)).max() > 2


def test_progress_runs_to_the_end(pipe, photo, motion):
    seen = []
    pipe(photo, motion, chunk_size=2, callback=lambda *at: seen.append(at), **FEW)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_one_fixed_range_for_all_frames(pipe, photo, motion, monkeypatch):
    """A dull frame stays dull: no frame is stretched to its own minimum and maximum."""
    from diffusers.models.autoencoders.vae import DecoderOutput

    levels = torch.linspace(-0.5, 0.5, 5)[:, None, None, None].expand(5, 3, 64, 48)
    decoded = DecoderOutput(sample=levels)
    monkeypatch.setattr(
        pipe.vae, "decode", lambda z, return_dict=True: decoded if return_dict else (levels,)
    )
    frames = pipe(photo, motion, output_type="np", **FEW).frames
    assert frames[:, 0, 0, 0].tolist() == [64, 96, 128, 159, 191]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"output_type": "tensor"}, "output_type must be 'pil' or 'np', got 'tensor'"),
    ],
)
def test_bad_arguments_are_named(pipe, photo, motion, options, message):
    with pytest.raises(InputError, match=message):
        pipe(photo, motion, **FEW, **options)


def test_floats_are_no_photo(pipe, photo, motion):
    with pytest.raises(InputError, match=r"photo must be an array \(H, W, 3\) of uint8"):
        pipe(photo / 255.0, motion, **FEW)


def test_subject_weights_with_another_photo_warn_unless_forced(pipe, photo, motion, tmp_path):
    red, blue = np.full_like(photo, 230), np.full_like(photo, 230)
    red[10:60, 15:35], blue[10:60, 15:35] = (200, 20, 20), (20, 20, 200)
    subject.save_subject(tmp_path / "red", pipe, subject.describe_subject(pipe, "red", [red]))
    pipe.load_subject(tmp_path / "red")
    with pytest.warns(SubjectMismatchWarning, match="'red'"):
        pipe(blue, motion, **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SubjectMismatchWarning)
        pipe(red, motion, **FEW)
        pipe(blue, motion, check_subject=False, **FEW)


def test_loads_in_another_type_on_request(tiny_model):
    pipe = DreamPosePipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.image_encoder.dtype, pipe.adapter.dtype} == {torch.bfloat16}


def test_half_precision_renders(tiny_model, photo, motion):
    pipe = DreamPosePipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    assert pipe(photo, motion, output_type="np", **FEW).frames.shape == (5, 64, 48, 3)
