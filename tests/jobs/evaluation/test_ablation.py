"""Variants of the ablation, and their rendering and scoring."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreampose import checkpoints, data, poses
from dreampose.config import replace as variant_of
from dreampose.errors import InputError
from dreampose.io import video
from jobs.evaluation import ablation
from jobs.evaluation.ablation import ROWS, AblationOptions, Base, Cell, HeldOutSubject

NUM_FRAMES = 48


@pytest.fixture
def plan(tiny_model, tmp_path):
    return AblationOptions(
        model=str(tiny_model), fingerprint="f", data=str(tmp_path / "data"), truth="clips",
        estimator="catwalk", preset="fast", base_steps=1, num_steps=1, num_vae_steps=1,
    )  # fmt: skip


@pytest.fixture
def person(draw_clip, tmp_path):
    files = {}
    for seed, motion in enumerate(("walk", "turn")):
        files[motion] = str(tmp_path / f"anna-{motion}.mp4")
        draw_clip(files[motion], seed=seed, num_frames=NUM_FRAMES)
    return HeldOutSubject(name="anna", files=files)


@pytest.fixture
def write_data(draw_clip, tiny_model, tiny_recipe, tmp_path):
    def write(folder):
        draw_clip(tmp_path / "training.mp4", seed=5)
        clip = video.read(tmp_path / "training.mp4")
        motion = poses.extract(clip, poses.estimator("catwalk"), height=64, width=48)
        row = data.encode_clip(
            clip, motion, recipe=tiny_recipe, pipe=checkpoints.load(tiny_model), seed=0,
            clip_id="a", subject="a",
        )  # fmt: skip
        data.write_rows(folder / "a.parquet", [row])

    return write


@pytest.fixture
def still(rng):
    """A person who does not move, whichever frame is looked at."""
    maps = np.repeat(rng.random((1, 2, 64, 48), dtype=np.float32), 9, axis=0)
    return poses.Motion(
        maps=maps,
        joints=np.zeros((9, 33, 4), np.float32),
        confidence=np.ones(9, np.float32),
        fps=24.0,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def render(pipe, motion, indices, row, rng, **options):
    photo = rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    return ablation.render(
        pipe, [photo], motion, indices, ROWS[row], preset="fast", seed=0, **options
    )


def with_eager_poses(recipe):
    """A model to whose UNet poses matter, as they do not before training."""
    pipe = checkpoints.build(recipe)
    torch.nn.init.normal_(pipe.unet.conv_in.weight, std=0.3)
    return pipe


def test_a_frame_of_the_one_pose_model_depends_on_its_own_pose_alone(tiny_recipe, still, rng):
    maps = still.maps.copy()
    maps[:4], maps[5:] = 0, 1
    around = replace(still, maps=maps)
    photo = rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    found = {}
    for name in ("full", "one_pose"):
        pipe = with_eager_poses(ablation.recipe_of(tiny_recipe, name))
        found[name] = [
            ablation.render(pipe, [photo], motion, [4], ROWS[name], preset="fast", seed=0)
            for motion in (still, around)
        ]
    assert np.array_equal(*found["one_pose"])
    assert not np.array_equal(*found["full"])


def test_frames_of_one_pose_are_equal_where_they_share_noise_and_only_there(
    tiny_pipeline, still, rng
):
    shared = render(tiny_pipeline, still, [2, 3, 7], "one_pose", rng)
    own = render(tiny_pipeline, still, [2, 3, 7], "own_noise", rng)
    assert np.array_equal(shared[0], shared[1])
    assert np.array_equal(shared[0], shared[2])
    assert not np.array_equal(own[0], own[1])
    assert not np.array_equal(own[1], own[2])
    assert own.std() == pytest.approx(shared.std(), rel=0.3)


def test_smoothing_is_a_gaussian_over_time_that_repeats_the_ends(still, rng):
    assert ablation.smooth(still).maps == pytest.approx(still.maps, abs=1e-6)
    moving = replace(still, maps=rng.random((9, 2, 64, 48), dtype=np.float32))
    offsets = np.arange(-6, 7)
    weights = np.exp(-(offsets**2) / (2 * 2.0**2))
    weights /= weights.sum()
    smoothed = ablation.smooth(moving)
    for frame in range(9):
        around = moving.maps[np.clip(frame + offsets, 0, 8)]
        expected = np.tensordot(weights, around, axes=1)
        assert smoothed.maps[frame] == pytest.approx(expected, abs=1e-5)


def test_the_row_renders_smoothed_poses(tiny_recipe, still):
    moving = replace(still, maps=np.linspace(0, 1, still.maps.size).reshape(still.maps.shape))
    moving = replace(moving, maps=moving.maps.astype(np.float32))
    pipe = with_eager_poses(tiny_recipe)
    got = render(pipe, moving, [4], "smoothed", np.random.default_rng(1))
    plain = render(pipe, ablation.smooth(moving), [4], "full", np.random.default_rng(1))
    assert np.array_equal(got, plain)


def test_no_photo_is_scored():
    for num_frames in range(ablation.MIN_FRAMES, 300):
        frames = ablation.scored_frames(num_frames)
        assert len(set(frames)) == 2 * ablation.NUM_PAIRS
        assert max(frames) < num_frames
        assert not {int(at * num_frames) for _, at in ablation.PHOTOS} & set(frames)
        pairs = zip(frames[::2], frames[1::2], strict=True)
        assert all(second == first + 1 for first, second in pairs)


def test_every_row_is_rendered_once_for_each_person_and_seed(person):
    other = replace(person, name="bert")
    cells = ablation.cells([0, 1, 2], [person, other])
    rendered = [(row.name, cell.base.seed, cell.subject.name) for cell in cells
                for row in cell.rows]  # fmt: skip
    assert len(rendered) == len(set(rendered)) == len(ROWS) * 3 * 2
    assert len({cell.name for cell in cells}) == len(cells)


def test_variants_are_trained_equally_and_lack_their_part(
    plan, tiny_model, tiny_recipe, write_data, tmp_path
):
    write_data(Path(plan.data))
    source = checkpoints.load(tiny_model)
    for name in ablation.VARIANTS:
        base = Base(variant=name, seed=0)
        assert [report.total for report in ablation.train_base(plan, base, tmp_path)] == [1]
        pipe = checkpoints.load(tmp_path / "bases" / base.name / "model")
        assert pipe.recipe.num_poses == (1 if name == "one_pose" else 5)
        assert pipe.unet.conv_in.in_channels == 8 + 2 * pipe.recipe.num_poses
        tokens, latents = torch.rand(1, 5, 16), torch.rand(2, 1, 8, 8, 6)
        torch.nn.init.normal_(pipe.adapter.mix.weight)
        a, b = (pipe.adapter(tokens, each) for each in latents)
        assert torch.equal(a, b) == (name == "clip_only")
        for key, value in source.vae.state_dict().items():
            torch.testing.assert_close(pipe.vae.state_dict()[key], value)
        assert [path.name for path in (tmp_path / "bases" / base.name).iterdir()] == ["model"]
        assert not list(ablation.train_base(plan, base, tmp_path)), "trained a second time"


def test_a_model_that_lacks_a_part_is_no_start(tiny_recipe):
    with pytest.raises(InputError, match="got num_poses 1 and photo_latents True"):
        ablation.recipe_of(variant_of(tiny_recipe, num_poses=1), "full")


@pytest.fixture
def cell(person, tiny_model, tmp_path):
    """Of the tiny model, as if that were the base."""
    (tmp_path / "bases" / "full-0").mkdir(parents=True)
    (tmp_path / "bases" / "full-0" / "model").symlink_to(tiny_model)
    return Cell(base=Base(variant="full", seed=0), num_photos=3, subject=person)


def test_frames_are_compared_with_their_own_truth(cell, plan, person, tmp_path, monkeypatch):
    films = {path: video.read(path).frames for path in person.files.values()}
    seen = []

    def render(pipe, photos, motion, indices, row, **_):
        """The true frames, or those one later where poses are smoothed."""
        (frames,) = (film for path, film in films.items() if path.endswith(motion.source))
        seen.append(photos)
        return frames[[index + row.smoothed for index in indices if index + 1 < NUM_FRAMES]
                      + [index for index in indices if index + 1 == NUM_FRAMES]]  # fmt: skip

    monkeypatch.setattr(ablation, "render", render)
    list(ablation.score(plan, cell, tmp_path))
    scores = json.loads(cell.result(tmp_path).read_text())["scores"]
    assert set(scores) == {"full", "no_decoder", "smoothed"}
    assert scores["full"]["l1"] == scores["full"]["tde"] == 0
    assert scores["full"]["ssim"] == pytest.approx(1)
    assert scores["smoothed"]["l1"] > 0
    walk, turn = (films[person.files[motion]] for motion in ("walk", "turn"))
    expected = [walk[0], turn[12], turn[24]]
    assert all(np.array_equal(a, b) for a, b in zip(seen[0], expected, strict=True))


def test_a_person_is_scored_once_and_leaves_scores_alone(cell, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "NUM_PAIRS", 1)
    steps = list(ablation.score(plan, cell, tmp_path))
    assert [report.stage for report in steps] == ["unet", "decoder"]
    scores = json.loads(cell.result(tmp_path).read_text())["scores"]
    assert scores["full"] != scores["no_decoder"], "the finetuned decoder is not used"
    assert not list((tmp_path / "subjects").rglob("*.safetensors"))
    assert not list(ablation.score(plan, cell, tmp_path)), "finetuned a second time"


def test_a_stopped_finetuning_is_not_scored_and_continues(cell, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "NUM_PAIRS", 1)
    longer = replace(plan, num_steps=3)
    steps = list(ablation.score(longer, cell, tmp_path, stop=lambda: True))
    assert [report.step for report in steps] == [1]
    assert not cell.result(tmp_path).exists()
    assert [report.step for report in ablation.score(longer, cell, tmp_path)] == [2, 3, 4]
    assert cell.result(tmp_path).exists()
