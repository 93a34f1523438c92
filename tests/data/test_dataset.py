"""Training data: encoding, reading and validation."""

import numpy as np
import pytest
import torch

from dreampose import data as dataset
from dreampose.config import replace
from dreampose.data import Dataset
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.vae import LatentCodec
from dreampose.poses import Motion
from dreampose.types import Clip

COLUMNS = ("frames", "poses", "latents", "crops", "colours", "joints", "confidence")


def make_clip(height=64, width=48, num_frames=3):
    """Brightness tells the place, and the pose map repeats it, so that crops can be compared."""
    ramp = np.linspace(10, 240, height)[:, None] * np.linspace(0.3, 1, width)
    image = np.repeat(ramp[..., None], 3, 2).astype(np.uint8)
    frames = np.repeat(image[None], num_frames, 0)
    maps = np.repeat((frames[..., :1] / 255).transpose(0, 3, 1, 2), 2, 1).astype(np.float32)
    motion = Motion(
        maps=maps,
        joints=np.full((num_frames, 2, 4), 8, np.float32),
        confidence=np.linspace(0.5, 1, num_frames, dtype=np.float32),
        fps=12.5,
        estimator="drawn",
    )
    return Clip(frames=frames, fps=12.5, source="walk.mp4"), motion


@pytest.fixture
def encode(tiny_recipe, tiny_pipeline):
    def encode(clip_id="a", size=(64, 48), num_frames=3, pipe=tiny_pipeline, recipe=tiny_recipe):
        clip, motion = make_clip(*size, num_frames)
        return dataset.encode_clip(
            clip, motion, recipe=recipe, pipe=pipe, seed=3, clip_id=clip_id, subject="ada"
        )

    return encode


def test_a_row_counts_once_and_a_clip_once_for_each_estimator(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "one.parquet", [encode("a"), encode("b")])
    dataset.write_rows(tmp_path / "two.parquet", [encode("a"), encode("a") | {"estimator": "eye"}])
    data = Dataset(tmp_path, recipe=tiny_recipe, columns=COLUMNS)
    found = [(clip["clip_id"], clip["estimator"]) for clip in data.clips]
    assert found == [("a", "drawn"), ("a", "eye"), ("b", "drawn")]


def test_what_is_written_is_read(encode, tiny_recipe, tiny_pipeline, tmp_path):
    dataset.write_rows(tmp_path / "two.parquet", [encode("b", num_frames=2), encode("a")])
    data = Dataset(tmp_path, recipe=tiny_recipe, columns=COLUMNS)
    assert [clip["clip_id"] for clip in data.clips] == ["a", "b"]
    assert data.targets.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    clip, motion = make_clip()
    assert (data.array(0, "frames") == clip.frames).all()
    assert data.array(0, "confidence").tolist() == motion.confidence.tolist()
    assert data.clips[0]["fps"] == 12.5
    assert data.clips[0]["estimator"] == "drawn"
    with torch.no_grad():
        latents = LatentCodec(vae=tiny_pipeline.vae).encode(video.to_model(clip.frames))
    np.testing.assert_allclose(data.array(0, "latents")[0], latents.numpy(), atol=2e-3)
    assert data.fingerprint == dataset.encoders_fingerprint(tiny_pipeline)


def test_a_view_moves_frame_and_pose_alike(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "a.parquet", [encode()])
    data = Dataset(tmp_path, recipe=tiny_recipe, columns=COLUMNS)
    for view in range(tiny_recipe.num_crops):
        photo = data.photo(0, 1, view=view)[..., 0] / 255
        grid = photo.reshape(8, 8, 6, 8).mean((1, 3))
        np.testing.assert_allclose(data.array(0, "poses")[view, 1, 0], grid, atol=0.02)


def test_twice_the_size_gives_the_same_views_sharper(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "a.parquet", [encode(size=(128, 96))])
    data = Dataset(tmp_path, recipe=tiny_recipe, columns=COLUMNS)
    assert data.array(0, "frames").shape == (3, 64, 48, 3)
    assert data.array(0, "joints")[0, 0].tolist() == [4, 4, 4, 8]
    photo = data.photo(0, 0)[..., 0] / 255
    grid = photo.reshape(8, 8, 6, 8).mean((1, 3))
    np.testing.assert_allclose(data.array(0, "poses")[0, 0, 0], grid, atol=0.02)


def test_views_depend_on_seed_and_clip_alone(encode):
    assert encode("a")["crops"] == encode("a")["crops"]
    assert encode("a")["crops"] != encode("b")["crops"]


def test_data_larger_than_memory_reads_the_same(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "a.parquet", [encode("a"), encode("b")])
    kept = Dataset(tmp_path, recipe=tiny_recipe, columns=COLUMNS)
    spooled = Dataset(tmp_path, recipe=tiny_recipe, columns=COLUMNS, memory_limit=30_000)
    kinds = {type(spooled.array(clip, name)) for clip in range(2) for name in ("frames", "latents")}
    assert np.memmap in kinds
    for clip in range(2):
        for name in COLUMNS:
            assert (kept.array(clip, name) == spooled.array(clip, name)).all()


def test_any_pyarrow_filesystem_is_read(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "a.parquet", [encode()])
    assert len(Dataset(tmp_path.as_uri(), recipe=tiny_recipe)) == 3


def test_rejected_videos_are_counted_and_left_out(encode, tiny_recipe, tmp_path):
    bad = dataset.error_row(
        clip_id="bad", path="bad.mp4", subject="eve", recipe=tiny_recipe, error="nobody in it"
    )
    dataset.write_rows(tmp_path / "a.parquet", [encode(), bad])
    data = Dataset(tmp_path, recipe=tiny_recipe)
    assert data.num_errors == 1
    assert data.subjects == ["ada"]
    dataset.write_rows(tmp_path / "a.parquet", [bad])
    with pytest.raises(InputError, match="data must have at least one usable clip, got 1 rejected"):
        Dataset(tmp_path, recipe=tiny_recipe)


def test_data_of_another_recipe_is_rejected_by_both_names(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "a.parquet", [encode()])
    with pytest.raises(
        InputError, match=r"recipe 'sd14' at 64x48, got data for 'catwalk' at 64x48"
    ):
        Dataset(tmp_path, recipe=replace(tiny_recipe, name="sd14"))


def test_data_without_latents_is_rejected_for_the_base_stage(encode, tiny_recipe, tmp_path):
    dataset.write_rows(tmp_path / "a.parquet", [encode(pipe=None)])
    Dataset(tmp_path, recipe=tiny_recipe)
    with pytest.raises(InputError, match="data must have latents, got none for clip 'a'"):
        Dataset(tmp_path, recipe=tiny_recipe, columns=("latents",))


def test_missing_data_is_rejected(tiny_recipe, tmp_path):
    with pytest.raises(InputError, match="data must be a folder of Parquet files, got none"):
        Dataset(tmp_path, recipe=tiny_recipe)
    with pytest.raises(InputError, match="data must be a folder of Parquet files"):
        Dataset(tmp_path / "nowhere", recipe=tiny_recipe)


def test_frozen_encoder_tokens_are_cached_and_learning_ones_not(
    encode, tiny_recipe, tiny_pipeline, tmp_path
):
    assert encode()["tokens"] is None
    frozen = encode(recipe=replace(tiny_recipe, image_encoder_frozen=True))
    assert frozen["tokens_shape"] == [3, 5, 16]


def test_motion_must_fit_the_clip(tiny_recipe):
    clip, motion = make_clip()
    with pytest.raises(InputError, match="motion must have a pose for each of 3 frames, got 2"):
        dataset.encode_clip(
            clip, motion.between(0, 2), recipe=tiny_recipe, seed=0, clip_id="a", subject="ada"
        )
    clip, motion = make_clip(60, 48)
    with pytest.raises(InputError, match="motion size must be a multiple of 64x48, got 60x48"):
        dataset.encode_clip(clip, motion, recipe=tiny_recipe, seed=0, clip_id="a", subject="ada")


def test_data_depends_on_the_encoder_and_not_on_the_decoder(tiny_pipeline):
    before = dataset.encoders_fingerprint(tiny_pipeline)
    vae = tiny_pipeline.vae
    with torch.no_grad():
        vae.decoder.layers[0].weight.add_(1)
    assert dataset.encoders_fingerprint(tiny_pipeline) == before
    scale = vae.config["scaling_factor"]
    vae.register_to_config(scaling_factor=2 * scale)
    assert dataset.encoders_fingerprint(tiny_pipeline) != before
    vae.register_to_config(scaling_factor=scale)
    assert dataset.encoders_fingerprint(tiny_pipeline) == before
    with torch.no_grad():
        vae.encoder.layers[0].weight.add_(1)
    assert dataset.encoders_fingerprint(tiny_pipeline) != before
