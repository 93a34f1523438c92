"""Training job: validation and resuming after a kill."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreampose import checkpoints, poses, training
from dreampose import data as dataset
from dreampose.config import replace
from dreampose.io import video
from jobs import train
from jobs.common.sample_sheets import SampleSheets

NUM_STEPS = 240


@pytest.fixture
def data(tmp_path, clips, tiny_recipe):
    """Frames and poses of the clips, as preprocessing writes them."""
    return write_data(tmp_path, clips, tiny_recipe)


def write_data(folder, clips, recipe):
    estimator = poses.estimator("catwalk")
    for number, path in enumerate(sorted(clips.rglob("*.mp4"))):
        clip = video.read(path)
        motion = poses.extract(clip, estimator, height=64, width=48)
        row = dataset.encode_clip(
            clip, motion, recipe=recipe, seed=0, clip_id=path.name, subject=path.stem
        )
        dataset.write_rows(folder / "data" / "clips" / f"{number}.parquet", [row])
    return folder / "data"


def pictures(folder, *, stage, data, recipe):
    """What a run shows of its checkpoint, the model in `folder/step`."""
    order = SimpleNamespace(
        stage=stage, out=str(folder / "run"), data=str(data), val_data=None, recipe=recipe
    )
    report = training.StepReport(
        step=7, total=9, loss=0.5, lr=0.1, validation_loss=None, checkpoint=folder / "step",
        samples_per_second=1.0, stage=stage, checkpoint_due=True, stopped=False, grad_norm=1.0,
        skipped=0, was_skipped=False, best=None,
    )  # fmt: skip
    with SampleSheets(order, enabled=True) as sheets:
        sheets.write(report)
    (file,) = (folder / "run" / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    found = events.Images("samples") if events.Tags()["images"] else []
    return [(picture.step, picture.height, picture.width) for picture in found]


def weights(model: Path):
    return load_file(model / "vae" / "diffusion_pytorch_model.safetensors")


def first_step(folder: Path, name: str):
    """First step that a TensorBoard file tells of."""
    events = EventAccumulator(str(folder / name)).Reload()
    return events.Scalars("loss/train")[0].step


@pytest.mark.ray
def test_a_killed_run_ends_where_an_undisturbed_one_ends(
    driver, capsys, data, tiny_recipe, tiny_json, tmp_path
):
    out = tmp_path / "run"
    snapshot = out / "ray" / "checkpoint_manager_snapshot.json"
    flags = [
        "--stage", "vae", "--recipe", tiny_json, "--data", data, "--val-data", data, "--out", out,
        "--steps", NUM_STEPS, "--checkpoint-every", 20, "--validate-every", 60, "--seed", 3,
    ]  # fmt: skip

    def last_step():
        text = snapshot.read_text() if snapshot.exists() else ""
        results = json.loads(text)["checkpoint_results"] if text else []
        return max((result["metrics"]["step"] for result in results), default=0)

    driver.kill_when(last_step, "train", *flags)
    step = last_step()
    assert step < NUM_STEPS, "the kill came too late to show anything"
    assert not (out / "model").exists()
    before = {path.name for path in (out / "tensorboard").iterdir()}
    code = driver.again("train", *flags)
    text, err = capsys.readouterr()
    assert code == 0, err
    assert f"{NUM_STEPS} steps" in text

    (events,) = {path.name for path in (out / "tensorboard").iterdir()} - before
    assert first_step(out / "tensorboard", events) > step, "it began again at the beginning"
    undisturbed = tmp_path / "undisturbed"
    # With one thread, as the worker had.
    reports = list(
        training.train(
            "vae", recipe=tiny_recipe, data=data, validation=data, out=undisturbed,
            accelerator=Accelerator(), max_steps=NUM_STEPS, seed=3, validate_every=60,
        )
    )  # fmt: skip
    assert reports[-1].step == NUM_STEPS
    got, wanted = weights(out / "model"), weights(undisturbed / "model")
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5, msg=name)

    # Nothing but the last two checkpoints and the result is left; a third start does nothing.
    assert len(list((out / "ray").glob("checkpoint_2*"))) <= 2
    assert train.main([str(flag) for flag in flags]) == 0


@pytest.mark.parametrize(
    ("of_run", "num_rows"),
    [("data", 4), (".", 4), ("data/clips/0.parquet", 1), ("nothing", 0)],
    ids=["a data folder", "a folder of data folders", "a file", "no clip that can be used"],
)
def test_each_checkpoint_writes_sample_renders(
    data, of_run, num_rows, tiny_model, tiny_recipe, tmp_path
):
    rejected = dataset.error_row(
        clip_id="none", path="", subject="", recipe=tiny_recipe, error="nobody is in it"
    )
    dataset.write_rows(tmp_path / "nothing" / "clips" / "0.parquet", [rejected])
    shutil.copytree(tiny_model, tmp_path / "step" / "model")
    shown = pictures(tmp_path, stage="vae", data=tmp_path / of_run, recipe=tiny_recipe)
    assert shown == ([(7, num_rows * 64, 8 * 48)] if num_rows else [])


def test_a_base_model_with_finer_poses_is_shown_too(clips, tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, pose_detail=2)
    checkpoints.build(recipe).save_pretrained(tmp_path / "step" / "model")
    data = write_data(tmp_path, clips, recipe)
    assert pictures(tmp_path, stage="base", data=data, recipe=recipe) == [(7, 4 * 64, 8 * 48)]


def refusal(capsys, *flags):
    """What is said of bad flags: one line, exit code 2."""
    assert train.main([str(flag) for flag in flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _no_ray(self, monkeypatch):
        def start(*_, **__):
            pytest.fail("Ray was started")

        monkeypatch.setattr(train.driver, "ray_session", start)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"--stage": "all"}, "stage must be one of vae, encoder, base, got 'all'"),
            ({"--data": "nowhere"}, "data must be a folder of Parquet files"),
            ({"--recipe": "sd99"}, "recipe must be one of"),
            ({"--model": "nowhere"}, "model must be a folder"),
            ({"--steps": "0"}, "steps must be at least 1, got 0"),
            ({"--workers": "0"}, "workers must be at least 1, got 0"),
            ({"--track": "tensorbord"}, "track must be one of tensorboard, wandb, mlflow, got"),
            ({"--sizes": "512by512"}, "sizes must be HEIGHTxWIDTH such as 640x512, got '512by512'"),
            ({"--sizes": "60x48"}, "height must be a multiple of 8, got 60"),
            ({"--stage": "base"}, "model must be given"),
            ({"--recipe": "catwalk"}, "data must be preprocessed for the model's recipe"),
        ],
    )
    def test_flags(self, capsys, data, tmp_path, tiny_json, changed, said):
        flags = {"--stage": "vae", "--recipe": tiny_json, "--data": data, "--out": tmp_path / "run"}
        line = refusal(capsys, *(part for item in (flags | changed).items() for part in item))
        assert said in line
        assert not (tmp_path / "run").exists()

    def test_spread_weights_of_one_worker_or_of_a_vae(self, capsys, data, tmp_path, tiny_json):
        flags = ["--recipe", tiny_json, "--data", data, "--out", tmp_path / "run", "--shard"]
        line = refusal(capsys, "--stage", "encoder", *flags)
        assert "workers must be at least 2 with --shard, got 1" in line
        line = refusal(capsys, "--stage", "vae", "--workers", "2", *flags)
        assert "stage must be encoder or base with --shard, got 'vae'" in line

    def test_data_that_another_model_encoded(self, capsys, data, tmp_path, tiny_recipe):
        other = tmp_path / "other"
        pipe = checkpoints.build(tiny_recipe)
        pipe.vae.register_to_config(scaling_factor=2.0)
        checkpoints.save(pipe, other)
        line = refusal(
            capsys, "--stage", "base", "--model", other, "--data", data, "--out", tmp_path / "run"
        )
        assert "data must be encoded by the model" in line

    def test_a_model_of_another_recipe(self, capsys, data, tmp_path, tiny_recipe, tiny_json):
        other = tmp_path / "other"
        checkpoints.save(checkpoints.build(replace(tiny_recipe, name="other")), other)
        line = refusal(
            capsys, "--stage", "vae", "--model", other, "--recipe", tiny_json, "--data", data,
            "--out", tmp_path / "run",
        )  # fmt: skip
        assert "recipe must be the model's 'other'" in line
