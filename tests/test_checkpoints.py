"""Model folders."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dreampose import checkpoints, config, poses
from dreampose.errors import InputError


def state(pipe, name):
    return getattr(pipe, name).state_dict()


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    checkpoints.save(tiny_pipeline, tmp_path / "model")
    return tmp_path / "model"


def test_half_precision_on_disk_float32_in_memory(tiny_pipeline, folder):
    files = sorted(folder.rglob("*.safetensors"))
    assert [file.parent.name for file in files] == ["adapter", "image_encoder", "unet", "vae"]
    assert not [*folder.rglob("*.bin"), *folder.rglob("*.pt*")]
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    loaded = checkpoints.load(folder)
    for name in checkpoints.MODELS:
        for key, tensor in state(loaded, name).items():
            assert tensor.dtype == torch.float32
            expected = state(tiny_pipeline, name)[key]
            assert expected.dtype == torch.float32, "saving must not change the model"
            assert torch.equal(tensor, expected.half().float())
    assert loaded.recipe == tiny_pipeline.recipe
    assert checkpoints.fingerprint(loaded) == checkpoints.fingerprint(tiny_pipeline)


def test_fingerprint_tells_models_apart(tiny_pipeline, tiny_recipe):
    other = checkpoints.build(tiny_recipe, seed=1)
    assert checkpoints.fingerprint(other) != checkpoints.fingerprint(tiny_pipeline)
    half = checkpoints.build(tiny_recipe).to(torch.float16)
    assert checkpoints.fingerprint(half) == checkpoints.fingerprint(tiny_pipeline)


def test_a_saved_model_does_not_name_the_folder_it_came_from(folder, tmp_path):
    checkpoints.save(checkpoints.load(folder), tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file


def test_a_fresh_process_loads_the_folder_as_diffusers_does(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["adapter"] == ["dreampose", "ImageAdapter"]
    code = (
        "import sys, dreampose\n"
        "assert 'torch' not in sys.modules\n"
        "pipe = dreampose.DreamPosePipeline.from_pretrained(sys.argv[1])\n"
        "print(type(pipe.adapter).__name__, pipe.image_encoder.dtype, pipe.unet.dtype)"
    )
    run = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ImageAdapter torch.float32 torch.float32", done.stderr


def test_saving_replaces_a_folder_whole_or_not_at_all(tiny_pipeline, folder, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(type(tiny_pipeline.scheduler), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tiny_pipeline, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_weights_follow_the_seed_and_leave_the_global_generator_alone(tiny_recipe):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again = (checkpoints.build(tiny_recipe, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert checkpoints.fingerprint(first) == checkpoints.fingerprint(again)


def test_folders_other_than_models_are_rejected(tmp_path, folder):
    with pytest.raises(InputError, match=r"model must be a folder with a model_index.json"):
        checkpoints.load(tmp_path / "absent")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="model must be one this package wrote"):
        checkpoints.load(folder)


def test_stable_diffusions_folders_become_a_model(tiny_recipe, tmp_path):
    """The paper's start: `vae` and `unet` of one folder, a CLIP vision model of another."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**tiny_recipe.unet)
    source = checkpoints.build(tiny_recipe)
    unet.save_pretrained(tmp_path / "sd" / "unet")
    source.vae.save_pretrained(tmp_path / "sd" / "vae")
    source.image_encoder.save_pretrained(tmp_path / "clip")
    pipe = checkpoints.from_stable_diffusion(tiny_recipe, tmp_path / "sd", tmp_path / "clip")
    assert torch.equal(pipe.unet.conv_in.weight[:, :8], unet.conv_in.weight)
    assert not pipe.unet.conv_in.weight[:, 8:].any()
    with pytest.raises(InputError, match="base must be an existing folder"):
        checkpoints.from_stable_diffusion(tiny_recipe, tmp_path / "no", tmp_path / "clip")
    wrong = config.replace(
        tiny_recipe, image_encoder={**tiny_recipe.image_encoder, "hidden_size": 32}
    )
    with pytest.raises(InputError, match="encoder width must be 32 for recipe catwalk, got 16"):
        checkpoints.from_stable_diffusion(wrong, tmp_path / "sd", tmp_path / "clip")


def test_a_unet_of_another_width_is_rejected(tiny_pipeline):
    from dreampose.pipeline import DreamPosePipeline

    recipe = {**tiny_pipeline.config["recipe"], "num_poses": 3}
    parts = tiny_pipeline.components
    with pytest.raises(InputError, match="unet must have 14 input channels, got 18"):
        DreamPosePipeline(**parts, recipe=recipe)


def test_a_new_model_copies_the_weights_that_fit(tiny_pipeline, tiny_recipe):
    other = config.replace(
        tiny_recipe,
        vae={**tiny_recipe.vae, "latent_channels": 4},
        unet={**tiny_recipe.unet, "in_channels": 4, "out_channels": 4},
    )
    new = checkpoints.build(other, seed=7)
    vae, first = state(new, "vae"), state(new, "unet")["conv_in.weight"].clone()
    vae = {name: tensor.clone() for name, tensor in vae.items()}
    kept = checkpoints.take_over(new, tiny_pipeline)
    assert {"unet.conv_in.weight", "unet.conv_out.weight", "adapter.mix.weight"} <= set(kept)
    assert torch.equal(state(new, "unet")["conv_in.weight"], first)
    assert all(torch.equal(state(new, "vae")[name], tensor) for name, tensor in vae.items())
    for part in ("unet", "image_encoder", "adapter"):
        for name, tensor in state(new, part).items():
            if f"{part}.{name}" not in kept:
                assert torch.equal(tensor, state(tiny_pipeline, part)[name])
    assert len(kept) < 10


def test_a_model_with_finer_poses_starts_with_the_predictions_of_the_coarse_one(
    tiny_pipeline, tiny_recipe
):
    coarse, fine = copy.deepcopy(tiny_pipeline), config.replace(tiny_recipe, pose_detail=4)
    torch.nn.init.normal_(coarse.unet.conv_in.weight, std=0.1)
    new = checkpoints.build(fine, seed=7)
    assert checkpoints.take_over(new, coarse) == []
    maps = torch.rand(5, 2, 64, 48)
    x, tokens = torch.randn(1, 8, 8, 6), torch.randn(1, 65, coarse.unet.config.cross_attention_dim)
    predictions = [
        pipe.unet(
            torch.cat(
                [
                    x,
                    poses.to_grid(maps, (8, 6), detail=pipe.recipe.pose_detail).flatten(0, 1)[None],
                ],
                dim=1,
            ),
            10,
            encoder_hidden_states=tokens,
        ).sample
        for pipe in (coarse, new)
    ]
    torch.testing.assert_close(*predictions)
