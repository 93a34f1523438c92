"""Rendering in less memory: the same frames from weights that lie elsewhere."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from benchmarks import tracing
from dreampose import checkpoints, config
from dreampose.errors import InputError
from dreampose.poses import Motion
from dreampose.training import finetune_subject


@pytest.fixture
def motion():
    maps = np.random.default_rng(0).random((5, 2, 64, 48), np.float32)
    return Motion(
        maps=maps,
        joints=np.zeros((5, 33, 4), np.float32),
        confidence=np.ones(5, np.float32),
        fps=10.0,
        estimator="none",
    )


@pytest.fixture
def photo():
    return np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def render(pipe, photo, motion):
    output = pipe(photo, motion, preset="fast", num_inference_steps=2, align=False,
                  check_subject=False, output_type="np")  # fmt: skip
    return np.asarray(output.frames)


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloaded_parts_render_the_same_frames(how, tiny_pipeline, photo, motion):
    expected = render(tiny_pipeline, photo, motion)
    tiny_pipeline.offload(how, "cpu")
    assert np.array_equal(render(tiny_pipeline, photo, motion), expected)
    if how == "sequential":
        # Between calls, no layer holds its weights: they are where layers fetch them from.
        assert {value.device.type for value in tiny_pipeline.unet.parameters()} == {"meta"}
    tiny_pipeline.offload("none", "cpu")
    assert {value.device.type for value in tiny_pipeline.unet.parameters()} == {"cpu"}
    assert np.array_equal(render(tiny_pipeline, photo, motion), expected)


def test_subjects_come_and_go_while_parts_are_offloaded(tiny_pipeline, photo, motion, tmp_path):
    one = Motion(maps=motion.maps[:1], joints=motion.joints[:1], confidence=motion.confidence[:1],
                 fps=10.0, estimator="none")  # fmt: skip
    for _ in finetune_subject(
        tiny_pipeline, [photo], tmp_path / "anna", name="anna", motions=[one], method="lora",
        accelerator=Accelerator(cpu=True), num_steps=2,
    ):  # fmt: skip
        pass
    base = render(tiny_pipeline, photo, motion)
    tiny_pipeline.load_subject(tmp_path / "anna")
    anna = render(tiny_pipeline, photo, motion)
    tiny_pipeline.unload_subject()
    tiny_pipeline.offload("sequential", "cpu")
    tiny_pipeline.load_subject(tmp_path / "anna")
    assert np.array_equal(render(tiny_pipeline, photo, motion), anna)
    tiny_pipeline.unload_subject()
    assert np.array_equal(render(tiny_pipeline, photo, motion), base)
    with pytest.raises(InputError, match="offload must be 'none' to share components"):
        tiny_pipeline.with_subject(tmp_path / "anna")


def test_an_unknown_option_is_rejected(tiny_pipeline):
    with pytest.raises(InputError, match="offload must be one of none, model, sequential, got 'x'"):
        tiny_pipeline.offload("x")


@torch.no_grad()
def test_slices_are_exact_and_tiles_are_close(sd_recipe):
    pipe = checkpoints.build(config.replace(sd_recipe, height=320, width=320))
    latents = torch.randn(2, 4, 40, 40)
    whole = pipe.vae.decode(latents).sample
    pipe.split_decoding(slicing=True)
    torch.testing.assert_close(pipe.vae.decode(latents).sample, whole, rtol=1e-3, atol=1e-3)
    pipe.split_decoding(tiling=True)
    tiled = pipe.vae.decode(latents).sample
    assert tiled.shape == whole.shape
    error = (tiled - whole).abs().mean() / whole.std()
    assert 0 < error < 0.2


def test_each_way_takes_less_memory(sd_recipe):
    recipe = config.replace(sd_recipe, height=640, width=512)
    peaks = {
        name: tracing.rendering(recipe, num_calls=1, chunk_size=4, **options).peak_bytes
        for name, options in {
            "plain": {},
            "sliced": {"slicing": True, "join_branches": False},
            "tiled": {"slicing": True, "tiling": True, "join_branches": False},
            "half": {"precision": "fp16"},
        }.items()
    }
    assert peaks["sliced"] < 0.7 * peaks["plain"]
    assert peaks["tiled"] <= peaks["sliced"]
    assert peaks["half"] == pytest.approx(peaks["plain"] / 2, rel=0.1)
