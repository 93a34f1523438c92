"""Training and rendering at several frame sizes."""

import itertools
import json

import numpy as np
import pytest
from accelerate import Accelerator

from dreampose import checkpoints, recipes, training
from dreampose import data as dataset
from dreampose.config import replace
from dreampose.data import Dataset
from dreampose.diffusion import generation
from dreampose.errors import InputError
from dreampose.io.video import fit
from dreampose.training import base_stage
from dreampose.types import Clip

# 7x7 latents are odd: the UNet has to bring them back from 4x4.
CLIPS = ((64, 48), (48, 64), (64, 48), (56, 56))
NUM_FRAMES = 5


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return replace(
        tiny_recipe,
        sizes=((48, 64), (56, 56)),
        base_stage=replace(tiny_recipe.base_stage, batch_size=3, num_steps=0, num_epochs=1),
    )


@pytest.fixture(scope="module")
def data(recipe, drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    pipe = checkpoints.build(recipe)
    for seed, size in enumerate(CLIPS):
        row = dataset.encode_clip(
            *drawn(seed, *size), recipe=recipe, pipe=pipe, seed=0, clip_id=str(seed), subject="ada"
        )
        dataset.write_rows(folder / f"{seed}.parquet", [row])
    return folder


@pytest.fixture
def train(recipe, data, monkeypatch):
    """Trains the base stage; gives the items of each batch that was drawn, and the reports."""
    batches = []
    draw = base_stage.BaseStage.draw

    def spy(stage, split, items, generator):
        batch = draw(stage, split, items, generator)
        if split == "train":
            batches.append((items.tolist(), tuple(batch["latents"].shape[-2:])))
        return batch

    monkeypatch.setattr(base_stage.BaseStage, "draw", spy)

    def run(out, stop_after=None, **changes):
        batches.clear()
        reports = []
        for report in training.train(
            "base",
            recipe=replace(recipe, base_stage=replace(recipe.base_stage, **changes)),
            data=data, validation=data, out=out, accelerator=Accelerator(cpu=True),
            stop=lambda: stop_after is not None and len(reports) + 1 >= stop_after,
        ):  # fmt: skip
            reports.append(report)
        return list(batches), reports

    return run


def test_batches_are_of_one_size_and_every_sample_is_seen_once_an_epoch(train, tmp_path):
    batches, reports = train(tmp_path, num_epochs=2)
    # Of 10, 5 and 5 frames in batches of 3: 4 + 2 + 2 steps.
    assert len(batches) == len(reports) == 16 == reports[0].total
    for epoch in (batches[:8], batches[8:]):
        assert sorted(item for items, _ in epoch for item in items) == list(range(20))
        sizes = [size for _, size in epoch]
        for items, size in epoch:
            assert {CLIPS[item // NUM_FRAMES] for item in items} == {(8 * size[0], 8 * size[1])}
        changes = sum(a != b for a, b in itertools.pairwise(sizes))
        assert changes > 2, "the sizes take turns"
    assert batches[:8] != batches[8:]
    assert reports[-1].validation_loss is not None and np.isfinite(reports[-1].validation_loss)


def test_an_epoch_resumed_with_larger_batches_has_every_sample_once(train, tmp_path):
    first, _ = train(tmp_path, stop_after=3)
    rest, reports = train(tmp_path, gradient_accumulation=2)
    assert sorted(item for items, _ in first + rest for item in items) == list(range(20))
    assert reports[-1].step == reports[-1].total


def test_any_multiple_of_eight_is_rendered_and_the_nearest_size_is_chosen(recipe, drawn):
    pipe = checkpoints.build(recipe)
    clip, motion = drawn(1, 48, 64)
    options = {"preset": "fast", "num_inference_steps": 1, "align": False}
    for size, expected in (
        (None, (48, 64)), ((48, 64), (48, 64)), ((72, 96), (72, 96)), ((24, 32), (24, 32)),
    ):  # fmt: skip
        request = generation.prepare(pipe, [clip.frames[0]], motion, size=size, **options)
        frames = generation.render_frames(pipe, request, [0, 1])
        assert frames.shape == (2, *expected, 3)
    with pytest.raises(InputError, match="height must be a multiple of 8, got 50"):
        generation.prepare(pipe, [clip.frames[0]], motion, size=(50, 64), **options)
    with pytest.raises(InputError, match="aspect ratio of the frames, 64x48, got 48x64"):
        generation.prepare(pipe, [clip.frames[0]], motion, size=(64, 48), **options)


def test_a_subject_is_finetuned_at_a_size_of_its_own(tiny_pipeline, drawn, tmp_path):
    clip, motion = drawn(2, 48, 64)
    reports = list(
        training.finetune_subject(
            tiny_pipeline, [clip.frames[0]], tmp_path / "ada", name="ada", size=(48, 64),
            accelerator=Accelerator(cpu=True), motions=[motion.between(0, 1)], num_steps=1,
            num_vae_steps=1,
        )
    )  # fmt: skip
    assert [report.stage for report in reports] == ["unet", "decoder"]
    tiny_pipeline.load_subject(tmp_path / "ada")
    video = tiny_pipeline(
        clip.frames[0], motion, size=(48, 64), preset="fast", num_inference_steps=1, align=False,
        output_type="np",
    )  # fmt: skip
    assert video.frames.shape == (NUM_FRAMES, 48, 64, 3)


def test_a_clip_is_fitted_into_the_size_of_its_aspect(recipe, drawn):
    clip, motion = drawn(3, 96, 128)
    assert dataset.working_size(clip, recipe) == (96, 128), "twice 48x64"
    row = dataset.encode_clip(clip, motion, recipe=recipe, seed=0, clip_id="a", subject="ada")
    assert (row["height"], row["width"]) == (48, 64)
    assert row["frames_shape"] == [NUM_FRAMES, 48, 64, 3]
    assert row["poses_shape"][-2:] == [6, 8]
    frames = np.frombuffer(row["frames"], np.uint8).reshape(row["frames_shape"])
    assert (frames == fit(clip.frames, 48, 64)).all()


def test_data_of_a_size_that_the_recipe_lacks_is_rejected(recipe, data):
    fewer = replace(recipe, sizes=((48, 64),))
    with pytest.raises(InputError, match="at 64x48 or 48x64, got data .* at 56x56"):
        Dataset(data, recipe=fewer)


@pytest.mark.slow
def test_the_papers_model_with_few_channels_trains_and_renders_at_three_sizes(drawn, tmp_path):
    recipe = recipes.shrink(recipes.sd14(), 100)
    recipe = replace(
        recipe,
        sizes=((512, 512), (768, 576)),
        num_crops=1,
        vae={**recipe.vae, "layers_per_block": 1, "mid_block_add_attention": False},
        unet={**recipe.unet, "layers_per_block": 1, "attention_head_dim": 1},
        image_encoder={**recipe.image_encoder, "num_hidden_layers": 1},
        base_stage=replace(
            recipe.base_stage, num_epochs=1, batch_size=1, gradient_accumulation=1
        ),
    )  # fmt: skip
    pipe = checkpoints.build(recipe)
    checkpoints.save(pipe, tmp_path / "start", dtype=None)
    clips = [drawn(seed, *size) for seed, size in enumerate(recipe.frame_sizes)]
    for seed, (clip, motion) in enumerate(clips):
        one = Clip(frames=clip.frames[:1], fps=clip.fps)
        row = dataset.encode_clip(
            one, motion.between(0, 1), recipe=recipe, pipe=pipe, seed=0, clip_id=str(seed),
            subject="ada",
        )  # fmt: skip
        dataset.write_rows(tmp_path / "data" / f"{seed}.parquet", [row])
    reports = list(
        training.train(
            "base", recipe=recipe, data=tmp_path / "data", out=tmp_path / "run",
            accelerator=Accelerator(cpu=True), model=tmp_path / "start",
        )
    )  # fmt: skip
    assert len(reports) == 3
    assert all(np.isfinite(report.loss) and report.grad_norm > 0 for report in reports)
    trained = checkpoints.load(tmp_path / "run" / "model")
    assert json.loads(json.dumps(trained.recipe.sizes)) == [[512, 512], [768, 576]]
    for clip, motion in clips:
        request = generation.prepare(
            trained, [clip.frames[0]], motion, preset="fast", num_inference_steps=1, align=False
        )
        frames = generation.render_frames(trained, request, [0])
        assert frames.shape == (1, *clip.frames.shape[1:])
